"""The layout of STOP's tokens and what both prompting stages do to them.

Shapes: B clips, T frames, P = G*G patches, D width, c channels. Tokens stay in the C sequences of a clip that the
blocks read, `[B,C,L,D]`, through both stages: C = 1 sequence of the whole clip, or C = T sequences of one frame each. A
sequence is a class token followed by the patches of its frames, L = 1 + P*T/C. Taking the patches out and putting them
back would cost more than the stages' own work on them.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from modules.precision import compute_dtype


def sequences(class_tokens: Tensor, patches: Tensor) -> Tensor:
    """Join class tokens `[B,C,D]` and patches `[B,T,P,D]` to sequences `[B,C,L,D]`."""
    count = class_tokens.shape[1]
    by_sequence = patches.unflatten(1, (count, -1)).flatten(2, 3)
    return torch.cat([class_tokens.unsqueeze(2), by_sequence], dim=2)


def patches_of(x: Tensor, frames: int) -> Tensor:
    """Return the patches `[B,T,P,D]` of sequences `[B,C,L,D]` of T frames, as a view."""
    return x[:, :, 1:].unflatten(2, (frames // x.shape[1], -1)).flatten(1, 2)


def add_to_patches(x: Tensor, patches: Tensor, added: Tensor) -> Tensor:
    """Add to n patches of every frame.

    Args:
        x: sequences `[B,C,L,D]`.
        patches: int64 `[B,T,n]`, which patches.
        added: `[B,T,n,D]`, one row for each of them.

    Returns:
        `[B,C,L,D]`.
    """
    count, frames = x.shape[1], patches.shape[1]
    in_sequence = torch.arange(frames, device=x.device) % (frames // count)  # each frame's number in its sequence
    first = 1 + (x.shape[2] - 1) // (frames // count) * in_sequence  # the place of its first patch there
    places = (first[:, None] + patches).unflatten(1, (count, -1)).flatten(2)
    added = added.unflatten(1, (count, -1)).flatten(2, 3)
    return x.scatter_add(2, places.unsqueeze(-1).expand_as(added), added)


def layer_norm(tokens: Tensor) -> Tensor:
    """Apply LayerNorm without parameters over the last axis: each token gets mean 0 and mean square 1.

    The result has the precision of matrix products. [D] Both dynamics nets see normalised tokens, so that a change
    means the same in every layer of every CLIP. We normalise before the difference: normalising the difference itself
    would erase its size.
    """
    width = tokens.shape[-1]
    # The gain of ones changes nothing, but without one torch takes three times as long on a CPU.
    return F.layer_norm(tokens, (width,), tokens.new_ones(width)).to(compute_dtype(tokens))


def at_least_fp32(x: Tensor) -> Tensor:
    """Cast half precision to fp32, for sums of squares and for shares; wider types stay."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def convolve_frames(conv: nn.Conv2d, tokens: Tensor, grid: int) -> Tensor:
    """Apply a 1x3x3 convolution, that is a 2-D one to every frame: `[B,T,P,c]` -> `[B,T,P,c']`."""
    images = tokens.flatten(0, 1).unflatten(1, (grid, grid)).permute(0, 3, 1, 2)
    return conv(images).permute(0, 2, 3, 1).flatten(1, 2).unflatten(0, tokens.shape[:2])
