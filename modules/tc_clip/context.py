"""Temporal contextualisation (section 3.2 of TC-CLIP): each block sums up its clip in k context tokens, and the frames
of the next block attend to them beside their own tokens.

    seeds    of each frame the patches with the largest attention of its class token, in falling order
    context  the seeds of all frames, merged to k tokens (`modules.token_merging`)

Shapes: B clips, T frames, N tokens of a frame, S seeds of a clip, K context tokens, D width.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from modules.attention import KeysValues
from modules.clip import Block
from modules.precision import without_autocast
from modules.token_merging import match, merge


class Context(NamedTuple):
    """Context tokens: `tokens` `[B,K,D]`, zero where a short clip has fewer, and `mask` bool `[B,K]`, true where it
    has one."""

    tokens: Tensor
    mask: Tensor


class Contextualised(NamedTuple):
    """What the first half of a block gives: `x` `[B,T,N,D]`, residual included; `seeds` int64 `[B,T,P]`, numbers of
    patches."""

    x: Tensor
    seeds: Tensor


def attend(block: Block, x: Tensor, context: Context | None, table: Tensor | None, seeds: int) -> Contextualised:
    """Let the tokens of every frame attend to their frame and to the context, and choose seeds.

    Args:
        x: `[B,T,N,D]`, the class token of a frame first.
        context: that of the block before, None in the first block.
        table: `[heads,1,2]`, the bias of logits for keys of the frame and of the context; None without a context.
        seeds: P, patches to choose in every frame.
    """
    normal = block.ln_1(x.flatten(0, 1))
    q, *own = block.attn.project(normal)
    seen, mask = KeysValues(*own), None
    frames, length = x.shape[1], x.shape[2]
    if context is not None:
        assert table is not None
        others = block.context(context.tokens)
        seen = seen.followed_by(KeysValues(*(part.repeat_interleave(frames, dim=0) for part in others)))
        bias = torch.cat(
            [table[..., :1].expand(-1, -1, length), table[..., 1:].expand(-1, -1, context.mask.shape[1])], 2
        )
        hidden = torch.cat([context.mask.new_zeros(len(x), length), ~context.mask], dim=1)
        mask = bias.unsqueeze(0).masked_fill(hidden.repeat_interleave(frames, dim=0)[:, None, None], -torch.inf)
    attended = block.attn.project_out(block.attn.attend(q, seen, mask)).unflatten(0, x.shape[:2])
    chosen = _attended_patches(q[:, 0], seen.keys, mask, block.attn.heads, length, seeds)
    return Contextualised(x + attended, chosen.unflatten(0, x.shape[:2]))


@torch.no_grad()
def _attended_patches(query: Tensor, keys: Tensor, mask: Tensor | None, heads: int, length: int, seeds: int) -> Tensor:
    """Return the patches with the largest attention of the class token, mean over heads, in falling order: int64
    `[n,P]` from its query `[n,D]`, all keys `[n,N+K,D]` and the mask of logits."""
    with without_autocast(query.device.type):
        q, k = (part.float().unflatten(-1, (heads, -1)) for part in (query, keys))
        logits = torch.einsum("nhd,nshd->nhs", q, k) / q.shape[-1] ** 0.5
        if mask is not None:
            logits = logits + mask.float().squeeze(2)
        shares = logits.softmax(dim=-1).mean(dim=1)
    return shares[:, 1:length].topk(seeds, dim=1).indices


def summarise(x: Tensor, seeds: Tensor, lengths: list[int], count: int, rate: int) -> Context:
    """Merge the seeds of every clip to `count` context tokens; fewer seeds stay as they are.

    Clips with the same number of real frames are merged together, so that padding does not count.

    Args:
        x: `[B,T,N,D]`.
        seeds: int64 `[B,T,P]`, numbers of patches.
        lengths: how many frames of each clip are real; they come first.
        count: k.
        rate: r, tokens that may go in one round.
    """
    places = 1 + seeds.unsqueeze(-1).expand(-1, -1, -1, x.shape[-1])
    chosen = x.gather(2, places)  # [B,T,P,D]
    width = min(count, seeds.shape[1] * seeds.shape[2])
    tokens = x.new_zeros(len(x), width, x.shape[-1])
    mask = torch.zeros(len(x), width, dtype=torch.bool, device=x.device)
    for length in sorted(set(lengths)):
        rows = torch.tensor([row for row, own in enumerate(lengths) if own == length], device=x.device)
        merged = merge_to(chosen[rows, :length].flatten(1, 2), count, rate)
        tokens = tokens.index_put((rows.unsqueeze(1), torch.arange(merged.shape[1], device=x.device)), merged)
        mask[rows, : merged.shape[1]] = True
    return Context(tokens, mask)


def merge_to(tokens: Tensor, count: int, rate: int) -> Tensor:
    """Merge tokens `[R,S,D]` until `count` are left: `[R,count,D]`, or all if there are fewer.

    As released: int((S - count) / rate) rounds in which up to `rate` go, then rounds in which as many go as can. In a
    round at most half of the tokens can go. Those of the set A that stay come first, most similar first.
    """
    size = torch.ones_like(tokens[..., 0], dtype=torch.float32)
    rounds = max(0, tokens.shape[1] - count) // rate
    while tokens.shape[1] > count:
        goes = min(rate if rounds > 0 else tokens.shape[1] - count, tokens.shape[1] // 2)
        tokens, size = merge(tokens, size, match(tokens, size, 0, goes, falling=True), goes)
        rounds -= 1
    return tokens


def bias_table(heads: int) -> nn.Parameter:
    """Return new biases of logits in one block, `[heads,1,2]`: for keys of the own frame, and for the context's."""
    return nn.Parameter(nn.init.trunc_normal_(torch.empty(heads, 1, 2), std=0.02))
