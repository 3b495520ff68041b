"""DGL's shared latent space: text prompts and frame prompts from one set of learned tokens, the same for all clips.

Shapes: T frames, F = 4 prompts of a frame, D visual width, D' text width. Each block of both towers has its own
prompts; the towers have the same depth.

Source: Yang et al., "DGL: Dynamic Global-Local Prompt Tuning for Text-Video Retrieval", AAAI 2024, arXiv 2401.10588;
https://github.com/knightyxp/DGL. The STOP release (https://github.com/zhoujiahuan1991/CVPR2025-STOP) builds on it.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from modules.clip import CLIP, MLP, Attention, Block
from modules.deep_prompts import uniform_prompts

FRAME_PROMPTS = 4  # F, prompts of a frame
TEXT_PROMPTS = 4  # before the words, and another 4 after them


class LatentPrompts(NamedTuple):
    """The prompts of all blocks."""

    prefix: Tensor  # [blocks,4,D'], after START
    postfix: Tensor  # [blocks,4,D'], after the padding, where no word sees them
    frames: Tensor  # [blocks,T,F,D]; [blocks,1,F,D] if all frames share them


def common_depth(clip: CLIP) -> int:
    """Return the number of blocks of each tower; raises ValueError if the towers differ in it."""
    visual, text = len(clip.visual.blocks), len(clip.text.blocks)
    if visual != text:
        raise ValueError(
            f"a shared latent space needs towers of equal depth; this CLIP has {visual} visual and {text} text blocks"
        )
    return visual


class LinearLatentSpace(nn.Module):
    """`shared_latent_space linear`: the tokens are the frame prompts, and two Linears map them to text prompts."""

    def __init__(self, layers: int, width: int, text_width: int) -> None:
        super().__init__()
        self.prompts = uniform_prompts(FRAME_PROMPTS, layers, width)
        self.prefix = nn.Linear(width, text_width)
        self.postfix = nn.Linear(width, text_width)

    def forward(self) -> LatentPrompts:
        prompts = self.prompts.transpose(0, 1)  # [blocks,F,D]
        return LatentPrompts(self.prefix(prompts), self.postfix(prompts), prompts.unsqueeze(1))


class TransformerLatentSpace(nn.Module):
    """`shared_latent_space transformer`: one transformer block over the text prompts and the prompts of T frames.

    It is the same block for all blocks of CLIP. An MLP maps the text prompts to the width of the text tower.
    """

    def __init__(self, layers: int, width: int, heads: int, text_width: int, frames: int) -> None:
        super().__init__()
        self.frames = frames
        self.prompts = nn.Parameter(torch.randn(2 * TEXT_PROMPTS + FRAME_PROMPTS * frames, layers, width))
        self.block = Block(width, heads, "quick_gelu")
        self.to_text = MLP(width, "quick_gelu", hidden=2 * width, out=text_width)
        # The release has torch's own initial values, not CLIP's.
        self.block.attn.draw_as_torch()
        for layer in (self.block.mlp.c_fc, self.block.mlp.c_proj, self.to_text.c_fc, self.to_text.c_proj):
            layer.reset_parameters()

    def forward(self) -> LatentPrompts:
        mixed = self.block(self.prompts.transpose(0, 1))  # [blocks,8+F·T,D]
        text = self.to_text(mixed[:, : 2 * TEXT_PROMPTS])
        frames = mixed[:, 2 * TEXT_PROMPTS :].unflatten(1, (self.frames, FRAME_PROMPTS))
        return LatentPrompts(text[:, :TEXT_PROMPTS], text[:, TEXT_PROMPTS:], frames)


@torch.no_grad()
def round_to_half(module: nn.Module) -> None:
    """Round kernels and attention projections to fp16 and back; both releases do so once, also for new layers."""
    for part in module.modules():
        if isinstance(part, nn.Linear | nn.Conv3d):
            tensors = [part.weight, part.bias]
        elif isinstance(part, Attention | nn.MultiheadAttention):
            tensors = [part.in_proj_weight, part.in_proj_bias]
        else:
            continue
        for tensor in tensors:
            if tensor is not None:
                tensor.copy_(tensor.half())
