"""LoRA (Hu et al., ICLR 2022, arXiv 2106.09685) on every linear layer of both towers, as a method that tests use."""

from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from modules.clip import CLIP, Block
from modules.deltas import InputDelta, WeightDelta
from modules.methods.base import Method
from modules.options import Range
from modules.similarity import masked_mean

LAYERS = ("q", "k", "v", "out", "c_fc", "c_proj")


class MergedLoRA(WeightDelta):
    """ΔW = B A, in training too; B starts at zero."""

    def __init__(self, outputs: int, inputs: int, rank: int, dropout: float) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.randn(rank, inputs) * inputs**-0.5)
        self.b = nn.Parameter(torch.zeros(outputs, rank))
        self.dropout = dropout

    def weight(self) -> Tensor:
        return self.b @ self.a


class LoRA(MergedLoRA, InputDelta):
    """The same ΔW; training computes B A x, with dropout on x."""

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(F.linear(F.dropout(x, self.dropout, self.training), self.a), self.b)


class LoRAMethod(Method):
    """CLIP4Clip's mean over frames, with CLIP frozen and LoRA on q, k, v, out and the MLP."""

    def __init__(
        self,
        clip: CLIP,
        *,
        rank: Annotated[int, "of every ΔW", Range(1)] = 4,
        dropout: Annotated[float, "of the input of A", Range(0, 0.99)] = 0.0,
        kind: Annotated[Literal["input", "weight"], "how ΔW is applied in training"] = "input",
    ) -> None:
        super().__init__(clip)
        clip.requires_grad_(False)
        self.deltas = nn.ModuleList()
        for block in (*clip.visual.blocks, *clip.text.blocks):
            assert isinstance(block, Block)
            for layer in (block.layers()[name] for name in LAYERS):
                made = (LoRA if kind == "input" else MergedLoRA)(layer.outputs, layer.inputs, rank, dropout)
                self.deltas.append(made)
                layer.add(made)

    def encode_video(self, video: Tensor, frame_mask: Tensor) -> Tensor:
        return masked_mean(self.clip.visual(video.flatten(0, 1)).unflatten(0, video.shape[:2]), frame_mask)
