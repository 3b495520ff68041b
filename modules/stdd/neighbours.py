"""Values of earlier and later frames of a clip.

Shapes: B clips, T frames.
"""

import torch
from torch import Tensor


def from_frame(x: Tensor, step: int, frame_mask: Tensor) -> Tensor:
    """Return the value of frame t + `step` at frame t, and zero where the clip has no such frame.

    A clip ends with its last real frame, so that padding has the same effect as no frame at all.

    Args:
        x: `[B,T,...]` of any dtype; false counts as the zero of bool.
        step: how many frames later; earlier if negative.
        frame_mask: bool `[B,T]`, true where the frame is real.
    """
    frames = x.shape[1]
    if abs(step) >= frames:
        return torch.zeros_like(x)
    real = frame_mask.reshape(*frame_mask.shape, *(1,) * (x.dim() - 2))
    known = (x & real) if x.dtype == torch.bool else x.masked_fill(~real, 0)
    outside = torch.zeros_like(x[:, : abs(step)])
    if step > 0:
        return torch.cat([known[:, step:], outside], dim=1)
    return torch.cat([outside, known[:, : frames + step]], dim=1)
