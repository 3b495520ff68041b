"""Window shift masking: which patches of each frame the temporal branch of STCA drops.

The G x G patches of a frame lie in windows of 2 x 2. In window order they stand window by window (row by row), and
inside a window as 0 top left, 1 top right, 2 bottom left, 3 bottom right. Every window of a frame drops q of its four
patches, those at the places s, s + 1, ..., s + q - 1 modulo 4, where

    s = (π(t) + o) mod 4,     π a permutation of the clip's frames (or t itself), o an offset (or 0).

So frames drop different places of the same window, and the i-th patch that is kept belongs to the same window in all
frames, but in general to another place of it.

Shapes: A layers, B clips, T frames, W windows of a frame, N = 4 W patches.
"""

import math

import torch
from torch import Tensor

PLACES = 4  # in a window, and as many patterns


def to_window_order(patches: Tensor, grid: int) -> Tensor:
    """Bring patches `[B,T,G*G,D]`, row by row, to window order."""
    by_window = patches.unflatten(2, (grid // 2, 2, grid // 2, 2)).transpose(3, 4)
    return by_window.flatten(2, 5)


def dropped_of_window(rate: float) -> int:
    """Return q: of 4 patches of a window, this many are dropped at a rate below 1; rounded down."""
    return math.floor(PLACES * rate)


def shift_masks(shifts: Tensor, windows: int, dropped: int) -> Tensor:
    """Return the masks, bool `[A,B,T,N]` in window order, true where a patch is dropped.

    Args:
        shifts: s, int64 `[A,B,T,W]`, or `[A,B,T,1]` if all windows of a frame share it.
        windows: W.
        dropped: q.
    """
    places = torch.arange(PLACES, device=shifts.device)
    return ((places - shifts.unsqueeze(-1)) % PLACES < dropped).expand(-1, -1, -1, windows, -1).flatten(3)


def frame_order(numbers: Tensor, frame_mask: Tensor) -> Tensor:
    """Return the permutation π that sorts random numbers, int64 `[A,B,T]`: 0, 1, ... over the real frames of a clip.

    Args:
        numbers: float `[A,B,T]` in [0, 1), or `[A,1,T]` if all clips share them.
        frame_mask: bool `[B,T]`; padding comes last, and so it does in the result.
    """
    return numbers.masked_fill(~frame_mask, math.inf).argsort(dim=-1).argsort(dim=-1)


def training_shifts(
    layers: int,
    frame_mask: Tensor,
    windows: int,
    *,
    shuffle: bool,
    spatial_repeat: bool,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Draw the shifts of a training batch, anew for every layer and clip: int64 `[A,B,T,W or 1]`.

    Args:
        layers: A.
        frame_mask: bool `[B,T]`.
        windows: W.
        shuffle: whether π is a random permutation of the clip's real frames.
        spatial_repeat: whether all windows of a clip share one offset.
        generator: on the device of `frame_mask`; torch's own by default, whose state training saves and restores.
    """
    device, (clips, frames) = frame_mask.device, frame_mask.shape
    offsets = torch.randint(
        PLACES, (layers, clips, 1, 1 if spatial_repeat else windows), generator=generator, device=device
    )
    if not shuffle:
        return torch.arange(frames, device=device)[:, None] + offsets
    numbers = torch.rand(layers, clips, frames, generator=generator, device=device)
    return frame_order(numbers, frame_mask).unsqueeze(-1) + offsets


def evaluation_shifts(layers: int, frame_mask: Tensor, seed: int | None) -> Tensor:
    """Return the shifts for evaluation, int64 `[A,B,T,1]`: s = t, or π(t) if there is a seed.

    π then depends on the seed, the layer and the number of real frames alone, not on the other clips of the batch, on
    padding or on anything drawn before.
    """
    device, (clips, frames) = frame_mask.device, frame_mask.shape
    if seed is None:
        return torch.arange(frames, device=device)[:, None].expand(layers, clips, -1, -1)
    generator = torch.Generator().manual_seed(seed)
    numbers = [torch.rand(layers, generator=generator) for _ in range(frames)]  # the same whatever follows
    return frame_order(torch.stack(numbers, dim=1).unsqueeze(1).to(device), frame_mask).unsqueeze(-1)


def check_masks(masks: Tensor, layers: int, patches: int) -> int:
    """Return q of masks that a caller brings, bool `[A,B,T,N]` in window order.

    Raises:
        ValueError: if they have another dtype or shape, or if windows drop different numbers of patches, or all four.
    """
    if masks.dtype != torch.bool or masks.dim() != 4 or masks.shape[0] != layers or masks.shape[3] != patches:
        raise ValueError(
            f"masks must be bool [{layers},B,T,{patches}] (layers, clips, frames, patches in window order), not "
            f"{str(masks.dtype).removeprefix('torch.')} {list(masks.shape)}"
        )
    counts = masks.unflatten(3, (-1, PLACES)).sum(dim=-1).unique().tolist()
    if len(counts) != 1 or counts[0] == PLACES:
        raise ValueError(
            f"masks must drop the same number of patches, 0 to 3, in every window of 2 x 2, not {counts}; they are "
            "true where a patch is dropped, and windows are runs of four"
        )
    return int(counts[0])


def kept_places(masks: Tensor, dropped: int) -> Tensor:
    """Return which patches are kept, in order: bool `[...,N]` with q dropped of a window -> int64 `[...,N']`."""
    kept = masks.shape[-1] * (PLACES - dropped) // PLACES
    return masks.to(torch.uint8).argsort(dim=-1, stable=True)[..., :kept]
