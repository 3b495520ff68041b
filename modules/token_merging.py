"""Token merging (ToMe: Bolya et al., ICLR 2023, arXiv 2210.09461): alike tokens of a row become one, their mean.

    match   which tokens merge: bipartite soft matching (section 3, "Bipartite Soft Matching")
    merge   their mean, weighted by how many patches each stands for, its size
    bias    log size, added to the logits of attention: "proportional attention", eq. 1

Shapes: N rows, S tokens of a row, M of which are merged into others, C class tokens, which come first, D width.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from modules.precision import without_autocast

HIDDEN = -1e4  # the logarithm of a size of zero: no weight in a softmax, but no NaN where all sizes are zero


@torch.no_grad()
def match(metric: Tensor, size: Tensor, classes: int, count: int, falling: bool = False) -> Tensor:
    """Return the place of every token after M = `count` of them have merged into others, int64 `[N,S]`.

    Of the tokens behind the class tokens, those at even places of the row are the set A, the others the set B. Each of
    A has the cosine with its most similar token of B, and the M of A with the highest merge into theirs. After merging
    come the class tokens, the rest of A and all of B, each in its old order.

    Tokens of size zero never change which others merge: those of A are the first to go, and those of B attract none.

    Args:
        metric: `[N,S,D]`, what is compared.
        size: `[N,S]`, how many patches each token stands for; 0 for padding.
        classes: C.
        count: M, at most half of the other tokens.
        falling: whether the rest of A comes in falling order of these cosines instead.
    """
    tokens, others = metric.shape[1], F.normalize(metric[:, classes:].float(), dim=-1)
    first = classes % 2  # A has the even places of the row, B the odd ones
    in_a, in_b = slice(classes + first, tokens, 2), slice(classes + 1 - first, tokens, 2)
    with without_autocast(metric.device.type):
        cosine = others[:, first::2] @ others[:, 1 - first :: 2].transpose(1, 2)
    best, target = cosine.masked_fill(size[:, None, in_b] == 0, -2).max(dim=2)
    best = best.masked_fill(size[:, in_a] == 0, 2)
    if falling:
        rank = best.argsort(dim=1, descending=True).argsort(dim=1)
        merged, kept = rank < count, rank - count
    else:
        merged = torch.zeros_like(best, dtype=torch.bool).scatter_(1, best.topk(count, dim=1).indices, True)
        kept = (~merged).cumsum(dim=1) - 1
    place = torch.arange(tokens, device=metric.device).repeat(len(metric), 1)
    behind_a = classes + best.shape[1] - count  # the place of the first of B
    place[:, in_a] = torch.where(merged, behind_a + target, classes + kept)
    place[:, in_b] = behind_a + torch.arange(cosine.shape[2], device=metric.device)
    return place


def merge(x: Tensor, size: Tensor, place: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return the tokens `[N,S-M,D]` and sizes `[N,S-M]` after merging, at least fp32; `place` is `match`'s for M.

    A token is the mean of those that merged into it, weighted by their sizes, and its size is their sum. Where the sum
    is zero, so is the token.
    """
    rows, tokens = place.shape
    weights = size.new_zeros(rows, tokens - count, tokens).scatter_(1, place.unsqueeze(1), size.unsqueeze(1))
    total = weights.sum(dim=2)
    with without_autocast(x.device.type):  # a product instead of scattered sums, whose order a GPU does not keep
        x = x.to(torch.promote_types(x.dtype, torch.float32))
        return (weights / total.clamp(min=1).unsqueeze(2)).to(x.dtype) @ x, total


def bias(size: Tensor) -> Tensor:
    """Return the logarithms of sizes `[N,S]` as a mask of attention to these tokens, `[N,1,1,S]`."""
    return size.log().clamp(min=HIDDEN)[:, None, None]
