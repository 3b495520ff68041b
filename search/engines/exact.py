"""Exact search: every vector is compared with every query.

With faiss, the vectors lie in an `IndexScalarQuantizer` of half precision, whose products are of single precision. Its
codes are the vectors' own bytes, so they are added without being coded again. Without faiss, torch multiplies block by
block. Both give the same ids, and scores that differ by rounding.
"""

from importlib.util import find_spec
from typing import ClassVar

import numpy as np

from search.engines.base import NOTHING, Engine, Ids, Scores, Vectors

BLOCK = 8192  # vectors that torch multiplies at a time: in single precision they fit into a processor's cache


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
    """Products in single precision by torch, on the CPU. Shapes: search/engines/base.py."""

    name: ClassVar = "exact"

    def __init__(self, size: int) -> None:
        super().__init__(size)
        self.close()

    @property
    def count(self) -> int:
        return len(self.ids)

    def close(self) -> None:
        self.ids: Ids = np.empty(0, np.int64)
        self.vectors: Vectors = np.empty((0, self.size), np.float16)

    def _add(self, ids: Ids, vectors: Vectors) -> None:
        self.remove(ids)
        if self.count:
            ids, vectors = np.concatenate([self.ids, ids]), np.concatenate([self.vectors, vectors])
        self.ids, self.vectors = ids, np.require(vectors, requirements="W")  # torch warns of arrays it must not change

    def _remove(self, ids: Ids) -> None:
        gone = np.isin(self.ids, ids)
        if gone.any():
            self.ids, self.vectors = self.ids[~gone], self.vectors[~gone]

    def _search(self, queries: Scores, k: int, allowed: Ids | None) -> tuple[Scores, Ids]:
        import torch

        rows = None if allowed is None else np.flatnonzero(np.isin(self.ids, allowed))
        wanted = torch.from_numpy(queries)
        scores, places = torch.full((len(queries), k), -torch.inf), torch.full((len(queries), k), NOTHING)
        for first in range(0, self.count if rows is None else len(rows), BLOCK):
            chosen = slice(first, first + BLOCK) if rows is None else rows[first : first + BLOCK]
            found = wanted @ torch.from_numpy(self.vectors[chosen]).float().T
            best, here = found.topk(min(k, found.shape[1]))
            scores, order = torch.cat([scores, best], dim=1).topk(k)
            places = torch.cat([places, here + first], dim=1).gather(1, order)
        at = places.numpy()
        ids = self.ids if rows is None else self.ids[rows]
        return scores.numpy(), np.where(at == NOTHING, NOTHING, ids[at]) if len(ids) else at


def build_exact(size: int) -> Engine:
    """Return an empty exact engine: faiss's where it is installed, else torch's."""
    return FaissExact(size) if find_spec("faiss") else TorchExact(size)
