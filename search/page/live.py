"""An index that many threads ask while other processes add to it.

The engine follows the index's file: before a query, SQLite says in a microsecond whether anybody has written to it, and
then only the windows that came or went are read. An id is never given to other content, so that comparing ids is
enough.

Shapes: N windows, n windows that came, E joint embedding.
"""

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError, ThreadPoolExecutor
from contextlib import suppress
from functools import cached_property
from typing import Any, TypeVar

import numpy as np
import torch

from search.engines.base import Engine
from search.engines.exact import TorchExact
from search.index import Hit, Index
from search.page.allocator import return_free_memory
from search.page.mapped import map_weights
from search.page.together import Together
from search.ranking import SAMPLED, sample_rows
from search.store import AT_ONCE, PER_FILE, window_ids

T = TypeVar("T")

TRIES = 5  # of a query whose hits are removed while it is answered
MANY = 10_000  # files that are not listed before each query while another process writes: 50,000 take 0.1 s
PAUSE = 10  # times as long as the last update took, until the next one
MOST = 10  # texts without a meaning that are searched for in one step
GROWN = 0.1  # share of the windows that may come or go before the bound of what fits is measured again


class LiveIndex(Index):
    """An `Index` for threads. `load` must have returned before the first query."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._encoding, self._searching = ThreadPoolExecutor(1, "model"), ThreadPoolExecutor(1, "engine")
        self._texts = Together(self._encoding, self._encode)
        self._searches = Together(self._searching, self._search_all)
        self._updating, self._next_update = threading.Lock(), 0.0
        self._files: dict[int, int] = {}  # how many windows each has in the engine
        self._gallery_ids = np.empty(0, dtype=np.int64)
        self._measured: tuple[float, int] | None = None  # the bound, and of how many windows it is
        self._measuring = threading.Lock()

    def close(self) -> None:
        for thread in (self._encoding, self._searching):
            thread.shutdown(cancel_futures=True)
        super().close()

    def load(self) -> None:
        """Load the model and all vectors, and measure the bound of what fits well."""
        self._identity = self._identify()
        self._version = self.store.data_version()
        map_weights(self.encoder.method)
        _ = self.engine
        if self._files:
            self._measure()
        return_free_memory()

    def _identify(self) -> tuple[int, int] | None:
        """Return what tells the index's file from another one with its name; None if it is gone."""
        try:
            status = self.store.path.stat()
        except OSError:
            return None
        return status.st_dev, status.st_ino

    @cached_property
    def engine(self) -> Engine:
        """The engine, which only the thread `_searching` may use. It is made step by step, so that the vectors never
        lie in memory twice. Torch's answers ten questions in the time of two or three; faiss's would take that of ten.
        """
        engine = TorchExact(self.model.dimension)
        self.gallery = np.empty((0, self.model.dimension), dtype=np.float32)
        self._add(engine, self.store.counts(self.model))
        return engine

    @property
    def count(self) -> int:
        """Return how many windows there are."""
        return sum(self._files.values())

    def _add(self, engine: Engine, counts: dict[int, int]) -> None:
        """Add files with these numbers of windows to the engine and, in proportion, to the gallery."""
        came = sum(counts.values())
        sampled = window_ids(counts.items())
        sampled = sampled[sample_rows(came, min(came, max(1, SAMPLED * came // max(self.count + came, 1))))]
        files, gallery_ids, gallery = sorted(counts), [self._gallery_ids], [self.gallery]
        for first in range(0, len(files), AT_ONCE):
            found, vectors = self.store.vectors_of(self.model, files[first : first + AT_ONCE])
            self._searching.submit(engine.add, found, vectors).result()
            chosen = np.isin(found, sampled)
            gallery_ids.append(found[chosen])
            gallery.append(vectors[chosen].astype(np.float32))
        self._files = self._files | counts
        self._gallery_ids, self.gallery = np.concatenate(gallery_ids), np.concatenate(gallery)

    def update(self, again: bool = False) -> None:
        """Bring the engine up to date if another process has written to the index, or do so in any case with `again`.

        While one thread does so, others go on with what there is. Raises OSError if the index's file was replaced.
        """
        if self._identify() != self._identity:  # who writes to the other one, our connection does not notice
            raise OSError(f"{self.store.path}: was removed or replaced by another index; start the server again")
        if not again and time.monotonic() < self._next_update:
            return
        if not self._updating.acquire(blocking=again):
            return
        begun = time.monotonic()
        try:
            version = self.store.data_version()
            if version == self._version and not again:
                return
            there = self.store.counts(self.model)
            gone = {file: count for file, count in self._files.items() if file not in there}
            if gone:
                self._searching.submit(self.engine.remove, window_ids(gone.items())).result()
                self._files = {file: count for file, count in self._files.items() if file in there}
                kept = ~np.isin(self._gallery_ids // PER_FILE, list(gone))
                self._gallery_ids, self.gallery = self._gallery_ids[kept], self.gallery[kept]
            self._add(self.engine, {file: count for file, count in there.items() if file not in self._files})
            self._version = version
            if len(self._files) > MANY:
                self._next_update = time.monotonic() + PAUSE * (time.monotonic() - begun)
        finally:
            self._updating.release()
        if self._measured is None or abs(self.count - self._measured[1]) > GROWN * self._measured[1]:
            threading.Thread(target=self._measure_again, daemon=True).start()

    def _measure_again(self) -> None:
        with suppress(OSError, RuntimeError, CancelledError, KeyError):  # closed, or a window was removed meanwhile
            self._measure()

    def _measure(self) -> None:
        """Measure the bound of what fits well; nothing if that is under way."""
        if self._measuring.acquire(blocking=False):
            try:
                if count := self.count:
                    self._measured = self.measure_bound(), count
            finally:
                self._measuring.release()

    def _best_of_nonsense(self) -> np.ndarray:
        """Return what `Index` does, some at a time, so that queries need not wait for all of them."""
        nonsense = self._nonsense()
        parts = [self._search(nonsense[first : first + MOST], 1) for first in range(0, len(nonsense), MOST)]
        scores, ids = (np.concatenate(found)[:, 0] for found in zip(*parts, strict=True))
        return self._stands_out(scores, ids)

    def _nonsense(self) -> np.ndarray:
        return self._kept_nonsense if "_kept_nonsense" in vars(self) else self.with_model(super()._nonsense)

    def fits_well(self, hits: Sequence[Hit]) -> bool:
        """Return what `Index.fits_well` does; True while the bound of an index that was empty is not known yet."""
        with suppress(KeyError):  # the hit was removed meanwhile
            return bool(hits) and (self._measured is None or self.standing(hits[0]) >= self._measured[0])
        return True

    def with_model(self, function: Callable[..., T], *arguments: Any) -> T:
        """Return what a function returns that uses the model. All run in one thread: each thread that computes takes
        memory of its own, and on many cores further threads."""
        return self._encoding.submit(function, *arguments).result()

    def vector_of_frames(self, video: np.ndarray, frame_mask: np.ndarray) -> np.ndarray:
        """Return the vector of a clip that was read, fp32 [1, E]."""
        clip = torch.from_numpy(video), torch.from_numpy(frame_mask)
        return self.with_model(self.encoder.encode_windows, [clip])

    def encode_text(self, texts: Sequence[str]) -> np.ndarray:
        """Return what `Index` does. Texts of several callers who wait for the model are encoded in one batch, which
        takes a third of the time; that may change the last bits of a vector."""
        return self._texts.ask(texts)

    def _encode(self, asked: list[Sequence[str]]) -> list[np.ndarray]:
        rows = self.encoder.encode_text([text for texts in asked for text in texts])
        return np.split(rows, np.cumsum([len(texts) for texts in asked])[:-1])

    def _search(
        self, vectors: np.ndarray, count: int, allowed: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        if allowed is not None:
            return self._searching.submit(self.engine.search, vectors, count, allowed).result()
        return self._searches.ask((vectors, count))

    def _search_all(self, asked: list[tuple[np.ndarray, int]]) -> list[tuple[np.ndarray, np.ndarray]]:
        """Search with the vectors of several callers at once, each for so many windows."""
        found = self.engine.search(np.concatenate([vectors for vectors, _ in asked]), max(count for _, count in asked))
        ends = np.cumsum([len(vectors) for vectors, _ in asked])
        rows = zip(*(np.split(part, ends[:-1]) for part in found), strict=True)
        return [(scores[:, :count], ids[:, :count]) for (scores, ids), (_, count) in zip(rows, asked, strict=True)]

    def query(self, *arguments: Any, **named: Any) -> list[Hit]:
        with self._searches.expected():
            return super().query(*arguments, **named)

    def nearest(self, *arguments: Any, **named: Any) -> list[Hit]:
        self.update()
        for _ in range(TRIES):
            try:
                if not self.count:
                    return []
                return super().nearest(*arguments, **named)
            except KeyError:  # a file was removed from the index after the engine had found it
                self.update(again=True)
        raise OSError("the index is changing too fast to be searched: try again when the other command has ended")
