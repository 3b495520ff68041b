"""Building modules for their names, shapes and structure alone, without any values."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch.overrides import TorchFunctionMode


class _Undrawn(TorchFunctionMode):
    """Skips drawing and scaling; zeros and ones are cheap and stay.

    torch knows each of these on the device "meta". But it computes their shapes with `torch._refs`, and that imports
    torch's compiler and sympy, which takes one and a half seconds. What is not skipped here is slower, never wrong.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func is torch.randn:
            return torch.empty(*args, **kwargs)
        if func is torch.Tensor.mul and isinstance(args[1], int | float):
            return args[0]
        if getattr(func, "__module__", None) == "torch.nn.init":
            return kwargs["tensor"]
        return func(*args, **kwargs)


@contextmanager
def undrawn() -> Iterator[None]:
    """Put modules and tensors that are made in this context on the device "meta", and draw no random number."""
    with torch.device("meta"), _Undrawn():
        yield
