"""Space-time cross attention (STCA): a CLIP block with a temporal branch that has no parameters of its own.

With X the tokens of a clip's frames, Z those that a mask keeps of them, and the block's own LayerNorms, attention and
MLP:

    Y     = X + MHSA(ln_1(X))                                   CLIP's path
    H     = mean over δ of  mix_δ(Z) + MHSA(ln_1(mix_δ(Z)))     the temporal branch; attention inside each frame
    Q     = Y, with H in the places of the class token and of the kept patches
    X_out = Q + MLP(ln_2(Y))

The MLP reads Y, not Q: so it is drawn in the paper's figure of the method, and so the released code computes it.

Shapes: B clips, T frames, N patches of a frame, N' those that are kept, D width, S scales.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from modules.attention import KeysValues
from modules.block import Block
from modules.precision import pad_for_tensor_cores
from modules.stdd.mixing import mix_channels


def rows_of_kept(kept: Tensor, patches: int) -> Tensor:
    """Return the rows of class tokens and kept patches among all tokens: int64 `[B,T,N']` -> `[B*T*(1+N')]`.

    Args:
        kept: the places of kept patches, 0 to N - 1.
        patches: N; the tokens of the clips are rows `[B*T*(1+N),D]`, frame by frame, the class token first.
    """
    tokens = torch.nn.functional.pad(1 + kept.flatten(0, 1), (1, 0))
    first = (1 + patches) * torch.arange(len(tokens), device=kept.device)
    return (tokens + first[:, None]).flatten()


def cross_attend(
    block: Block,
    x: Tensor,
    frame_mask: Tensor,
    rows: Tensor,
    *,
    scales: Sequence[int],
    fold: int,
    first_only: bool = False,
) -> Tensor:
    """Run a block with STCA.

    Args:
        x: `[B,T,1+N,D]`, the class token first.
        frame_mask: bool `[B,T]`.
        rows: the result of `rows_of_kept`.
        scales: the values of δ.
        fold: of `mix_channels`.
        first_only: compute only the class tokens, for a last block of which nothing else is read.

    Returns:
        `[B,T,1+N,D]`, or `[B,T,1,D]` with `first_only`.
    """
    plain, shortcut = block.run(_attend, block, x, frame_mask, rows, scales, fold, first_only)
    return block.run(_feed_forward, block, plain, shortcut)


def _attend(
    block: Block, x: Tensor, frame_mask: Tensor, rows: Tensor, scales: Sequence[int], fold: int, first_only: bool
) -> tuple[Tensor, Tensor]:
    """Return Y and Q, `[B,T,1+N,D]` or only their class tokens."""
    read = slice(1) if first_only else slice(None)
    kept = x.flatten(0, 2).index_select(0, rows).unflatten(0, (*x.shape[:2], -1))  # Z
    mixed = mix_channels(kept, frame_mask, scales, fold)  # [S,B,T,1+N',2f]
    of_plain, of_mixed = _queries_keys_values(block, x, mixed, rows)
    plain = x[:, :, read] + block.attn.project_out(_gathered(block, of_plain, read))
    # The output projection is linear, so it can follow the mean over scales: one projection instead of S.
    gathered = _gathered(block, of_mixed, read).mean(dim=0)
    shortcut = torch.cat([mixed.mean(dim=0), kept[..., mixed.shape[-1] :]], dim=-1)
    branch = (shortcut[:, :, read] + block.attn.project_out(gathered)).to(plain.dtype)  # H
    if first_only:
        return plain, branch
    return plain, plain.flatten(0, 2).index_copy(0, rows, branch.flatten(0, 2)).view_as(plain)


def _gathered(block: Block, projected: Tensor, read: slice) -> Tensor:
    """Return what attention inside each frame gathers, not yet projected: `[...,L,3 D]` -> `[...,L or 1,D]`."""
    query, *seen = projected.flatten(0, -3).chunk(3, dim=-1)
    return block.attn.attend(query[:, read], KeysValues(*seen)).unflatten(0, projected.shape[:-2])


def _queries_keys_values(block: Block, x: Tensor, mixed: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Return queries, keys and values of x, `[B,T,1+N,3 D]`, and of the mixed tokens, `[S,B,T,1+N',3 D]`.

    A mixed token differs from its token in x in 2f of D channels, by default a sixteenth. So the product with the other
    channels, nearly the whole cost, is computed for x alone and serves every scale. Let W and b have the gain and bias
    of ln_1 folded in; μ and r are the mean and the reciprocal deviation of a token of x, μ' and r' those of it mixed:

        W ln(x)     + b  =         W_own r (x_own - μ)  +  W_2f r  (x_2f  - μ )                            +  b
        W ln(mixed) + b  =  r'/r   W_own r (x_own - μ)  +  W_2f r' (mixed - μ')  +  (W_own 1) r' (μ - μ')  +  b
    """
    weight, bias = block.attn.projection(block.ln_1)
    channels = [mixed.shape[-1], x.shape[-1] - mixed.shape[-1]]
    of_moving, of_own = weight.split(channels, dim=1)
    last = torch.cat([of_moving, of_own.sum(dim=1, keepdim=True), bias[:, None]], dim=1)
    last = pad_for_tensor_cores(last, -1).t()

    x_rows = x.flatten(0, 2)
    mean = x_rows.mean(dim=-1, keepdim=True)
    moving, own = (x_rows - mean).split(channels, dim=-1)
    total, squares = own.sum(dim=-1, keepdim=True), own.square().sum(dim=-1, keepdim=True)

    def normalised(moving: Tensor, total: Tensor, squares: Tensor) -> tuple[Tensor, Tensor]:
        """Return the reciprocal deviation, and the factors of `last`, of tokens from which μ is subtracted."""
        shift = (total + moving.sum(dim=-1, keepdim=True)) / x.shape[-1]
        variance = (squares + moving.square().sum(dim=-1, keepdim=True)) / x.shape[-1] - shift.square()
        scale = torch.rsqrt(variance + block.ln_1.eps)
        factors = torch.cat([scale * (moving - shift), -scale * shift, torch.ones_like(scale)], dim=-1)
        return scale, pad_for_tensor_cores(factors, -1)

    scale, factors = normalised(moving, total, squares)
    product = F.linear(scale * own, of_own)
    plain = torch.addmm(product, factors, last)

    mixed_rows = mixed.flatten(1, 3)
    mixed_scale, factors = normalised(mixed_rows - mean[rows], total[rows], squares[rows])
    kept = product.index_select(0, rows) * (mixed_scale / scale[rows])
    of_mixed = torch.addmm(kept.flatten(0, 1), factors.flatten(0, 1), last)
    return plain.unflatten(0, x.shape[:-1]), of_mixed.unflatten(0, mixed.shape[:-1])


def _feed_forward(block: Block, plain: Tensor, shortcut: Tensor) -> Tensor:
    return shortcut + block.mlp(block.ln_2(plain))
