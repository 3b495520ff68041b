"""The dynamics nets N_s and N_t of STOP, light 3-D convolutions that look for change, and what both stages share.

Shapes: B clips, T frames, P = G*G patches, D width. Through both stages the tokens of a clip stay in the C sequences
that the blocks see, `[B,C,L,D]`: C = 1 of the whole clip, or C = T of a frame each. A sequence is a class token and the
patches of its frames, L = 1 + P*T/C. To take the patches out and put them back would cost more than what is done to
them.

Source: Liu et al., CVPR 2025 (arXiv 2503.15973), the 3-D convolution of each prompting stage. [D] marks a decision of
ours where the paper is silent.
"""

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.grad import conv2d_weight

from modules.precision import compute_dtype

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


def changes(normal: Tensor, frame_mask: Tensor) -> Tensor:
    """What every frame differs by from the one before it, zero where there is none.

    Args:
        normal: LayerNormed sequences `[B,C,L,D]`.
        frame_mask: bool `[B,T]`, padding last.

    Returns:
        `[B,T+1,P,D]` in the precision of matrix products: place i is frame i less frame i-1. Zero are the places before
        the first frame, behind the last, and of padding frames: as if the ends of a clip were repeated for ever. [D]
        With frames of zeros beyond the ends, those of a still clip would look as if something changed.
    """
    real_gap, dtype = frame_mask[:, 1:], compute_dtype(normal)
    if torch.compiler.is_compiling():  # which joins the passes itself, and writes into no slices
        patches = patches_of(normal, frame_mask.shape[1])
        between = (patches[:, 1:] - patches[:, :-1]) * real_gap[:, :, None, None]
        return F.pad(between, (0, 0, 0, 0, 1, 1)).to(dtype)
    return _Changes.apply(normal, real_gap, dtype)


class _Changes(torch.autograd.Function):
    """`changes`, written at once into its place: torch's own way back through slices and padding takes twice the
    passes over memory."""

    @staticmethod
    def forward(ctx, normal: Tensor, real_gap: Tensor, dtype: torch.dtype) -> Tensor:  # type: ignore[override]
        ctx.save_for_backward(real_gap)
        ctx.dtype, ctx.shape = normal.dtype, normal.shape
        tokens = patches_of(normal, real_gap.shape[1] + 1)
        batch, frames, patches, width = tokens.shape
        found = torch.empty(batch, frames + 1, patches, width, dtype=dtype, device=normal.device)
        found[:, 0] = 0
        found[:, -1] = 0
        torch.sub(tokens[:, 1:], tokens[:, :-1], out=found[:, 1:-1])
        found[:, 1:-1] *= real_gap[:, :, None, None]
        return found

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[override]
        (real_gap,) = ctx.saved_tensors
        of_gaps, real = gradient[:, 1:-1].to(ctx.dtype), real_gap[:, :, None, None].to(ctx.dtype)
        back = torch.empty(ctx.shape, dtype=ctx.dtype, device=gradient.device)
        back[:, :, 0] = 0
        of_tokens = patches_of(back, real_gap.shape[1] + 1)
        of_tokens[:, 0] = 0
        torch.mul(of_gaps, real, out=of_tokens[:, 1:])
        of_tokens[:, :-1].addcmul_(of_gaps, real, value=-1)
        return back, None, None


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

    def forward(self, changes: Tensor) -> Tensor:
        """What `changes` gave, `[B,T+1,P,D]` -> the mean over channels of h~^2, all that either stage asks of h~, at
        least fp32: `[B,T,P]` of the frames for N_s, `[B,T-1,P]` of the gaps between them for N_t."""
        kernel = self.conv.weight[:, 0]
        if self.sees == "tokens":
            # Taps a, b, c that sum to zero are -a and c on the changes before and after: zero without rounding.
            kernel = kernel - kernel.mean(dim=1, keepdim=True)
            kernel = torch.stack([-kernel[:, 0], kernel[:, 2]], dim=1)
        batch, places, _, width = changes.shape
        # All clips as one long one: what looks across the border of two is cut off here.
        volume = changes.reshape(1, batch * places, self.grid, self.grid, width).permute(0, 4, 1, 2, 3)
        energy = _ConvolvedEnergy.apply(volume, kernel.unsqueeze(1).to(volume.dtype))
        taps = kernel.shape[1]
        energy = F.pad(energy.flatten(1), (0, 0, 0, taps - 1)).unflatten(0, (batch, places))
        return energy[:, : places - taps + 1]


class _ConvolvedEnergy(torch.autograd.Function):
    """The mean over channels of the square of a depth-wise convolution: `[1,D,N,G,G]` with the channels last in memory,
    as tokens are, and kernels `[D,1,k,3,3]` -> `[N-k+1,G,G]`.

    Backward, the input's gradient is a convolution by the mirrored kernel, and the kernel's that of a 2-D convolution
    for each tap in time: on a CPU torch's own way back for depth-wise 3-D kernels takes several times as long
    (docs/performance.md).
    """

    @staticmethod
    def forward(ctx, volume: Tensor, kernel: Tensor) -> Tensor:  # type: ignore[override]
        features = F.conv3d(volume, kernel, padding=(0, 1, 1), groups=len(kernel))
        ctx.save_for_backward(volume, kernel, features)
        dtype = torch.promote_types(features.dtype, torch.float32)
        return torch.linalg.vector_norm(features[0], dim=0, dtype=dtype).square() / len(kernel)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor | None, Tensor | None]:  # type: ignore[override]
        volume, kernel, features = ctx.saved_tensors
        width, _, taps, *size = kernel.shape
        of_features = (features * (2 / width * gradient)).to(features.dtype)  # in this order, or fp16 loses small ones
        of_volume = of_kernel = None
        if ctx.needs_input_grad[0]:
            of_volume = F.conv3d(of_features, kernel.flip(2, 3, 4), padding=(taps - 1, 1, 1), groups=width)
        if ctx.needs_input_grad[1]:
            images, of_images = volume[0].transpose(0, 1), of_features[0].transpose(0, 1)
            of_kernel = torch.stack(
                [
                    conv2d_weight(images[tap:][: len(of_images)], (width, 1, *size), of_images, padding=1, groups=width)
                    for tap in range(taps)
                ],
                dim=2,
            )
        return of_volume, of_kernel
