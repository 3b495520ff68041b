"""Triton kernels for what torch is slow at on a GPU; nothing here is needed to run on a CPU."""

import torch
from torch import Tensor

try:
    import triton

    HAS_TRITON = bool(triton)
except ImportError:  # it comes with torch for GPUs alone
    HAS_TRITON = False

OLDEST = (8, 0)  # compute capability, an A100's; what came before has too little shared memory
_new_enough: dict[int, bool] = {}  # GPUs that were asked


def usable(x: Tensor) -> bool:
    """Whether the kernels can run where x is. A graph in tracing cannot ask a GPU for its age, and goes by what an
    eager call has learned."""
    if not HAS_TRITON or not x.is_cuda:
        return False
    device = x.device.index
    if device not in _new_enough and not torch.compiler.is_compiling():
        _new_enough[device] = torch.cuda.get_device_capability(device) >= OLDEST
    return _new_enough.get(device, True)
