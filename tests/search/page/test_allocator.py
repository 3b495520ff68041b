"""Settings of the C library, where it has them."""

import ctypes

import pytest

from search.page.allocator import M_ARENA_MAX, keep_memory_together, return_free_memory


def test_glibc_is_asked(monkeypatch):
    asked = []

    class Library:
        mallopt = staticmethod(lambda *values: asked.append(values))
        malloc_trim = staticmethod(lambda kept: asked.append(kept))

    monkeypatch.setattr(ctypes, "CDLL", lambda _: Library)
    keep_memory_together()
    return_free_memory()
    assert asked == [(M_ARENA_MAX, 2), 0]


@pytest.mark.parametrize("library", [OSError, lambda _: object()])
def test_others_are_left_alone(monkeypatch, library):
    """macOS has no such functions, and Windows opens no library without a name."""
    asked = []
    monkeypatch.setattr(ctypes, "CDLL", lambda name: asked.append(name) or library(name))
    keep_memory_together()
    return_free_memory()
    assert asked == [None, None]  # and nothing was raised
