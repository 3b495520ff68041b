"""Padding frames in DGL and in STOP's released code, whose loader has no padding: it repeats the last frame.

Shapes: B clips, T frames, P values of a frame (pixels or patches), D channels.
"""

import torch
from torch import Tensor


def hold_last_frame(tokens: Tensor, frame_mask: Tensor) -> Tensor:
    """Replace padding frames by the clip's last real frame: `[B,T,P,D]`, bool `[B,T]` -> `[B,T,P,D]`."""
    last = frame_mask.sum(dim=1) - 1
    held = tokens[torch.arange(len(tokens), device=tokens.device), last]
    return torch.where(frame_mask[:, :, None, None], tokens, held.unsqueeze(1))
