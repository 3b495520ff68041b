"""Triton kernels for operations that torch runs slowly on a GPU. Nothing here is needed on a CPU.

The operators are in `attention` and `changes`. Their kernels are in files of their own, which are imported when an
operator first runs: Triton takes a quarter of a second, and a graph being traced does not look into operators.
"""

from importlib.util import find_spec

import torch
from torch import Tensor

HAS_TRITON = find_spec("triton") is not None  # only torch for GPUs brings it
LEAST = 16  # the shortest side of a tile that tensor cores take
OLDEST = (8, 0)  # compute capability of an A100; older GPUs have too little shared memory
_new_enough: dict[int, bool] = {}  # by device index


def usable(x: Tensor) -> bool:
    """Return whether the kernels can run on the device of x.

    A graph being traced cannot query a GPU; it uses the answer that an earlier eager call has stored.
    """
    if not HAS_TRITON or not x.is_cuda:
        return False
    device = x.device.index
    if device not in _new_enough and not torch.compiler.is_compiling():
        _new_enough[device] = torch.cuda.get_device_capability(device) >= OLDEST
    return _new_enough.get(device, True)


def tile_side(size: int) -> int:
    """Return the side of a tile that holds `size`: a power of two, at least LEAST."""
    return max(LEAST, 1 << (size - 1).bit_length())


def cdiv(size: int, part: int) -> int:
    """Return how many parts hold `size`."""
    return -(-size // part)
