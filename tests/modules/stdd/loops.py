"""Space-time cross attention in plain loops over clips, frames, windows and channels, straight from its definition."""

import torch
from torch import Tensor

from modules.block import Block

SLOTS = ((0, 0), (0, 1), (1, 0), (1, 1))  # top left, top right, bottom left, bottom right


def window_order(grid: int) -> list[int]:
    """Return, in window order, the places of the patches in their rows."""
    order = []
    for row in range(0, grid, 2):
        for column in range(0, grid, 2):
            order += [(row + down) * grid + column + right for down, right in SLOTS]
    return order


def dropped_slots(dropped: int, shift: int) -> list[bool]:
    """Return the base pattern 1..1 0..0 rolled to the right."""
    base = [True] * dropped + [False] * (4 - dropped)
    return base[-(shift % 4) :] + base[: -(shift % 4)] if shift % 4 else base


def mixed(frames: list[Tensor], scale: int, fold: int) -> list[Tensor]:
    """Mix the patches of the frames of one clip, each `[N,D]`."""
    width = frames[0].shape[1] // fold
    out = [frame.clone() for frame in frames]
    for t, frame in enumerate(out):
        frame[:, : 2 * width] = 0
        for k in range(1, scale + 1):
            narrow = width // 2 ** (k - 1)
            for channel in range(narrow):
                if t - k >= 0:
                    frame[:, channel] = frames[t - k][:, channel]
                if t + k < len(frames):
                    frame[:, 2 * width - narrow + channel] = frames[t + k][:, 2 * width - narrow + channel]
    return out


def attended(block: Block, tokens: Tensor) -> Tensor:
    """Return MHSA(ln_1(x)) of one frame `[L,D]`, head by head."""
    attn, normal = block.attn, block.ln_1(tokens)
    q, k, v = (normal @ attn.in_proj_weight.T + attn.in_proj_bias).chunk(3, dim=1)
    width = attn.width // attn.heads
    heads = []
    for head in range(attn.heads):
        own = slice(head * width, (head + 1) * width)
        heads.append((q[:, own] @ k[:, own].T * width**-0.5).softmax(dim=1) @ v[:, own])
    return torch.cat(heads, dim=1) @ attn.out_proj.weight.T + attn.out_proj.bias


def stca(block: Block, clip: Tensor, masks: Tensor, scales: tuple[int, ...], fold: int) -> Tensor:
    """Run a block on one clip `[T,1+N,D]`, whose frames drop the patches of `masks`, bool `[T,N]`."""
    plain = [frame + attended(block, frame) for frame in clip]
    kept = [frame[1:][~mask] for frame, mask in zip(clip, masks, strict=True)]
    branches = []
    for scale in scales:
        patches = mixed(kept, scale, fold)
        tokens = [torch.cat([frame[:1], own]) for frame, own in zip(clip, patches, strict=True)]
        branches.append([frame + attended(block, frame) for frame in tokens])
    out = []
    for t, frame in enumerate(plain):
        branch = sum(branch[t] for branch in branches) / len(scales)
        shortcut = frame.clone()
        shortcut[0] = branch[0]
        shortcut[1:][~masks[t]] = branch[1:]
        out.append(shortcut + block.mlp(block.ln_2(frame)))
    return torch.stack(out)
