"""The precision of matrix products, which autocast may set, and frozen weights made ready for it once."""

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor


def compute_dtype(x: Tensor) -> torch.dtype:
    """What a matrix product of x is computed in: autocast's precision where it is on, else x's own."""
    device = x.device.type
    # Some versions of torch.compile cannot ask the first; what they compile for has autocast.
    available = torch.compiler.is_compiling() or torch.amp.is_autocast_available(device)
    if available and torch.is_autocast_enabled(device):
        return torch.get_autocast_dtype(device)
    return x.dtype


def pad_for_tensor_cores(x: Tensor, dim: int) -> Tensor:
    """x with zeros behind up to a multiple of eight along a dimension, counted from the last, -1, where x is on a GPU:
    it has fast products in half precision for those alone."""
    lacking = -x.shape[dim] % 8 if x.is_cuda else 0
    return F.pad(x, (0, 0) * (-1 - dim) + (0, lacking)) if lacking else x


class FrozenWeightCache:
    """What is made of weights, in the precision of matrix products; of frozen ones once.

    autocast keeps its casts of trained weights for the length of a step, and casts frozen ones anew at every use. Here
    what was made of frozen weights lasts until one of them is written to or moved, or another precision is asked for.
    Of weights in training it is made at every use, with its gradient.
    """

    def __init__(self, make: Callable[..., Tensor] | None = None) -> None:
        self.make = make
        self._made: Tensor | None = None
        self._made_of: tuple[object, ...] = ()
        self._weights: tuple[Tensor, ...] = ()  # kept, so that no other tensor can take their place in memory

    def __call__(self, weight: Tensor, *others: Tensor) -> Tensor:
        """`make(weight, *others)`, or the weight; fp32 weights in training stay fp32, and autocast casts them."""
        weights = (weight, *others)
        if torch.compiler.is_compiling() or any(part.requires_grad for part in weights):
            return weight if self.make is None else self.make(*weights)
        dtype = compute_dtype(weight)
        if self.make is None and dtype == weight.dtype:
            return weight
        made_of = (dtype, *((part.data_ptr(), part._version, part.device, part.dtype) for part in weights))
        if self._made is None or self._made_of != made_of:
            with torch.no_grad():
                made = weight if self.make is None else self.make(*weights)
                self._made, self._made_of, self._weights = made.to(dtype), made_of, weights
        return self._made


def times(factor: float) -> FrozenWeightCache:
    """A weight times a factor."""
    return FrozenWeightCache() if factor == 1 else FrozenWeightCache(partial(torch.mul, other=factor))
