"""The dynamics nets N_s and N_t of STOP, light 3-D convolutions that look for change, and what both stages share.

Shapes: B clips, T frames, P = G*G patches, D width, c channels of a bottleneck. Through both stages the tokens of a
clip stay in the C sequences that the blocks see, `[B,C,L,D]`: C = 1 of the whole clip, or C = T of a frame each. A
sequence is a class token and the patches of its frames, L = 1 + P*T/C. To take the patches out and put them back would
cost more than what is done to them.

Source: Liu et al., CVPR 2025 (arXiv 2503.15973), the 3-D convolution of each prompting stage. [D] marks a decision of
ours where the paper is silent.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from modules.precision import compute_dtype

WAVES = 4  # frequencies that say where in the clip something lies


def layer_norm(tokens: Tensor) -> Tensor:
    """LayerNorm without parameters over the last axis, in the precision of matrix products: each token gets mean 0 and
    mean square 1.

    [D] Both dynamics nets see normalised tokens, so that a change means the same in every layer of every CLIP. A
    difference is taken after normalising: to normalise the difference itself would erase how large it is.
    """
    width = tokens.shape[-1]
    # A gain of ones, since on CPUs torch takes three times as long without one.
    return F.layer_norm(tokens, (width,), tokens.new_ones(width)).to(compute_dtype(tokens))


def at_least_fp32(x: Tensor) -> Tensor:
    """Half precision becomes fp32, for sums of squares and for shares; wider types stay."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def sequences(class_tokens: Tensor, patches: Tensor) -> Tensor:
    """Class tokens `[B,C,D]` and patches `[B,T,P,D]` -> `[B,C,L,D]`."""
    count = class_tokens.shape[1]
    by_sequence = patches.unflatten(1, (count, -1)).flatten(2, 3)
    return torch.cat([class_tokens.unsqueeze(2), by_sequence], dim=2)


def patches_of(x: Tensor, frames: int) -> Tensor:
    """Sequences `[B,C,L,D]` of T frames -> their patches `[B,T,P,D]`, a view."""
    return x[:, :, 1:].unflatten(2, (frames // x.shape[1], -1)).flatten(1, 2)


def hold_last_frame(tokens: Tensor, frame_mask: Tensor) -> Tensor:
    """Put the last real frame in the place of the padding frames: `[B,T,P,D]`, bool `[B,T]` -> `[B,T,P,D]`."""
    last = frame_mask.sum(dim=1) - 1
    held = tokens[torch.arange(len(tokens), device=tokens.device), last]
    return torch.where(frame_mask[:, :, None, None], tokens, held.unsqueeze(1))


@dataclass(frozen=True)
class FrameTiming:
    """Which frames of a batch's clips are real, and where in its clip each lies: the same for all layers."""

    frame_mask: Tensor  # bool [B,T], padding last
    gap_mask: Tensor  # bool [B,T-1], gaps between two real frames
    frame_place: Tensor  # [B,T,2*WAVES], see `waves`
    gap_place: Tensor  # [B,T-1,2*WAVES]
    padded: bool  # false where there is surely no padding, and masks need not be applied

    @staticmethod
    def of(frame_mask: Tensor, dtype: torch.dtype) -> "FrameTiming":
        """From a bool `[B,T]`, padding last; places come in `dtype`."""
        gap_mask = frame_mask[:, 1:]
        places = waves(frame_mask, dtype), waves(gap_mask, dtype)
        return FrameTiming(frame_mask, gap_mask, *places, padded=not surely_whole(frame_mask))

    @property
    def frames(self) -> int:
        """T."""
        return self.frame_mask.shape[1]


def surely_whole(frame_mask: Tensor) -> bool:
    """Whether no frame is padding, where that can be told: on a GPU the host would have to wait for the answer, and a
    traced graph cannot depend on it."""
    if frame_mask.device.type != "cpu" or torch.compiler.is_compiling():
        return False
    return bool(frame_mask.all())


def waves(real: Tensor, dtype: torch.dtype) -> Tensor:
    """Where frames or gaps lie in their clip, bool `[B,T]` -> `[B,T,2*WAVES]`: sines and cosines of k pi (i+1)/(n+1),
    k = 1..WAVES, for the clip's i-th of n real ones."""
    count = real.to(dtype)
    place = count.cumsum(dim=1) / (count.sum(dim=1, keepdim=True) + 1)
    angles = math.pi * place.unsqueeze(-1) * torch.arange(1, WAVES + 1, device=real.device)
    return torch.cat([angles.sin(), angles.cos()], dim=-1)


class PlaceGain(nn.Module):
    """Scales channels by where in its clip a frame, or a gap between frames, lies; for P_s and P_t, before their ReLU.

    [D] A channel can so let something pass early and not late. The frozen blocks' attention knows no order of frames;
    without this no prompt could say that one event came before another. It scales and adds nothing, so that nothing
    stays nothing. At first the gains are about 1 +- 0.35: larger ones turn a channel's sign round within a clip, and
    with it the direction of a motion that it tells.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(channels, 2 * WAVES))
        nn.init.normal_(self.weight, std=0.5 * (2 * WAVES) ** -0.5)

    def forward(self, x: Tensor, place: Tensor) -> Tensor:
        """`[B,T,P,c]` and the places of its frames or gaps, `[B,T,2*WAVES]` -> `[B,T,P,c]`."""
        return x * (1 + F.linear(place, self.weight)).unsqueeze(2)


class DynamicsNet(nn.Module):
    """A depth-wise 3x3x3 convolution over (T, G, G) without bias that keeps the D channels apart: N_s and N_t.

    `modules.stop.frame_changes` applies it. [D] The paper says "a light 3-D convolution"; depth-wise is the lightest.
    Both nets give
    exactly zero where nothing changes, however they are trained. N_t sees changes and needs no more than to have no
    bias. N_s sees tokens (`sees="tokens"`): its kernels' means over the three taps in time are taken out, else whatever
    stands still soon outweighs what moves (measured: a fifth instead of four fifths of M on moving patches after
    training). Both start from what they are there to find: N_s from the difference of the two neighbour frames, N_t
    from the identity.
    """

    def __init__(self, width: int, *, sees: Literal["tokens", "changes"]) -> None:
        super().__init__()
        self.sees = sees
        self.conv = nn.Conv3d(width, width, kernel_size=3, padding=(0, 1, 1), groups=width, bias=False)
        with torch.no_grad():
            self.conv.weight.zero_()
            if sees == "tokens":
                self.conv.weight[:, 0, 0, 1, 1] = -0.5
                self.conv.weight[:, 0, 2, 1, 1] = 0.5
            else:
                self.conv.weight[:, 0, 1, 1, 1] = 1.0
