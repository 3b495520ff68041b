"""LoRA (Hu et al., ICLR 2022, arXiv 2106.09685) on the queries, keys and values of CLIP's blocks.

    [q; k; v] = (W + B A) x + b        (eq. 3, without its scale alpha / r)

One A serves q, k and v, as in TempMe (Shen et al., ICLR 2025; github.com/LunarShen/TempMe at commit e624930) and
DiscoVLA. B starts at zero, and so does the addition.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from modules.block import Block
from modules.deltas import InputDelta, Layer, WeightDelta


class LoRA(WeightDelta, InputDelta):
    """ΔW = B A of a linear layer, with A [rank, inputs] and B [outputs, rank].

    Training computes B (A x), which needs no gradient of a whole weight; evaluation adds B A to W once.
    """

    def __init__(self, layer: Layer, rank: int) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.empty(rank, layer.inputs))
        self.b = nn.Parameter(torch.zeros(layer.outputs, rank))
        nn.init.kaiming_uniform_(self.a, a=math.sqrt(5))  # U(-1/√inputs, 1/√inputs)

    def weight(self) -> Tensor:
        return self.b @ self.a

    def forward(self, x: Tensor) -> Tensor:
        # With B^T copied, B's gradient is (A x)^T g. A linear layer's is g^T (A x), which takes a CPU eight times as
        # long. The copy is small.
        return F.linear(x, self.a) @ self.b.T.contiguous()


def add_lora(blocks: nn.ModuleList, rank: int) -> nn.ModuleList:
    """Add a LoRA to the joint projection of queries, keys and values of every block, and return them in order.

    The caller registers the list in its method; the names of CLIP's tensors stay the same.
    """
    added = nn.ModuleList()
    for block in blocks:
        assert isinstance(block, Block)
        layer = block.layers()["qkv"]
        lora = LoRA(layer, rank)
        layer.add(lora)
        added.append(lora)
    return added


RELEASED_TOWERS = {"visual": "clip.visual.transformer.resblocks.", "text": "clip.transformer.resblocks."}


def released_lora_name(name: str) -> str | None:
    """Return the name in TempMe's and DiscoVLA's code of a tensor such as `visual_lora.0.a` or `text_lora.11.b`.

    None for a tensor of another kind.
    """
    tower, is_lora, rest = name.partition("_lora.")
    if not is_lora or tower not in RELEASED_TOWERS:
        return None
    layer, matrix = rest.split(".")
    return f"{RELEASED_TOWERS[tower]}{layer}.attn.TVPt_LoRA_{matrix}"
