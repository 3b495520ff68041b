"""An index that many threads ask while other processes add to it.

The engine follows the index's file: before a query, SQLite says in a microsecond whether anybody has written to it, and
then only the windows that came or went are read. An id is never given to other content, so that comparing ids is
enough.

Shapes: N windows, n windows that came, E joint embedding.
"""

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeVar

import numpy as np
import torch

from search.engines.base import Engine
from search.engines.exact import build_exact
from search.index import Hit, Index
from search.ranking import SAMPLED, sample_rows
from search.store import PER_FILE

T = TypeVar("T")

TRIES = 5  # of a query whose hits are removed while it is answered
AT_ONCE = 500  # files whose vectors are read in one step
GROWN = 0.1  # share of the windows that may come or go before the bound of what fits is measured again


class SharedLock:
    """A lock that many may hold to read, or one alone to write. A writer waits until the readers have ended, and new
    readers wait for the writer."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._readers, self._writing = 0, False

    @contextmanager
    def reading(self) -> Iterator[None]:
        with self._changed:
            self._changed.wait_for(lambda: not self._writing)
            self._readers += 1
        try:
            yield
        finally:
            with self._changed:
                self._readers -= 1
                self._changed.notify_all()

    @contextmanager
    def writing(self) -> Iterator[None]:
        with self._changed:
            self._changed.wait_for(lambda: not self._writing)
            self._writing = True
            self._changed.wait_for(lambda: not self._readers)
        try:
            yield
        finally:
            with self._changed:
                self._writing = False
                self._changed.notify_all()


@dataclass(eq=False)
class _Asked:
    """Texts of a caller, and what came of them."""

    texts: Sequence[str]
    vectors: np.ndarray | None = None
    error: Exception | None = None


class LiveIndex(Index):
    """An `Index` for threads. `load` must have returned before the first query."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._thread = ThreadPoolExecutor(1, "model")
        self._asking, self._waiting = threading.Lock(), list[_Asked]()
        self._updating = threading.Lock()
        self._engine_lock = SharedLock()
        self._ids = self._gallery_ids = np.empty(0, dtype=np.int64)
        self._measured: tuple[float, int] | None = None  # the bound, and of how many windows it is
        self._measuring = threading.Lock()

    def close(self) -> None:
        self._thread.shutdown(cancel_futures=True)
        super().close()

    def load(self) -> None:
        """Load the model and all vectors, and measure the bound of what fits well."""
        self._identity = self._identify()
        self._version = self.store.data_version()
        _ = self.encoder, self.engine
        if len(self._ids):
            self._measure()

    def _identify(self) -> tuple[int, int] | None:
        """Return what tells the index's file from another one with its name; None if it is gone."""
        try:
            status = self.store.path.stat()
        except OSError:
            return None
        return status.st_dev, status.st_ino

    @cached_property
    def engine(self) -> Engine:
        """The engine. It is made step by step, so that the vectors never lie in memory twice."""
        engine = build_exact(self.model.dimension)
        self.gallery = np.empty((0, self.model.dimension), dtype=np.float32)
        self._add(engine, self.store.ids(self.model))
        return engine

    def _add(self, engine: Engine, ids: np.ndarray) -> None:
        """Add the windows with these ids, int64 [n], to the engine and, in proportion, to the gallery."""
        total = len(self._ids) + len(ids)
        sampled = ids[sample_rows(len(ids), min(len(ids), max(1, SAMPLED * len(ids) // max(total, 1))))]
        files = np.unique(ids // PER_FILE).tolist()
        all_ids, gallery_ids, gallery = [self._ids], [self._gallery_ids], [self.gallery]
        for first in range(0, len(files), AT_ONCE):
            found, vectors = self.store.vectors_of(self.model, files[first : first + AT_ONCE])
            with self._engine_lock.writing():
                engine.add(found, vectors)
            chosen = np.isin(found, sampled)
            all_ids.append(found)
            gallery_ids.append(found[chosen])
            gallery.append(vectors[chosen].astype(np.float32))
        self._ids = np.sort(np.concatenate(all_ids))
        self._gallery_ids, self.gallery = np.concatenate(gallery_ids), np.concatenate(gallery)

    def update(self, again: bool = False) -> None:
        """Bring the engine up to date if another process has written to the index, or do so in any case with `again`.

        While one thread does so, others go on with what there is. Raises OSError if the index's file was replaced.
        """
        if self._identify() != self._identity:  # who writes to the other one, our connection does not notice
            raise OSError(f"{self.store.path}: was removed or replaced by another index; start the server again")
        if not self._updating.acquire(blocking=again):
            return
        try:
            version = self.store.data_version()
            if version == self._version and not again:
                return
            there = self.store.ids(self.model)
            gone = np.setdiff1d(self._ids, there, assume_unique=True)
            if len(gone):
                with self._engine_lock.writing():
                    self.engine.remove(gone)
                    self._ids = np.setdiff1d(self._ids, gone, assume_unique=True)
                    kept = ~np.isin(self._gallery_ids, gone)
                    self._gallery_ids, self.gallery = self._gallery_ids[kept], self.gallery[kept]
            self._add(self.engine, np.setdiff1d(there, self._ids, assume_unique=True))
            self._version = version
        finally:
            self._updating.release()
        if self._measured is None or abs(len(self._ids) - self._measured[1]) > GROWN * self._measured[1]:
            threading.Thread(target=self._measure_again, daemon=True).start()

    def _measure_again(self) -> None:
        with suppress(OSError, RuntimeError):  # the index was closed or removed meanwhile
            self._measure()

    def _measure(self) -> None:
        """Measure the bound of what fits well; nothing if that is under way."""
        if self._measuring.acquire(blocking=False):
            try:
                count = len(self._ids)
                if count:
                    self._measured = self.measure_bound(), count
            finally:
                self._measuring.release()

    def _best_of_nonsense(self) -> np.ndarray:
        """Return what `Index` does, text by text, so that an update need not wait for all of them."""
        best = []
        for query in self._nonsense():
            with self._engine_lock.reading():
                best.append(self.engine.search(query[None], 1)[0][0, 0])
        return np.array(best)

    def _nonsense(self) -> np.ndarray:
        return self.with_model(super()._nonsense)

    def fits_well(self, hits: Sequence[Hit]) -> bool:
        """Return what `Index.fits_well` does; True while the bound of an index that was empty is not known yet."""
        return bool(hits) and (self._measured is None or hits[0].score >= self._measured[0])

    def with_model(self, function: Callable[..., T], *arguments: Any) -> T:
        """Return what a function returns that uses the model. All run in one thread: each thread that computes takes
        memory of its own, and on many cores further threads."""
        return self._thread.submit(function, *arguments).result()

    def vector_of_frames(self, video: np.ndarray, frame_mask: np.ndarray) -> np.ndarray:
        """Return the vector of a clip that was read, fp32 [1, E]."""
        clip = torch.from_numpy(video), torch.from_numpy(frame_mask)
        return self.with_model(self.encoder.encode_windows, [clip])

    def encode_text(self, texts: Sequence[str]) -> np.ndarray:
        """Return what `Index` does. Texts of several callers who wait for the model are encoded in one batch, which
        takes a third of the time; that may change the last bits of a vector."""
        asked = _Asked(texts)
        with self._asking:
            self._waiting.append(asked)
        self.with_model(self._encode_waiting)
        if asked.error is not None:
            raise asked.error
        assert asked.vectors is not None
        return asked.vectors

    def _encode_waiting(self) -> None:
        """Encode the texts of all who wait by now; nothing if that was done for somebody else."""
        with self._asking:
            together, self._waiting = self._waiting, []
        if together:
            self._encode(together)

    def _encode(self, together: "list[_Asked]") -> None:
        """Encode the texts of several callers; one whose text cannot be encoded does not stop the others."""
        try:
            rows = self.encoder.encode_text([text for asked in together for text in asked.texts])
            for asked in together:
                asked.vectors, rows = rows[: len(asked.texts)], rows[len(asked.texts) :]
        except Exception as error:
            if len(together) == 1:
                together[0].error = error
            else:
                for asked in together:
                    self._encode([asked])

    def nearest(self, *arguments: Any, **named: Any) -> list[Hit]:
        self.update()
        for _ in range(TRIES):
            try:
                with self._engine_lock.reading():
                    if not self.engine.count:
                        return []
                    return super().nearest(*arguments, **named)
            except KeyError:  # a file was removed from the index after the engine had found it
                self.update(again=True)
        raise OSError("the index is changing too fast to be searched: try again when the other command has ended")
