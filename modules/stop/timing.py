"""Which frames of a clip are real, and where in its clip a frame or a gap between two frames lies.

Shapes: B clips, T frames, T-1 gaps, P patches, c channels.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

WAVES = 4  # frequencies that encode a place in the clip


@dataclass(frozen=True)
class FrameTiming:
    """The real frames of a batch's clips and their places in time. All layers share it."""

    frame_mask: Tensor  # bool [B,T], padding last
    gap_mask: Tensor  # bool [B,T-1], gaps between two real frames
    frame_place: Tensor  # [B,T,2*WAVES], see `waves`
    gap_place: Tensor  # [B,T-1,2*WAVES]
    padded: bool  # False only where no frame is padding; masks are then skipped

    @staticmethod
    def of(frame_mask: Tensor, dtype: torch.dtype) -> "FrameTiming":
        """Build the timing from a bool `[B,T]`, padding last; places have type `dtype`."""
        gap_mask = frame_mask[:, 1:]
        places = waves(frame_mask, dtype), waves(gap_mask, dtype)
        return FrameTiming(frame_mask, gap_mask, *places, padded=not surely_whole(frame_mask))

    @property
    def frames(self) -> int:
        """T."""
        return self.frame_mask.shape[1]


def waves(real: Tensor, dtype: torch.dtype) -> Tensor:
    """Encode where each frame or gap lies in its clip: bool `[B,T]` -> `[B,T,2*WAVES]`.

    The i-th of a clip's n real frames or gaps gets the sines and cosines of k pi (i+1)/(n+1), k = 1..WAVES.
    """
    count = real.to(dtype)
    place = count.cumsum(dim=1) / (count.sum(dim=1, keepdim=True) + 1)
    angles = math.pi * place.unsqueeze(-1) * torch.arange(1, WAVES + 1, device=real.device)
    return torch.cat([angles.sin(), angles.cos()], dim=-1)


class PlaceGain(nn.Module):
    """Scales channels by where in its clip a frame or gap lies. P_s and P_t use it before their ReLU.

    [D] A channel can let something pass early in the clip and not late. The frozen blocks' attention knows no order of
    frames, so without this no prompt could say that one event came before another. It scales and adds nothing: zero
    stays zero. Gains start at about 1 +- 0.35. Larger ones would flip a channel's sign within a clip, and with it the
    direction of motion that the channel tells.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(channels, 2 * WAVES))
        nn.init.normal_(self.weight, std=0.5 * (2 * WAVES) ** -0.5)

    def forward(self, x: Tensor, place: Tensor) -> Tensor:
        """Scale `[B,T,P,c]` by the places of its frames or gaps, `[B,T,2*WAVES]`; returns `[B,T,P,c]`."""
        return x * (1 + F.linear(place, self.weight)).unsqueeze(2)


def surely_whole(frame_mask: Tensor) -> bool:
    """Return True if no frame is padding and the host can tell without waiting.

    On a GPU the host would have to wait for the answer, and a traced graph cannot depend on it: False there.
    """
    if frame_mask.device.type != "cpu" or torch.compiler.is_compiling():
        return False
    return bool(frame_mask.all())
