"""Learned tokens in CLIP's text tower, shared by the prompt methods.

Shapes: N captions, L words, S prompts per block, D width, E joint embedding.
"""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn

from modules.clip import Block, TextTransformer

FeedForward = Callable[[int, Block, Tensor], Tensor]  # number of the block, block, tokens -> tokens
Placement = Literal["dead", "before_end"]


def text_prompts(text: TextTransformer, length: int) -> nn.Parameter | None:
    """Return new prompts `[blocks,S,D]` for all blocks of a tower, drawn from N(0, 0.02); None for length 0."""
    return nn.Parameter(0.02 * torch.randn(len(text.blocks), length, text.width)) if length else None


def encode_with_prefix(text: TextTransformer, prompts: Tensor | None, token_ids: Tensor) -> Tensor:
    """Run the text tower with prompts after START in every block: `[blocks,S,D]` or None, int64 `[N,L]` -> `[N,E]`."""
    if prompts is None:
        return text(token_ids)
    seen = seen_after_start(token_ids, prompts.shape[1])
    if not text.causal:
        seen = torch.ones_like(seen)  # such a tower has no START either
    return encode_with_context(text, prompts, seen, token_ids)


def seen_after_start(token_ids: Tensor, count: int) -> Tensor:
    """Return which words see `count` prompts after START: all but START itself; bool `[1,1,L,S]`."""
    places = torch.arange(token_ids.shape[1], device=token_ids.device)
    return (places > 0)[None, None, :, None].expand(-1, -1, -1, count)


def seen_from_end(token_ids: Tensor, ends: Tensor, count: int) -> Tensor:
    """Return which words see `count` prompts between the last word and END: END alone; bool `[N,1,L,S]`.

    `ends`, int64 `[N]`, are the places of END.
    """
    places = torch.arange(token_ids.shape[1], device=token_ids.device)
    from_end = places >= ends.unsqueeze(-1)
    return from_end[:, None, :, None].expand(-1, -1, -1, count)


def _feed_forward(layer: int, block: Block, tokens: Tensor) -> Tensor:
    return block.feed_forward(tokens)


def encode_with_both_ends(
    text: TextTransformer,
    prefix: Tensor,
    postfix: Tensor,
    placement: Placement,
    token_ids: Tensor,
    feed_forward: FeedForward = _feed_forward,
) -> Tensor:
    """Run the text tower with prompts on both sides of the words in every block: int64 `[N,L]` -> `[N,E]`.

    [D] Without a causal mask the sides are the same: every token sees all prompts, whatever their placement.

    Args:
        prefix: `[blocks,S,D]`, after START.
        postfix: `[blocks,S,D]`; between the last word and END, or after the padding, where no word sees it.
        feed_forward: as in `encode_with_context`.
    """
    context, seen = prefix, seen_after_start(token_ids, prefix.shape[1])
    if not text.causal:
        context = torch.cat([context, postfix], dim=1)
        seen = torch.ones_like(seen[..., :1]).expand(-1, -1, -1, context.shape[1])
    elif placement == "before_end":
        context = torch.cat([context, postfix], dim=1)
        seen_late = seen_from_end(token_ids, text.end_positions(token_ids), postfix.shape[1])
        seen = torch.cat([seen.expand(len(seen_late), -1, -1, -1), seen_late], dim=-1)
    else:
        # The tower leaves it out. Its gradient is zero instead of none, so that it decays as in DGL's release.
        context = context + 0 * postfix.sum()
    return encode_with_context(text, context, seen, token_ids, feed_forward)


def encode_with_context(
    text: TextTransformer,
    prompts: Tensor,
    seen: Tensor,
    token_ids: Tensor,
    feed_forward: FeedForward = _feed_forward,
) -> Tensor:
    """Run the text tower where every block has its own prompts: int64 `[N,L]` -> `[N,E]`.

    The next block has other prompts, so the outputs of a block's prompts are never used: they are a context, keys and
    values without queries.

    Args:
        prompts: `[blocks,S,D]`. After END the causal mask would hide them.
        seen: bool `[N or 1,1,L,S]`, which words see which prompts.
        feed_forward: the second half of a block, given its number, the block and the tokens.
    """
    tokens = text.embed(token_ids)
    length = seen.shape[2]
    past = torch.ones(length, length, dtype=torch.bool, device=tokens.device)
    past = past.tril() if text.causal else past
    mask = torch.cat([past.expand(len(seen), 1, -1, -1), seen], dim=-1)
    for layer, (block, prompt) in enumerate(zip(text.blocks, prompts, strict=True)):
        assert isinstance(block, Block)
        context = block.context(prompt.unsqueeze(0))
        if block is text.blocks[-1]:
            tokens = block.attend_from(tokens, text.end_positions(token_ids), context, seen, text.causal)
        else:
            tokens = block.attend(tokens, context, mask)
        tokens = feed_forward(layer, block, tokens)
    return text.pool(tokens.squeeze(1))
