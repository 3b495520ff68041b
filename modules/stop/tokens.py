"""The layout of STOP's tokens and what both prompting stages do to them.

Shapes: B clips, T frames, P = G*G patches, D width, c channels. Tokens stay in the C sequences of a clip that the
blocks read, `[B,C,L,D]`, through both stages: C = 1 sequence of the whole clip, or C = T sequences of one frame each. A
sequence is a class token followed by the patches of its frames, L = 1 + P*T/C. Taking the patches out and putting them
back would cost more than the stages' own work on them.

Where patches have merged (`modules.stop.merging`), a frame has S < P tokens, each the mean of one or more patches, and
L = 1 + S*T/C. The stages think in patches all the same: each patch has the value of its token.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from modules.precision import compute_dtype


def sequences(class_tokens: Tensor, patches: Tensor) -> Tensor:
    """Join class tokens `[B,C,D]` and patches `[B,T,P,D]` to sequences `[B,C,L,D]`."""
    count = class_tokens.shape[1]
    by_sequence = patches.unflatten(1, (count, -1)).flatten(2, 3)
    return torch.cat([class_tokens.unsqueeze(2), by_sequence], dim=2)


@dataclass(frozen=True)
class Merging:
    """Which token of its frame each patch is part of.

    Products with these matrices copy and average. On a GPU, sums scattered by index would have no fixed order.
    """

    place: Tensor  # int64 [B,T,P], in 0..S-1
    size: Tensor  # [B,T,S], patches of each token, at least 1
    membership: Tensor  # [B,T,P,S], 1 where the patch is part of the token, else 0
    shares: Tensor  # [B,T,P,S], the membership divided by the token's size: the weight of a patch in its token

    @staticmethod
    def of(place: Tensor, tokens: int, dtype: torch.dtype) -> "Merging":
        """Build it from the places int64 `[B,T,P]` of patches among S = `tokens`."""
        membership = torch.zeros(*place.shape, tokens, dtype=dtype, device=place.device)
        membership = membership.scatter(3, place.unsqueeze(3), 1.0)
        size = membership.sum(dim=2)
        return Merging(place, size, membership, membership / size.unsqueeze(2))

    def spread(self, tokens: Tensor) -> Tensor:
        """Give each patch the value of its token: `[B,T,S,any]` -> `[B,T,P,any]`."""
        return self.membership.to(tokens.dtype) @ tokens


def patches_of(x: Tensor, frames: int, merging: Merging | None = None) -> Tensor:
    """Return the patches `[B,T,P,D]` of sequences `[B,C,L,D]` of T frames, as a view unless some have merged."""
    tokens = x[:, :, 1:].unflatten(2, (frames // x.shape[1], -1)).flatten(1, 2)
    return tokens if merging is None else merging.spread(tokens)


def add_to_patches(x: Tensor, patches: Tensor, added: Tensor, merging: Merging | None = None) -> Tensor:
    """Add to n patches of every frame. What is added to a patch counts in its token by the patch's share.

    Args:
        x: sequences `[B,C,L,D]`.
        patches: int64 `[B,T,n]`, which patches.
        added: `[B,T,n,D]`, one row for each of them.
        merging: which patches have merged, if any.

    Returns:
        `[B,C,L,D]`.
    """
    count, frames = x.shape[1], patches.shape[1]
    if merging is not None:
        index = patches.unsqueeze(3).expand(-1, -1, -1, merging.size.shape[2])
        to_tokens = merging.shares.gather(2, index).transpose(2, 3).to(added.dtype) @ added  # [B,T,S,D]
        return x + sequences(torch.zeros_like(x[:, :, 0]), to_tokens.to(x.dtype))
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
