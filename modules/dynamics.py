"""The dynamics nets N_s and N_t of STOP, light 3-D convolutions that look for change, and what both stages share.

Shapes: B clips, T frames, P = G*G patches, D width. Tokens are channel-last, `[B,T,P,D]`.

Source: Liu et al., CVPR 2025 (arXiv 2503.15973), the 3-D convolution of each prompting stage. [D] marks a decision of
ours where the paper is silent.
"""

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.grad import conv3d_weight

WAVES = 4  # frequencies that say where in the clip something lies


def layer_norm(tokens: Tensor) -> Tensor:
    """LayerNorm without parameters over the last axis: each token gets mean 0 and mean square 1.

    [D] Both dynamics nets see normalised tokens, so that a change means the same in every layer of every CLIP. A
    difference is taken after normalising: to normalise the difference itself would erase how large it is.
    """
    return F.layer_norm(tokens, tokens.shape[-1:])


def at_least_fp32(x: Tensor) -> Tensor:
    """Half precision becomes fp32, for sums of squares and for shares; wider types stay."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def hold_last_frame(tokens: Tensor, frame_mask: Tensor) -> Tensor:
    """Put the last real frame in the place of the padding frames: `[B,T,P,D]`, bool `[B,T]` -> `[B,T,P,D]`."""
    last = frame_mask.sum(dim=1) - 1
    held = tokens[torch.arange(len(tokens), device=tokens.device), last]
    return torch.where(frame_mask[:, :, None, None], tokens, held.unsqueeze(1))


def repeat_ends(tokens: Tensor) -> Tensor:
    """`[B,T,...]` -> `[B,T+2,...]`: the first and the last frame once more, as neighbours of themselves.

    [D] With frames of zeros there instead, the ends of a still clip would look as if something changed.
    """
    return torch.cat([tokens[:, :1], tokens, tokens[:, -1:]], dim=1)


class PlaceGain(nn.Module):
    """Scales channels by where in its clip a frame, or a gap between frames, lies; for P_s and P_t, before their ReLU.

    [D] A channel can so let something pass early and not late. The frozen blocks' attention knows no order of frames;
    without this no prompt could say that one event came before another. It scales and adds nothing, so that nothing
    stays nothing. The place is given as sines and cosines of k pi (i+1)/(n+1), k = 1..WAVES, for the clip's i-th of n.
    At first the gains are about 1 +- 0.35: larger ones turn a channel's sign round within a clip, and with it the
    direction of a motion that it tells.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(channels, 2 * WAVES))
        nn.init.normal_(self.weight, std=0.5 * (2 * WAVES) ** -0.5)

    def forward(self, x: Tensor, real: Tensor) -> Tensor:
        """`[B,T,P,c]` and bool `[B,T]`, padding last, which does not count -> `[B,T,P,c]`."""
        count = at_least_fp32(real.to(x.dtype))
        place = count.cumsum(dim=1) / (count.sum(dim=1, keepdim=True) + 1)
        angles = math.pi * place.unsqueeze(-1) * torch.arange(1, WAVES + 1, device=x.device)
        waves = torch.cat([angles.sin(), angles.cos()], dim=-1).to(x.dtype)
        return x * (1 + F.linear(waves, self.weight)).unsqueeze(2)


class DynamicsNet(nn.Module):
    """A depth-wise 3x3x3 convolution over (T, G, G) without bias that keeps the D channels apart: N_s and N_t.

    [D] The paper says "a light 3-D convolution"; depth-wise is the lightest. Both nets give exactly zero where nothing
    changes, however they are trained. N_t sees changes and needs no more than to have no bias. N_s sees tokens
    (`sees="tokens"`): its kernels' means over the three taps in time are taken out, else whatever stands still soon
    outweighs what moves (measured: a fifth instead of four fifths of M on moving patches after training). Both start
    from what they are there to find: N_s from the difference of the two neighbour frames, N_t from the identity.
    """

    def __init__(self, width: int, grid: int, *, sees: Literal["tokens", "changes"]) -> None:
        super().__init__()
        self.grid, self.sees = grid, sees
        self.conv = nn.Conv3d(width, width, kernel_size=3, padding=(0, 1, 1), groups=width, bias=False)
        with torch.no_grad():
            self.conv.weight.zero_()
            if sees == "tokens":
                self.conv.weight[:, 0, 0, 1, 1] = -0.5
                self.conv.weight[:, 0, 2, 1, 1] = 0.5
            else:
                self.conv.weight[:, 0, 1, 1, 1] = 1.0

    def forward(self, tokens: Tensor) -> Tensor:
        """`[B,T+2,P,D]`, a neighbour at either end included, -> `[B,T,P,D]`."""
        kernel = self.conv.weight
        if self.sees == "tokens":
            # Taps a, b, c that sum to zero are -a and c on the changes before and after: zero without rounding.
            kernel = kernel - kernel.mean(dim=2, keepdim=True)
            kernel = torch.stack([-kernel[:, :, 0], kernel[:, :, 2]], dim=2)
            tokens = tokens[:, 1:] - tokens[:, :-1]
        volume = tokens.unflatten(2, (self.grid, self.grid)).permute(0, 4, 1, 2, 3)
        return _DepthwiseConv3d.apply(volume, kernel).permute(0, 2, 3, 4, 1).flatten(2, 3)


class _DepthwiseConv3d(torch.autograd.Function):
    """The convolution of `DynamicsNet`, with its input gradient as a convolution by the mirrored kernel.

    That is what the input gradient is; torch's own backward for depth-wise 3-D kernels takes about 20 times as long on
    a CPU.
    """

    @staticmethod
    def forward(ctx, volume: Tensor, weight: Tensor) -> Tensor:  # type: ignore[override]
        ctx.save_for_backward(volume, weight)
        return F.conv3d(volume, weight, padding=(0, 1, 1), groups=len(weight))

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor | None, Tensor | None]:  # type: ignore[override]
        volume, weight = ctx.saved_tensors
        input_gradient = weight_gradient = None
        # Under autocast the gradient comes in half precision and backward runs outside of autocast.
        if ctx.needs_input_grad[0]:
            mirrored = weight.flip(2, 3, 4).to(gradient.dtype)
            padding = (weight.shape[2] - 1, 1, 1)
            input_gradient = F.conv3d(gradient, mirrored, padding=padding, groups=len(weight)).to(volume.dtype)
        if ctx.needs_input_grad[1]:
            weight_gradient = conv3d_weight(
                volume.to(gradient.dtype), weight.shape, gradient, padding=(0, 1, 1), groups=len(weight)
            ).to(weight.dtype)
        return input_gradient, weight_gradient
