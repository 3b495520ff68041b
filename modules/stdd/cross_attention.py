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
from torch import Tensor

from modules.attention import KeysValues
from modules.clip import Block
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
    plain = x[:, :, read] + block.attn.project_out(_gathered(block, x, first_only))
    kept = x.flatten(0, 2).index_select(0, rows).unflatten(0, (*x.shape[:2], -1))  # Z
    mixed = mix_channels(kept, frame_mask, scales, fold)  # [S,B,T,1+N',D]
    # The output projection is linear, so it can follow the mean over scales: one projection instead of S.
    gathered = _gathered(block, mixed, first_only).mean(dim=0)
    branch = (mixed[:, :, :, read].mean(dim=0) + block.attn.project_out(gathered)).to(plain.dtype)  # H
    if first_only:
        return plain, branch
    return plain, plain.flatten(0, 2).index_copy(0, rows, branch.flatten(0, 2)).view_as(plain)


def _gathered(block: Block, x: Tensor, first_only: bool) -> Tensor:
    """Return what attention inside each frame gathers, not yet projected: `[...,L,D]` -> `[...,L or 1,D]`."""
    normal = block.ln_1(x.flatten(0, -3))
    if first_only:
        gathered = block.attn.attend(block.attn.query(normal[:, :1]), block.attn.keys_values(normal))
    else:
        query, *seen = block.attn.project(normal)
        gathered = block.attn.attend(query, KeysValues(*seen))
    return gathered.unflatten(0, x.shape[:-2])


def _feed_forward(block: Block, plain: Tensor, shortcut: Tensor) -> Tensor:
    return shortcut + block.mlp(block.ln_2(plain))
