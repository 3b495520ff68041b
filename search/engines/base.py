"""What an engine is: the part of the index that finds the windows nearest to a query.

Shapes: N windows in the engine, n of a call, Q queries, k results a query, E joint embedding.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

Ids = NDArray[np.int64]
Scores = NDArray[np.float32]
Vectors = NDArray[np.float16]

NOTHING = -1  # the id where a query has fewer than k results; its score is -inf
INSTALL = "pip install -r requirements-search.txt"


class Engine(ABC):
    """Vectors by id, and the k with the greatest dot product with a query.

    An id is an integer from 0 to 2^63 - 1. The engine holds what the index's file says, and can be made again from it.
    """

    name: ClassVar[str]

    def __init__(self, size: int) -> None:
        """Start empty; `size` is E."""
        self.size = size

    @property
    @abstractmethod
    def count(self) -> int:
        """Return N."""

    def add(self, ids: Ids, vectors: Vectors) -> None:
        """Add float16 `[n,E]` under int64 `[n]`; a vector whose id is known takes the place of the old one.

        Raises ValueError as `check_vectors` does.
        """
        ids, vectors = np.ascontiguousarray(ids), np.ascontiguousarray(vectors)
        check_vectors(ids, vectors, self.size)
        if len(ids):
            self._add(ids, vectors)

    def remove(self, ids: Ids) -> None:
        """Remove the vectors of int64 `[n]`; ids that the engine does not know are left out."""
        ids = np.ascontiguousarray(ids)
        check_ids(ids)
        if len(ids):
            self._remove(ids)

    def search(self, queries: Scores, k: int, allowed: Ids | None = None) -> tuple[Scores, Ids]:
        """Return scores float32 `[Q,k]` and ids int64 `[Q,k]` of the best windows, best first, then by id.

        `queries` is float32 `[Q,E]`; with `allowed`, int64 `[n]`, only windows of these ids count. Where there are
        fewer than k, the score is -inf and the id -1. Raises ValueError for other types and shapes.
        """
        queries = np.ascontiguousarray(queries)
        if queries.dtype != np.float32 or queries.ndim != 2 or queries.shape[1] != self.size:
            wanted = f"float32 [Q, {self.size}]"
            raise ValueError(f"an engine takes queries {wanted}, not {queries.dtype} {list(queries.shape)}")
        if not np.isfinite(queries).all():
            raise ValueError("a query is not finite")
        if k < 1:
            raise ValueError(f"k {k} is out of range: at least 1")
        scores = np.full((len(queries), k), -np.inf, np.float32)
        ids = np.full((len(queries), k), NOTHING, np.int64)
        if allowed is not None:
            allowed = np.unique(np.ascontiguousarray(allowed))
            check_ids(allowed)
        most = k if allowed is None else min(k, len(allowed))
        if len(queries) and most:
            scores[:, :most], ids[:, :most] = self._search(queries, most, allowed)
        scores[ids == NOTHING] = -np.inf
        order = np.lexsort((ids, -scores))
        return np.take_along_axis(scores, order, 1), np.take_along_axis(ids, order, 1)

    @abstractmethod
    def close(self) -> None:
        """Release what the engine holds; it must not be used afterwards."""

    @abstractmethod
    def _add(self, ids: Ids, vectors: Vectors) -> None: ...

    @abstractmethod
    def _remove(self, ids: Ids) -> None: ...

    @abstractmethod
    def _search(self, queries: Scores, k: int, allowed: Ids | None) -> tuple[Scores, Ids]:
        """Return what `search` does, best first; where nothing is found, only the id has to say so."""


class Approximate(Engine):
    """An engine that looks at a part of the vectors. `effort` says at how many, and may be changed between searches."""

    effort: int

    @property
    @abstractmethod
    def efforts(self) -> Sequence[int]:
        """Return the values of `effort` to choose from, ascending; the last one loses the least."""


def check_ids(ids: Ids) -> None:
    """Raise ValueError unless `ids` is int64 `[n]` from 0 on."""
    if ids.dtype != np.int64 or ids.ndim != 1:
        raise ValueError(f"an engine takes ids int64 [n], not {ids.dtype} {list(ids.shape)}")
    if len(ids) and ids.min() < 0:
        raise ValueError(f"id {ids.min()} is negative")


def check_vectors(ids: Ids, vectors: Vectors, size: int) -> None:
    """Raise ValueError unless `vectors` is float16 `[n,E]`, finite, and `ids` is int64 `[n]`, from 0 on, each once."""
    check_ids(ids)
    if vectors.dtype != np.float16 or vectors.shape != (len(ids), size):
        wanted = f"float16 [{len(ids)}, {size}]"
        raise ValueError(f"an engine takes vectors {wanted}, not {vectors.dtype} {list(vectors.shape)}")
    if len(np.unique(ids)) < len(ids):
        raise ValueError("an id comes twice in one call: give each window an id of its own")
    bad = ids[~np.isfinite(vectors.sum(axis=1, dtype=np.float32))]  # sums of float16 do not overflow float32
    if len(bad):
        raise ValueError(f"{len(bad)} vectors are not finite, the first under id {bad[0]}: leave them out")
