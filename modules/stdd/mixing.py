"""Channel mixing: patches take some of their channels from the frames before and after.

Shapes: B clips, T frames, N patches, D width, F folds, S scales, f = D // F channels.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from modules.stdd.neighbours import from_frame


def mix_channels(tokens: Tensor, frame_mask: Tensor, scales: Sequence[int], fold: int) -> Tensor:
    """Return the first 2f channels mixed at each scale δ; the other channels stay as they are. For k = 1 .. δ, with
    f_k = f // 2^(k-1) and a later k over an earlier:

        mixed[t, 0 : f_k]        <-  z[t - k, 0 : f_k]            where frame t - k exists
        mixed[t, 2f - f_k : 2f]  <-  z[t + k, 2f - f_k : 2f]      where frame t + k exists

    What is never written is zero: at the first frame the first f channels, at the last frame the second f. The class
    token stays as it is.

    Args:
        tokens: z, `[B,T,1+N,D]`, the class token first.
        frame_mask: bool `[B,T]`; a clip ends with its last real frame.
        scales: the S values of δ.
        fold: F, at least 2.

    Returns:
        `[S,B,T,1+N,2f]`.
    """
    width = tokens.shape[-1] // fold
    patches = tokens[:, :, 1:]
    past, future = patches[..., :width], patches[..., width : 2 * width]
    mixed_past, mixed_future = torch.zeros_like(past), torch.zeros_like(future)
    bands = {}
    for k in range(1, max(scales) + 1):
        narrow = width >> (k - 1)
        mixed_past = torch.cat(
            [_moved(past[..., :narrow], mixed_past[..., :narrow], -k, frame_mask), mixed_past[..., narrow:]], dim=-1
        )
        rest = width - narrow
        mixed_future = torch.cat(
            [mixed_future[..., :rest], _moved(future[..., rest:], mixed_future[..., rest:], k, frame_mask)], dim=-1
        )
        bands[k] = torch.cat([mixed_past, mixed_future], dim=-1)
    of_patches = torch.stack([bands[scale] for scale in scales])
    of_class = tokens[:, :, :1, : 2 * width].expand(len(scales), -1, -1, -1, -1)
    return torch.cat([of_class, of_patches], dim=3)


def _moved(values: Tensor, otherwise: Tensor, step: int, frame_mask: Tensor) -> Tensor:
    """Return the values of frame t + `step`, and `otherwise` where there is no such frame."""
    exists = from_frame(torch.ones_like(frame_mask), step, frame_mask)
    return torch.where(exists[:, :, None, None], from_frame(values, step, frame_mask), otherwise)


def parse_scales(text: str) -> tuple[int, ...]:
    """Read the scales, such as "1,2". Raises ValueError if they are no list of different whole numbers from 1."""
    parts = [part.strip() for part in text.split(",")]
    scales = tuple(int(part) for part in parts if part.isascii() and part.isdigit() and len(part) < 4)
    if len(scales) != len(parts) or len(set(scales)) != len(scales) or 0 in scales:
        raise ValueError(f"--scales {text!r} is no list of different whole numbers from 1, such as 1,2")
    return scales
