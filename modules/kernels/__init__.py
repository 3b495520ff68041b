"""Triton kernels for operations that torch runs slowly on a GPU. Nothing here is needed on a CPU."""

import torch
from torch import Tensor

try:
    import triton

    HAS_TRITON = bool(triton)
except ImportError:  # only torch for GPUs brings it
    HAS_TRITON = False

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
