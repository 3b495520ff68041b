"""Exact search: every vector is compared with every query.

With faiss, the vectors lie in an `IndexScalarQuantizer` of half precision, whose products are of single precision. Its
codes are the vectors' own bytes, so they are added without being coded again. Without faiss, torch multiplies block by
block. Both give the same ids, and scores that differ by rounding.
"""

from importlib.util import find_spec
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from search.engines.base import NOTHING, Engine, Ids, Scores, Vectors

if TYPE_CHECKING:
    from torch import Tensor

BLOCK = 512  # vectors that torch multiplies at a time: in single precision they fit into a processor's cache
PART = 65_536  # vectors that lie together


class FaissExact(Engine):
    """faiss's flat index of half precision. Shapes: search/engines/base.py."""

    name: ClassVar = "exact"

    def __init__(self, size: int) -> None:
        import faiss

        super().__init__(size)
        flat = faiss.IndexScalarQuantizer(size, faiss.ScalarQuantizer.QT_fp16, faiss.METRIC_INNER_PRODUCT)
        self.index = faiss.IndexIDMap(flat)

    @property
    def count(self) -> int:
        return self.index.ntotal

    def close(self) -> None:
        self.index.reset()

    def _add(self, ids: Ids, vectors: Vectors) -> None:
        self.remove(ids)
        self.index.add_sa_codes(vectors.view(np.uint8), ids)

    def _remove(self, ids: Ids) -> None:
        self.index.remove_ids(ids)

    def _search(self, queries: Scores, k: int, allowed: Ids | None) -> tuple[Scores, Ids]:
        import faiss

        selector = None if allowed is None else faiss.IDSelectorBatch(allowed)
        return self.index.search(queries, k, params=faiss.SearchParameters(sel=selector))


class TorchExact(Engine):
    """Products in single precision by torch, on the CPU. Shapes: search/engines/base.py; R = PART rows of a part.

    It takes one vector of memory for each that it holds, however they came, and several queries of one call cost little
    more than one.
    """

    name: ClassVar = "exact"

    def __init__(self, size: int) -> None:
        super().__init__(size)
        self._parts: list[_Part] = []

    @property
    def count(self) -> int:
        return sum(part.count for part in self._parts)

    def close(self) -> None:
        self._parts = []

    def _add(self, ids: Ids, vectors: Vectors) -> None:
        self._remove(ids)
        while len(ids):
            if not self._parts or self._parts[-1].count == PART:
                self._parts.append(_Part(self.size))
            taken = self._parts[-1].take(ids, vectors)
            ids, vectors = ids[taken:], vectors[taken:]

    def _remove(self, ids: Ids) -> None:
        ids = np.sort(ids)
        for part in self._parts:
            part.remove(ids)
        self._parts = [part for part in self._parts if part.count]

    def _search(self, queries: Scores, k: int, allowed: Ids | None) -> tuple[Scores, Ids]:
        import torch

        wanted = torch.from_numpy(queries).T.contiguous()
        block = torch.empty((BLOCK, self.size))
        scores, ids = torch.full((len(queries), k), -torch.inf), torch.full((len(queries), k), NOTHING)
        for part in self._parts:
            rows = None if allowed is None else np.flatnonzero(_is_in(part.ids, allowed))
            count = part.count if rows is None else len(rows)
            found = torch.empty((count, len(queries)))
            for first in range(0, count, BLOCK):
                here = slice(first, min(first + BLOCK, count))
                chosen = part.vectors[here] if rows is None else part.vectors[rows[here]]
                torch.mm(block[: len(chosen)].copy_(chosen), wanted, out=found[here])
            best, places = found.T.topk(min(k, count))
            if rows is not None:
                places = torch.from_numpy(rows)[places]
            best = part.scores(torch.from_numpy(queries), places)
            own = torch.from_numpy(part.ids)
            scores, order = torch.cat([scores, best], dim=1).topk(k)
            ids = torch.cat([ids, own[places]], dim=1).gather(1, order)
        return scores.numpy(), ids.numpy()


class _Part:
    """At most PART vectors with their ids. Memory for all of them is asked for at once, and taken as they come."""

    def __init__(self, size: int) -> None:
        import torch

        self.count = 0
        self._ids, self._vectors = np.empty(PART, np.int64), torch.empty((PART, size), dtype=torch.float16)

    @property
    def ids(self) -> Ids:
        return self._ids[: self.count]

    @property
    def vectors(self) -> "Tensor":
        return self._vectors[: self.count]

    def scores(self, queries: "Tensor", places: "Tensor") -> "Tensor":
        """Return the products of `[Q,E]` with the vectors at `[Q,k]`, equal to the bit for equal vectors.

        The last bits of a matrix product depend on where a row stands in it. Copies of a video would have different
        scores, and come in another order than faiss has them in.
        """
        import torch

        scores = torch.empty(places.shape)
        for first in range(0, places.shape[1], BLOCK):
            here = slice(first, first + BLOCK)
            scores[:, here] = (self.vectors[places[:, here]].float() * queries[:, None]).sum(dim=-1)
        return scores

    def take(self, ids: Ids, vectors: Vectors) -> int:
        """Add the first of some vectors, as many as there is room for; return their number."""
        taken = min(PART - self.count, len(ids))
        here = slice(self.count, self.count + taken)
        self._ids[here], self._vectors.numpy()[here] = ids[:taken], vectors[:taken]
        self.count += taken
        return taken

    def remove(self, ids: Ids) -> None:
        """Remove the vectors of some ids, sorted."""
        gone = _is_in(self.ids, ids)
        if gone.any():
            kept = np.flatnonzero(~gone)
            self._ids[: len(kept)], self._vectors[: len(kept)] = self._ids[kept], self._vectors[kept]
            self.count = len(kept)


def _is_in(ids: Ids, wanted: Ids) -> "np.ndarray":
    """Return which ids are among the `wanted` ones, sorted, bool `[n]`."""
    if not len(wanted):
        return np.zeros(len(ids), bool)
    return wanted[np.searchsorted(wanted, ids).clip(max=len(wanted) - 1)] == ids


def build_exact(size: int) -> Engine:
    """Return an empty exact engine: faiss's where it is installed, else torch's."""
    return FaissExact(size) if find_spec("faiss") else TorchExact(size)
