"""The precision of matrix products, which autocast may set, and frozen weights made ready for it once."""

import torch
from torch import Tensor


def compute_dtype(x: Tensor) -> torch.dtype:
    """What a matrix product of x is computed in: autocast's precision where it is on, else x's own."""
    device = x.device.type
    if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
        return torch.get_autocast_dtype(device)
    return x.dtype


class Ready:
    """A weight times a factor in the precision of matrix products; a frozen one is made once.

    autocast keeps its casts of trained weights for the length of a step, and casts frozen ones anew at every use. Here
    the copy of a frozen weight lasts until the weight is written to or moved, or another precision is asked for. For a
    weight in training it is an ordinary product, with its gradient.
    """

    def __init__(self, factor: float = 1.0) -> None:
        self.factor = factor
        self._made: Tensor | None = None
        self._made_of: tuple[object, ...] = ()

    def __call__(self, weight: Tensor) -> Tensor:
        """The shape of `weight`; fp32 weights in training stay fp32, and autocast casts them."""
        if weight.requires_grad or torch.compiler.is_compiling():
            return weight if self.factor == 1 else weight * self.factor
        dtype = compute_dtype(weight)
        if self.factor == 1 and dtype == weight.dtype:
            return weight
        made_of = (weight.data_ptr(), weight._version, weight.device, weight.dtype, dtype)
        if self._made is None or self._made_of != made_of:
            self._made, self._made_of = (weight.detach() * self.factor).to(dtype), made_of
        return self._made
