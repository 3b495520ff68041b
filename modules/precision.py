"""The precision of matrix products, which autocast may set, and a cache of tensors derived from frozen weights."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor


def compute_dtype(x: Tensor) -> torch.dtype:
    """Return the precision of a matrix product of x: autocast's if it is on, else that of x."""
    device = x.device.type
    # Some versions of torch.compile cannot trace the question; the devices they compile for have autocast.
    available = torch.compiler.is_compiling() or torch.amp.is_autocast_available(device)
    if available and torch.is_autocast_enabled(device):
        return torch.get_autocast_dtype(device)
    return x.dtype


def without_autocast(device: str) -> AbstractContextManager[object]:
    """Return a context without autocast, on any type of device, such as "cuda" or "meta"."""
    available = torch.compiler.is_compiling() or torch.amp.is_autocast_available(device)
    return torch.autocast(device, enabled=False) if available else nullcontext()


def pad_for_tensor_cores(x: Tensor, dim: int) -> Tensor:
    """Pad x on a GPU with zeros at the end of a dimension (-1 is the last) up to a multiple of eight.

    GPUs have fast products in half precision only for such sizes.
    """
    lacking = -x.shape[dim] % 8 if x.is_cuda else 0
    return F.pad(x, (0, 0) * (-1 - dim) + (0, lacking)) if lacking else x


class FrozenWeightCache:
    """Caches a tensor derived from frozen weights, in the precision of matrix products.

    autocast keeps its casts of trained weights for a step, but casts frozen ones at every use. This cache lasts until
    one of the weights is written to or moved, or another precision is needed. If a weight is in training, the tensor
    is computed at every use, with its gradient. In bf16 on one CPU core, a frozen block of width 768 on four frames
    takes 9.6 ms with the cache and 17.2 ms without.
    """

    def __init__(self, make: Callable[..., Tensor] | None = None) -> None:
        self.make = make
        self._made: Tensor | None = None
        self._made_of: tuple[object, ...] = ()
        self._weights: tuple[Tensor, ...] = ()  # kept, so that no other tensor can take their place in memory

    def __call__(self, weight: Tensor, *others: Tensor) -> Tensor:
        """Return `make(weight, *others)`, or the weight if there is no `make`; autocast casts weights in training."""
        weights = (weight, *others)
        passing = torch.compiler.is_compiling() or any(part.requires_grad or part.is_inference() for part in weights)
        if passing:  # a tensor of torch.inference_mode has no version to tell whether it was written to
            return weight if self.make is None else self.make(*weights)
        dtype = compute_dtype(weight)
        if self.make is None and dtype == weight.dtype:
            return weight
        made_of = (dtype, *((part.data_ptr(), part._version, part.device, part.dtype) for part in weights))
        if self._made is None or self._made_of != made_of:
            with torch.inference_mode(False), torch.no_grad():  # so that training can use it too
                made = weight if self.make is None else self.make(*weights)
                self._made, self._made_of, self._weights = made.to(dtype), made_of, weights
        return self._made


def times(factor: float) -> FrozenWeightCache:
    """Return a cache of a weight times a factor."""
    return FrozenWeightCache() if factor == 1 else FrozenWeightCache(partial(torch.mul, other=factor))
