"""An index over one's own videos: search for moments by words, by a clip or by a picture.

`python -m search` is the command, `Index` the same for Python:

    from search import Index
    index = Index.open("my_index")
    hits = index.query(text="a dog jumps over a fence")
"""

from typing import Any

__all__ = ["Hit", "Index", "ModelMismatch"]


def __getattr__(name: str) -> Any:  # only a query needs torch, so the names are imported when they are asked for
    if name in __all__:
        from search import index

        return getattr(index, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
