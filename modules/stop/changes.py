"""What frames differ by, by torch's operators: differences, Linears and depth-wise convolutions of them, and the way
back. `modules.kernels.changes` has functions of the same names for GPUs; `modules.stop.frame_changes` calls these or
those.

Shapes: B clips, T frames, P = G*G patches, D width, C sequences of L tokens a clip (`modules.stop.dynamics`), K taps
in time
(2 or 3), N = T+2-K places of features, c channels. Changes lie `[B,T+1,P,D]`; the feature at place i of a clip sees its
changes i to i+K-1. P, which some are told, can be read off these changes; the kernels' are filled up behind it.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.grad import conv2d_weight

from modules.stop.dynamics import patches_of


def take_changes(tokens: Tensor, gap_mask: Tensor | None, frames: int) -> Tensor:
    """The changes `[B,T+1,P,D]` of sequences `[B,C,L,D]` of T frames; those of gaps that bool `[B,T-1]` leaves out are
    zero. Without gradient."""
    patches = patches_of(tokens, frames)
    if torch.compiler.is_compiling():  # which joins the passes itself, and writes into no slices
        between = patches[:, 1:] - patches[:, :-1]
        if gap_mask is not None:
            between = between * gap_mask[:, :, None, None]
        return F.pad(between, (0, 0, 0, 0, 1, 1))
    batch, _, count, width = patches.shape
    changes = patches.new_empty(batch, frames + 1, count, width)
    changes[:, ::frames].zero_()
    between = changes[:, 1:-1]
    torch.sub(patches[:, 1:], patches[:, :-1], out=between)
    if gap_mask is not None:
        between *= gap_mask[:, :, None, None]
    return changes


def take_changes_backward(of_changes: Tensor, gap_mask: Tensor | None, shape: torch.Size) -> Tensor:
    """From the gradient of the changes, which is overwritten, that of the sequences of this shape."""
    frames = of_changes.shape[1] - 1
    of_changes[:, ::frames].zero_()
    if gap_mask is not None:
        of_changes[:, 1:-1] *= gap_mask[:, :, None, None]
    if torch.compiler.is_compiling():
        of_patches = (of_changes[:, :-1] - of_changes[:, 1:]).unflatten(1, (shape[1], -1)).flatten(2, 3)
        return F.pad(of_patches, (0, 0, 1, 0))
    of_tokens = of_changes.new_empty(shape)
    of_tokens[:, :, 0].zero_()
    torch.sub(of_changes[:, :-1], of_changes[:, 1:], out=patches_of(of_tokens, frames))
    return of_tokens


def linear_of_changes(changes: Tensor, weight: Tensor, patches: int) -> Tensor:
    """A Linear without bias, `[c,D]`, of changes: `[B,T+1,P,c]`."""
    return F.linear(changes, weight)


def change_energy(changes: Tensor, kernel: Tensor, patches: int) -> tuple[Tensor, Tensor]:
    """Convolve changes with depth-wise kernels `[D,1,K,3,3]`.

    Returns:
        The energy `[B,N,P]`, at least fp32, the mean square over channels of the features; and these, `[1,D,n,G,G]`.
    """
    taps, places = kernel.shape[2], changes.shape[1]
    features = F.conv3d(_volume(changes), kernel, padding=(0, 1, 1), groups=len(kernel))
    dtype = torch.promote_types(features.dtype, torch.float32)
    energy = torch.linalg.vector_norm(features[0], dim=0, dtype=dtype).square() / len(kernel)
    # Of the one long clip, what lies across the border of two is cut off.
    energy = F.pad(energy.flatten(1), (0, 0, 0, taps - 1)).unflatten(0, changes.shape[:2])
    return energy[:, : places - taps + 1], features


def change_energy_backward(
    of_energy: Tensor, features: Tensor, changes: Tensor, kernel: Tensor, wanted: bool
) -> tuple[Tensor, Tensor | None]:
    """From the gradient of the energy, that of the kernels, and that of the changes if it is wanted.

    That of a kernel is the one of a 2-D convolution for each tap in time: on a CPU torch's own way back for
    depth-wise 3-D kernels takes several times as long (docs/performance.md).
    """
    width, _, taps, *size = kernel.shape
    padded = F.pad(of_energy, (0, 0, 0, taps - 1)).flatten(0, 1)[: features.shape[2]].view_as(features[0, 0])
    of_features = (features * (2 / width * padded)).to(features.dtype)  # in this order, or fp16 loses small ones
    of_changes = None
    if wanted:
        of_volume = F.conv3d(of_features, kernel.flip(2, 3, 4), padding=(taps - 1, 1, 1), groups=width)
        of_changes = of_volume[0].permute(1, 2, 3, 0).contiguous().view_as(changes)
    images, of_images = _volume(changes)[0].transpose(0, 1), of_features[0].transpose(0, 1)
    of_taps = [
        conv2d_weight(images[tap:][: len(of_images)], (width, 1, *size), of_images, padding=1, groups=width)
        for tap in range(taps)
    ]
    return torch.stack(of_taps, dim=2), of_changes


def _volume(changes: Tensor) -> Tensor:
    """`[B,T+1,P,D]` -> `[1,D,B*(T+1),G,G]`, a view with the channels last in memory; all clips as one long one."""
    grid = math.isqrt(changes.shape[2])
    # In this order, or the stride of the first axis would not be the one that tells torch of channels last.
    return changes.reshape(1, -1, grid, grid, changes.shape[-1]).permute(0, 4, 1, 2, 3)
