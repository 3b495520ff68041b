"""Approximate search in memory, for more windows than `exact` is quick enough for: faiss's inverted file.

k-means divides the vectors into lists; a query is compared with those of the `effort` lists (faiss's nprobe) whose
centres are nearest. Vectors are stored in half precision, and not as differences from the centres, so scores are those
of exact search. Texts lie outside the cloud of videos, and need far more lists than clips: search/recall.py chooses
`effort` on texts.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np

from search.engines.base import INSTALL, NOTHING, Approximate, Ids, Scores, Vectors

BLOCK = 65_536  # vectors in single precision at a time
TRAINED_ON = 64  # vectors for each list that k-means learns from; faiss warns below 39


def choose_lists(count: int) -> int:
    """Return the power of two nearest to the root of `count`, at most one list for TRAINED_ON vectors."""
    if count < TRAINED_ON:
        return 1
    return 2 ** int(min(round(np.log2(count) / 2), np.log2(count / TRAINED_ON)))


class IVF(Approximate):
    """faiss's `IndexIVFScalarQuantizer`. The first call of `add` divides the space, so give it all there is.

    Until `effort` is chosen, all lists are searched.
    """

    name: ClassVar = "ivf"

    def __init__(self, size: int) -> None:
        super().__init__(size)
        self._start(1)

    def _start(self, lists: int) -> None:
        try:
            import faiss
        except ImportError as error:
            raise ValueError(f"the engine ivf needs faiss: {INSTALL}") from error

        centres = faiss.IndexFlatIP(self.size)
        kind, product = faiss.ScalarQuantizer.QT_fp16, faiss.METRIC_INNER_PRODUCT
        self.index = faiss.IndexIVFScalarQuantizer(centres, self.size, lists, kind, product, False)
        self.index.cp.spherical = True
        self.index.cp.min_points_per_centroid = 1  # no warning for an index of a few windows
        self.effort = lists

    @property
    def count(self) -> int:
        return self.index.ntotal

    @property
    def efforts(self) -> Sequence[int]:
        return [2**power for power in range(self.index.nlist.bit_length())]

    def close(self) -> None:
        self.index.reset()

    def save(self, path: Path) -> None:
        """Write the lists to a file; raises OSError if that fails."""
        import faiss

        try:
            faiss.write_index(self.index, str(path))
        except RuntimeError as error:
            raise OSError(f"{path} cannot be written: {error}") from error

    def load(self, path: Path) -> None:
        """Read what `save` wrote; raises ValueError if the file is damaged or has vectors of another size."""
        import faiss

        try:
            index = faiss.read_index(str(path))
        except RuntimeError as error:
            raise ValueError(f"{path} is no index of faiss, or is damaged") from error
        if not isinstance(index, faiss.IndexIVFScalarQuantizer) or index.d != self.size:
            raise ValueError(f"{path} does not hold lists of vectors of size {self.size}")
        self.index, self.effort = index, index.nlist

    def sample(self, most: int) -> Scores:
        """Return at most `most` of the vectors, float32 `[n,E]`, evenly spaced over the lists in their order."""
        import faiss

        inverted = faiss.extract_index_ivf(self.index).invlists
        sizes = [inverted.list_size(number) for number in range(self.index.nlist)]
        ends = np.cumsum(sizes)
        rows = np.linspace(0, self.count - 1, min(self.count, most)).round().astype(np.int64)
        parts = [np.empty((0, self.size), np.float32)]
        for number in range(self.index.nlist):
            here = rows[(rows >= ends[number] - sizes[number]) & (rows < ends[number])] - (ends[number] - sizes[number])
            if len(here):
                codes = faiss.rev_swig_ptr(inverted.get_codes(number), sizes[number] * 2 * self.size)
                parts.append(codes.view("<f2").reshape(-1, self.size)[here].astype(np.float32))
        return np.concatenate(parts)

    def _add(self, ids: Ids, vectors: Vectors) -> None:
        if self.index.is_trained:
            self.remove(ids)
        else:
            lists = choose_lists(len(ids))
            rows = np.linspace(0, len(ids) - 1, min(len(ids), TRAINED_ON * lists)).round().astype(np.int64)
            self._start(lists)
            self.index.train(vectors[rows].astype(np.float32))
        for first in range(0, len(ids), BLOCK):
            part = slice(first, first + BLOCK)
            self.index.add_with_ids(vectors[part].astype(np.float32), ids[part])

    def _remove(self, ids: Ids) -> None:
        self.index.remove_ids(ids)

    def _search(self, queries: Scores, k: int, allowed: Ids | None) -> tuple[Scores, Ids]:
        import faiss

        if not self.count:  # before the first call of `add`, faiss would refuse
            return np.full((len(queries), k), -np.inf, np.float32), np.full((len(queries), k), NOTHING, np.int64)
        # A filter is exact: the windows that it leaves may lie in any list, and there are fewer to compare.
        probes = min(self.index.nlist, self.effort) if allowed is None else self.index.nlist
        selector = None if allowed is None else faiss.IDSelectorBatch(allowed)
        return self.index.search(queries, k, params=faiss.SearchParametersIVF(sel=selector, nprobe=probes))
