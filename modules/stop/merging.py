"""Token merging in STOP, beyond the paper: alike patches of a frame become one token before the prompted blocks.

A token x_m stands for a set G_m of patches. The model is STOP on all P patches, each with the value of its token, but
the blocks see every token once:

    x_m       = 1/|G_m| sum_{j in G_m} h_j                  tokens merge, and again after h_j + r_j p^s_j of eq. 5
    h_j       = x_m  for j in G_m                           what A, N_s, P_s, N_t and P_t read, on the grid
    attention = softmax(q . k_m / sqrt(d) + log |G_m|)      a token counts as often as it has patches

Class tokens and prompts have the size 1 and never merge. Which tokens merge has no gradient, and depends on their frame
alone: neither on other frames nor on other clips nor on padding.

Source of matching, merging and proportional attention: ToMe (`modules.token_merging`).

Shapes: B clips, T frames, P patches of a frame, S tokens that are left of them, M that merge, D width, C sequences of a
clip with L tokens (`modules.stop.tokens`), K prompts of a sequence.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from modules.clip import Block
from modules.quoting import shorten
from modules.stop.tokens import Merging, at_least_fp32, patches_of, sequences
from modules.token_merging import bias, match, merge


def plan_merging(text: str, depth: int, patches: int) -> tuple[int, ...]:
    """Return M for each of the `depth` blocks.

    Raises:
        ValueError: if the text is neither one number nor `depth` numbers with - between them, or if a block shall merge
            more than half of the tokens that are left of `patches`.
    """
    parts = text.split("-")
    if not all(part.isascii() and part.isdigit() and len(part) < 6 for part in parts):
        raise ValueError(f"--merge {shorten(repr(text))} is neither a whole number nor a list such as 8-0-4-0")
    if len(parts) not in (1, depth):
        raise ValueError(
            f"--merge {shorten(text)} has {len(parts)} numbers, but this CLIP has {depth} visual blocks: give one "
            "number for all blocks or one for each"
        )
    plan = [int(part) for part in parts] * (depth if len(parts) == 1 else 1)
    left = patches
    for layer, count in enumerate(plan):
        if count > left // 2:
            raise ValueError(
                f"--merge {shorten(text)} merges {count} of the {left} tokens that are left of a frame's {patches} "
                f"patches before block {layer} (counted from 0): it can be at most half, {left // 2}"
            )
        left -= count
    return tuple(plan)


def merge_patches(block: Block, x: Tensor, frames: int, count: int, merging: Merging | None) -> tuple[Tensor, Merging]:
    """Merge M = `count` tokens of every frame into their most similar ones, compared as `block` will read them.

    Args:
        x: sequences `[B,C,L,D]` of T frames.
        merging: what has merged before.

    Returns:
        The sequences with M tokens less for each frame, and what has merged by now.
    """
    with torch.no_grad():
        metric = patches_of(block.ln_1(x), frames)
    tokens = patches_of(x, frames)  # [B,T,S,D]
    size = at_least_fp32(tokens.new_ones(tokens.shape[:3])) if merging is None else merging.size
    place = match(metric.flatten(0, 1), size.flatten(0, 1), 0, count)
    merged, _ = merge(tokens.flatten(0, 1), size.flatten(0, 1), place, count)
    place = place.unflatten(0, tokens.shape[:2])
    if merging is not None:
        place = place.gather(2, merging.place)
    left = tokens.shape[2] - count
    x = sequences(x[:, :, 0], merged.unflatten(0, tokens.shape[:2]).to(x.dtype))
    return x, Merging.of(place, left, size.dtype)


def proportional(mask: Tensor | None, merging: Merging, count: int) -> Tensor:
    """Return a mask of attention that also has the logarithm of each token's size, float `[B*C,1,1,L+K]`.

    Args:
        mask: bool `[B*C,1,1,L+K]`, or None if all is seen and K = 0.
        count: C.
    """
    size = merging.size.flatten(1).unflatten(1, (count, -1)).flatten(0, 1)  # [B*C,L-1]
    size = F.pad(size, (1, 0 if mask is None else mask.shape[-1] - 1 - size.shape[1]), value=1.0)
    return bias(size if mask is None else size * mask[:, 0, 0])
