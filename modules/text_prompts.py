"""Learned tokens in CLIP's text tower, shared by the prompt methods.

Shapes: N captions, L words, S prompts a block, D width, E joint embedding.
"""

import torch
from torch import Tensor, nn

from modules.clip import TextTransformer


def text_prompts(text: TextTransformer, length: int) -> nn.Parameter | None:
    """New prompts `[blocks,S,D]` for every block of a tower, drawn from N(0, 0.02); None for length 0."""
    return nn.Parameter(0.02 * torch.randn(len(text.blocks), length, text.width)) if length else None


def encode_with_prefix(text: TextTransformer, prompts: Tensor | None, token_ids: Tensor) -> Tensor:
    """The text tower with prompts after START in every block: `[blocks,S,D]` or None, int64 `[N,L]` -> `[N,E]`.

    Before the words only: behind END a prompt is dead under the causal mask. Every block brings its own, so that what a
    block makes of them is never used: they are a context, seen by all tokens but START, which stands before them.
    """
    if prompts is None:
        return text(token_ids)
    tokens = text.embed(token_ids)
    length = token_ids.shape[1]
    mask = torch.ones(length, length + prompts.shape[1], dtype=torch.bool, device=tokens.device)
    mask[0, length:] = False
    for block, prompt in zip(text.blocks, prompts, strict=True):
        tokens = block(tokens, context=prompt.unsqueeze(0), mask=mask, causal=True)
    return text.pool(tokens, text.end_positions(token_ids))
