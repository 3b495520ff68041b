"""Triton kernels for what torch is slow at on a GPU; nothing here is needed to run on a CPU."""
