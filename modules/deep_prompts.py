"""Learned tokens in every block of the vision tower, and their initial values; `modules.text_prompts` serves the text
tower.

    x_l = Block_l([x_{l-1} ; P_l]) without the outputs of P_l        (VPT-deep, eq. 5)

The next block has other prompts, so the outputs of a block's prompts are never used: the prompts are a context, keys
and values without queries. In a last block, only the class token is computed.

Shapes: B clips, T frames, P patches, S prompts of a block, D width, E joint embedding.

Source: Jia et al., "Visual Prompt Tuning", ECCV 2022, arXiv 2203.12119, section 3.2.
"""

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from modules.clip import Block, KeysValues, VisionTransformer


def normal_prompts(*shape: int) -> nn.Parameter:
    """Return a learned tensor drawn from N(0, 0.02)."""
    return nn.Parameter(0.02 * torch.randn(shape))


def uniform_prompts(*shape: int, patch_size: int = 32) -> nn.Parameter:
    """Return a learned tensor, drawn as VPT does: uniform within ±sqrt(6 / (3 p² + D)), D the last of `shape`.

    p is the side of a patch in pixels. DGL's release has 32 for every backbone.
    """
    bound = math.sqrt(6 / (3 * patch_size**2 + shape[-1]))
    return nn.Parameter(torch.empty(shape).uniform_(-bound, bound))


def encode_frames(visual: VisionTransformer, video: Tensor, prompts: Iterable[Tensor]) -> Tensor:
    """Embed every frame with prompts in every block: float `[B,T,3,H,W]`, normalised -> `[B,T,E]`, not of unit length.

    Args:
        prompts: of each block `[S,D]`, the same for all frames, or `[T,S,D]`, the same for all clips.
    """
    tokens = run_blocks(visual.blocks, visual.embed(video.flatten(0, 1)), prompts)
    return visual.pool(tokens).unflatten(0, video.shape[:2])


def run_blocks(blocks: nn.ModuleList, tokens: Tensor, prompts: Iterable[Tensor]) -> Tensor:
    """Run the blocks that end a tower, each with its prompts: `[B·T,1+P,D]` -> class tokens `[B·T,1,D]`."""
    last = blocks[-1]
    for block, of_block in zip(blocks, prompts, strict=True):
        assert isinstance(block, Block)
        context = prompt_context(block, of_block, len(tokens))
        tokens = block.first_token(tokens, context) if block is last else block(tokens, context)
    return tokens


def prompt_context(block: Block, prompts: Tensor, rows: int) -> KeysValues:
    """Return keys and values of prompts, `[S,D]` or `[R,S,D]`: of 1 row, or of `rows` rows, a multiple of R.

    Row n then has the prompts n mod R, so that R = T prompts of frames serve the frames of all clips in their order.
    """
    context = block.context(prompts if prompts.dim() == 3 else prompts.unsqueeze(0))
    times = 1 if len(context.keys) == 1 else rows // len(context.keys)
    return context if times == 1 else KeysValues(*(part.repeat(times, 1, 1) for part in context))
