"""Triton kernels for what torch is slow at on a GPU; nothing here is needed to run on a CPU."""

from torch import Tensor

try:
    import triton

    HAS_TRITON = bool(triton)
except ImportError:  # it comes with torch for GPUs alone
    HAS_TRITON = False


def usable(x: Tensor) -> bool:
    """Whether the kernels can run where x is."""
    return HAS_TRITON and x.is_cuda
