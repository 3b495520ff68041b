"""What the C library does with the memory of a server. Imports nothing heavy, so that it comes before any thread."""

import ctypes
from contextlib import suppress

M_ARENA_MAX = -8  # of mallopt, in glibc's malloc.h


def keep_memory_together() -> None:
    """Let all threads of this process allocate from two pools; call it before there are any.

    glibc gives almost each thread a pool of its own, and what the threads of a server free stays in them. Does nothing
    with another C library.
    """
    with suppress(OSError, AttributeError, TypeError):
        ctypes.CDLL(None).mallopt(M_ARENA_MAX, 2)


def return_free_memory() -> None:
    """Give back to the system what the C library keeps for later allocations; does nothing where it cannot."""
    with suppress(OSError, AttributeError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)
