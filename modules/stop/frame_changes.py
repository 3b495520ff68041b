"""dh_i = h_i - h_{i-1}, the change of every patch from one frame to the next, which both stages of STOP read.

Shapes: B clips, T frames, P = G*G patches, D width, tokens in C sequences of L (`modules.stop.tokens`), K taps in time
(2 or 3), c channels.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.grad import conv2d_weight

from modules.kernels import changes as kernels
from modules.kernels import usable
from modules.stop.timing import FrameTiming
from modules.stop.tokens import Merging, patches_of, sequences


@dataclass(frozen=True)
class FrameChanges:
    """The changes at T+1 places: frame i less frame i-1 at place i, zeros at place 0 and place T, the clip's ends.

    [D] The zeros mean that a clip's first and last frames repeat beyond its ends. Frames of zeros there would make the
    ends of a still clip look like change. Changes to padding frames are zero as well.
    """

    values: Tensor  # [B,T+1,P,D]; `by_channel` in the layout of `modules.kernels.changes`
    patches: int  # P
    by_channel: bool = False

    def linear(self, weight: Tensor) -> Tensor:
        """Apply a Linear without bias, `[c,D]`, to the changes in the T-1 gaps: `[B,T-1,P,c]`."""
        if self.by_channel:
            return kernels.linear_of_changes(self.values, weight, self.patches)[:, 1:-1]
        return F.linear(self.values, weight)[:, 1:-1]

    def energy(self, kernel: Tensor) -> Tensor:
        """Convolve with depth-wise kernels `[D,1,K,3,3]` and return the mean square over channels.

        Returns:
            `[B,T+2-K,P]`, at least fp32. Item i sees the changes at places i to i+K-1.
        """
        if self.by_channel:
            return kernels.change_energy(self.values, kernel, self.patches)[0]
        clips, places = self.values.shape[:2]
        features = _DepthwiseConvolution.apply(self.values, kernel.to(self.values.dtype))
        dtype = torch.promote_types(features.dtype, torch.float32)
        energy = torch.linalg.vector_norm(features, dim=-1, dtype=dtype).square() / features.shape[-1]
        # All clips were convolved as one long one: the places at the border of two clips are cut off.
        beyond = kernel.shape[2] - 1
        return F.pad(energy, (0, 0, 0, beyond)).unflatten(0, (clips, places))[:, : places - beyond]


def frame_changes(x: Tensor, timing: FrameTiming, merging: Merging | None = None) -> FrameChanges:
    """Return the changes of LayerNormed sequences `[B,C,L,D]`."""
    gap_mask = timing.gap_mask if timing.padded else None
    patches = patches_of(x, timing.frames, merging)
    if usable(x):
        x = x if merging is None else sequences(x[:, :, 0], patches)
        by_channel = kernels.frame_changes(x, gap_mask, timing.frames)
        return FrameChanges(by_channel, patches.shape[2], by_channel=True)
    changes = patches[:, 1:] - patches[:, :-1]
    if gap_mask is not None:
        changes = changes * gap_mask[:, :, None, None]
    return FrameChanges(F.pad(changes, (0, 0, 0, 0, 1, 1)), patches.shape[2])


class _DepthwiseConvolution(torch.autograd.Function):
    """A depth-wise 3-D convolution of `[B,T+1,P,D]` with kernels `[D,1,K,3,3]`, all clips as one: `[B*(T+1)+1-K,P,D]`.

    The gradient of the kernels is that of one 2-D convolution for each tap in time. On a CPU, torch's own gradient of
    depth-wise 3-D convolutions takes 8 times as long: 123 instead of 14 ms for N_s and 145 instead of 17 ms for N_t,
    forward and backward, with 4 clips of 12 frames through ViT-B/32, fp32, one thread.
    """

    @staticmethod
    def forward(ctx: Any, changes: Tensor, kernel: Tensor) -> Tensor:  # type: ignore[override]
        ctx.save_for_backward(changes, kernel)
        return _tokens(F.conv3d(_volume(changes), kernel, padding=(0, 1, 1), groups=len(kernel)))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None]:  # type: ignore[override]
        changes, kernel = ctx.saved_tensors
        width, _, taps, *size = kernel.shape
        by_feature = _volume(gradient.contiguous())
        of_changes = of_kernel = None
        if ctx.needs_input_grad[0]:
            flipped = kernel.flip(2, 3, 4)
            of_volume = F.conv3d(by_feature, flipped, padding=(taps - 1, 1, 1), groups=width)
            of_changes = _tokens(of_volume).reshape(changes.shape)
        if ctx.needs_input_grad[1]:
            images, by_image = _volume(changes)[0].transpose(0, 1), by_feature[0].transpose(0, 1)
            of_taps = [
                conv2d_weight(images[tap:][: len(by_image)], (width, 1, *size), by_image, padding=1, groups=width)
                for tap in range(taps)
            ]
            of_kernel = torch.stack(of_taps, dim=2)
        return of_changes, of_kernel


def _volume(tokens: Tensor) -> Tensor:
    """Return `[...,P,D]` as `[1,D,n,G,G]`, a view with the channels last in memory."""
    grid = math.isqrt(tokens.shape[-2])
    # In this order; otherwise the stride of the first axis would not tell torch that the channels are last.
    return tokens.reshape(1, -1, grid, grid, tokens.shape[-1]).permute(0, 4, 1, 2, 3)


def _tokens(volume: Tensor) -> Tensor:
    """Return `[1,D,n,G,G]` as `[n,P,D]`."""
    return volume.squeeze(0).permute(1, 2, 3, 0).flatten(1, 2)
