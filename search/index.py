"""An index for Python: open it, ask it, take its vectors.

    index = Index.open("my_index", model="stop")
    for hit in index.query(text="a dog jumps", top=5):
        print(hit.file, hit.start, hit.end)

Shapes: N windows, Q parts of a query, E joint embedding.
"""

import datetime
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import cached_property, partial
from pathlib import Path
from typing import NamedTuple, TypeVar
from zipfile import BadZipFile

import numpy as np

from dataloaders.quoting import quoted, shorten, some
from engine.writing import write_atomically
from search.engines.base import Engine
from search.engines.derived import open_bound, open_engine, place, stamp_of
from search.exporting import is_server, open_server
from search.model import Encoder, ModelMismatch, load_encoder, source_of
from search.ranking import (
    above,
    bound_of_nonsense,
    combine,
    join_windows,
    limit_per_file,
    sample_gallery,
    stands_out,
    widening,
)
from search.recall import QUERIES, nonsense_texts, probe_texts
from search.store import PER_FILE, Model, Store, Window

Own = TypeVar("Own", bound="Index")
Weighted = tuple[str, float]  # a text of a query and its weight


class Hit(NamedTuple):
    """A moment that a query found: [start, end) seconds of a file.

    `score` is the cosine with the query. `above` says how far it stands out: by how many standard deviations it lies
    above the mean score of all windows with this query.
    """

    file: str
    start: float
    end: float
    score: float
    above: float
    window_id: int


class Index:
    """One model's view of an index, read-only. Use it as a context, or call `close`."""

    def __init__(
        self, store: Store, model: Model, places: tuple[str, str, str] = ("", "", ""), server: str = ""
    ) -> None:
        self.store, self.model = store, model
        self._places, self._server = places, server

    @classmethod
    def open(
        cls: type[Own],
        folder: str | Path,
        model: str = "",
        *,
        checkpoint: str = "",
        pretrained_clip_name: str = "",
        pretrained_dir: str = "",
        server: str = "",
    ) -> Own:
        """Open an index for the model of this name, or with a key that begins like this; empty: its only model.

        `server`, qdrant://HOST/COLLECTION, searches what `export` sent there. The other arguments say where the model's
        files are now, if they were moved.

        Raises:
            FileNotFoundError: there is no index in the folder.
            ValueError: it has no such model, or several and none is named.
        """
        store = Store(Path(folder))
        try:
            places = checkpoint, pretrained_clip_name, pretrained_dir
            return cls(store, choose_model(store, model), places, server)
        except BaseException:
            store.close()
            raise

    def __enter__(self) -> "Index":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        if "engine" in vars(self):
            self.engine.close()
        self.store.close()

    @cached_property
    def encoder(self) -> Encoder:
        """The model itself, loaded when a query first needs it. Raises ModelMismatch if it is not the one that the
        index was made with, OSError if its files are not there."""
        encoder = load_encoder(source_of(self.model, *self._places), probe=False)
        encoder.check_same(self.model)
        return encoder

    @cached_property
    def engine(self) -> Engine:
        """The engine with all vectors: exact, or approximate beyond `derived.EXACT_UP_TO` windows. Raises ValueError if
        the server has others than the index."""
        if not self._server:
            folder = place(self.store.folder, "ivf", self.model.key)
            texts = partial(self.vectors_of_texts, "probes", probe_texts)
            engine, self.gallery = open_engine(folder, self._ids_at_first, self.model.dimension, self.vectors, texts)
            return engine
        ids, vectors = self.vectors()
        self.gallery = sample_gallery(vectors)  # the rest need not lie in memory twice
        if not is_server(self._server):
            raise ValueError(f"--server {shorten(self._server)}: pass qdrant://HOST[:PORT][/COLLECTION]")
        server = open_server(self._server, self.model)
        if server.count != len(ids):
            raise ValueError(
                f"--server {self._server} has {server.count:,} windows and the index {len(ids):,}: bring it up to date "
                f"(python -m search export --to {self._server})"
            )
        return server

    @cached_property
    def _ids_at_first(self) -> np.ndarray:
        return self.store.ids(self.model)

    def vectors(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the ids of all windows, int64 [N], and their vectors of length 1, fp16 [N, E]."""
        return self.store.matrix(self.model)

    def windows(self, ids: Sequence[int] | np.ndarray) -> list[Window]:
        """Return file, start and end of windows; KeyError if there is none of an id."""
        return self.store.windows(self.model, ids)

    def vector_of(
        self,
        text: str = "",
        *,
        clip: str | Path = "",
        start: float | None = None,
        end: float | None = None,
        image: str | Path = "",
        like: int | None = None,
        also: Sequence[Weighted] = (),
        without: Sequence[Weighted] = (),
    ) -> np.ndarray:
        """Return the vector of a query, fp32 [E]: the weighted sum of its parts, scaled to length 1.

        Arguments and errors are those of `query`.
        """
        parts: list[tuple[np.ndarray, float]] = []
        if text:
            parts.append((self.encode_text([text]), 1.0))
        if clip:
            parts.append((self.encoder.encode_clip(Path(clip), start, end), 1.0))
        if image:
            parts.append((self.encoder.encode_image(Path(image)), 1.0))
        if like is not None:
            parts.append((self._vector(like)[None].astype(np.float32), 1.0))
        for texts, sign in ((also, 1.0), (without, -1.0)):
            parts += [(self.encode_text([words]), sign * weight) for words, weight in texts]
        if not any(weight > 0 for _, weight in parts):
            raise ValueError("the query is empty: give a text, a clip, a picture or a hit to look for")
        vectors, weights = zip(*parts, strict=True)
        return combine(np.concatenate(vectors), np.array(weights))

    def encode_text(self, texts: Sequence[str]) -> np.ndarray:
        """Return one vector of length 1 for each text, fp32 [Q, E]; ValueError for a text without a word."""
        return self.encoder.encode_text(texts)

    def _vector(self, window_id: int) -> np.ndarray:
        try:
            return self.store.vector(self.model, window_id)
        except KeyError:
            raise ValueError(f"the index has no window {hit_name(window_id)}: take one from the last query") from None

    def query(
        self,
        text: str = "",
        *,
        clip: str | Path = "",
        start: float | None = None,
        end: float | None = None,
        image: str | Path = "",
        like: int | None = None,
        also: Sequence[Weighted] = (),
        without: Sequence[Weighted] = (),
        patterns: Sequence[str] = (),
        after: datetime.datetime | None = None,
        before: datetime.datetime | None = None,
        top: int = 20,
        per_file: int = 3,
        alike: float = 1.0,
    ) -> list[Hit]:
        """Return the moments that fit a query best, best first.

        Args:
            text: what happens in the video.
            clip: a video to look for, or its part from `start` to `end` seconds.
            image: a picture to look for, as a clip in which nothing moves.
            like: the id of a window of this index to look for.
            also: further texts with their weights; the parts above have weight 1.
            without: texts whose vectors are subtracted, with their weights.
            patterns: only files whose path matches one of these patterns of the shell.
            after: only files modified at this time or later.
            before: only files modified earlier than this time.
            top: the greatest number of moments.
            per_file: the greatest number of moments of one file.
            alike: a moment is left out if its cosine with a better one of its file is at least this; 1: none is.

        A window that overlaps a better one of its file is left out.

        Raises:
            ValueError: the query is empty or not possible.
            OSError: a file of the query or of the model is not there.
            VideoError: the clip cannot be read.
        """
        if top < 1 or per_file < 1:
            raise ValueError("--top and --per_file are numbers of moments: pass 1 or more")
        vector = self.vector_of(
            text, clip=clip, start=start, end=end, image=image, like=like, also=also, without=without
        )
        return self.nearest(vector, patterns, after, before, top, per_file, alike)

    def nearest(
        self,
        vector: np.ndarray,
        patterns: Sequence[str] = (),
        after: datetime.datetime | None = None,
        before: datetime.datetime | None = None,
        top: int = 20,
        per_file: int = 3,
        alike: float = 1.0,
    ) -> list[Hit]:
        """Return the moments nearest to the vector of a query, fp32 [E]; the rest is as in `query`."""
        if not self.count:
            raise ValueError(
                f"{self.store.folder} has no windows of the model {self.model.name}: index a folder with videos in it"
            )
        vector, allowed = vector[None], None
        if patterns or after or before:
            allowed = self.store.ids_in(self.model, patterns, after, before)
            if not len(allowed):
                raise ValueError("no file of the index passes the filters (--in, --after, --before): allow more")
        most, hits = self.count if allowed is None else len(allowed), []
        for count in widening(top, most):
            scores, ids = (row[0] for row in self._search(vector, count, allowed))
            hits = self._hits(scores[ids >= 0], ids[ids >= 0], vector, per_file, alike)
            if len(hits) >= top:
                break
        return hits[:top]

    @property
    def count(self) -> int:
        """Return how many windows there are."""
        return self.engine.count

    def _search(
        self, vectors: np.ndarray, count: int, allowed: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        return self.engine.search(vectors, count, allowed)

    def _hits(self, scores: np.ndarray, ids: np.ndarray, vector: np.ndarray, per_file: int, alike: float) -> list[Hit]:
        """Return the hits among windows, best first: joined, and at most `per_file` of a file."""
        windows, files = self.windows(ids), ids // PER_FILE
        starts, ends = (np.array([getattr(window, name) for window in windows]) for name in ("start", "end"))
        vectors = np.stack([self.store.vector(self.model, id_) for id_ in ids]) if alike < 1 and len(ids) else None
        first = np.flatnonzero(join_windows(files, starts, ends, vectors, alike) == np.arange(len(ids)))
        first = first[limit_per_file(files[first], per_file)]
        high = above(scores[None], vector, self.gallery)[0]
        return [Hit(*windows[i], float(scores[i]), float(high[i]), int(ids[i])) for i in first.tolist()]

    @cached_property
    def bound(self) -> float:
        """What the best hit of a text stands out by at least if something fits (`ranking.bound_of_nonsense`).

        It is kept beside the index for as long as the windows are the same.
        """
        return self.measure_bound()

    def measure_bound(self) -> float:
        """Return `bound` for the windows that are there now."""
        path = place(self.store.folder, "bound", self.model.key).with_suffix(".json")
        stamp = stamp_of(self.store.ids(self.model))
        return open_bound(path, stamp, lambda: bound_of_nonsense(self._best_of_nonsense()))

    def _best_of_nonsense(self) -> np.ndarray:
        """Return by how much the best hits of texts without a meaning stand out, float64 [Q]."""
        scores, ids = (found[:, 0] for found in self._search(self._nonsense(), 1))
        return self._stands_out(scores, ids)

    def _stands_out(self, scores: np.ndarray, ids: np.ndarray) -> np.ndarray:
        """Return by how much windows with these scores stand out, float64 [n]; KeyError if one is not there."""
        vectors = {id_: self.store.vector(self.model, id_) for id_ in set(ids.tolist())}
        return stands_out(scores, np.stack([vectors[id_] for id_ in ids.tolist()]), self._nonsense())

    @cached_property
    def _kept_nonsense(self) -> np.ndarray:
        return self.vectors_of_texts("nonsense", nonsense_texts)

    def _nonsense(self) -> np.ndarray:
        """Return vectors of texts without a meaning, fp32 [Q, E]."""
        return self._kept_nonsense

    def vectors_of_texts(self, kind: str, texts: Callable[[], list[str]]) -> np.ndarray:
        """Return vectors of some texts that are always the same, fp32 [Q, E]; they are kept beside the index under the
        name of their `kind`, since encoding takes seconds."""
        path = place(self.store.folder, kind, self.model.key).with_suffix(".npy")
        with suppress(OSError, ValueError, EOFError, BadZipFile):  # whatever the file is, it can be made again
            kept = np.load(path)
            if (
                isinstance(kept, np.ndarray)
                and kept.shape == (QUERIES, self.model.dimension)
                and np.isfinite(kept).all()
            ):
                return kept.astype(np.float32)
        vectors = self.encoder.encode_texts(texts())
        with suppress(OSError):  # a folder that cannot be written costs the time again
            write_atomically(path, lambda partial: _save(partial, vectors))
        return vectors

    def fits_well(self, hits: Sequence[Hit]) -> bool:
        """Return whether the hits of a single text have one that fits; other queries have other scores."""
        return bool(hits) and self.standing(hits[0]) >= self.bound

    def standing(self, hit: Hit) -> float:
        """Return by how much a hit of a single text stands out (`ranking.stands_out`)."""
        return float(self._stands_out(np.array([hit.score]), np.array([hit.window_id]))[0])


def _save(path: Path, vectors: np.ndarray) -> None:
    with open(path, "wb") as file:  # given a name, numpy would add an ending
        np.save(file, vectors)


def choose_model(store: Store, name: str = "") -> Model:
    """Return the model of an index with this name, or whose key begins like this; empty: the only one.

    Raises ValueError if there is none, or several.
    """
    models = store.models()
    if not models:
        raise ValueError(f"{store.folder} holds nothing yet: index a folder (python -m search index FOLDER)")
    names = some([model.name for model in models])
    if not name:
        if len(models) > 1:
            raise ValueError(f"{store.folder} has several models: pass --model with one of {names}")
        return models[0]
    found = [model for model in models if model.name == name]
    found = found or [model for model in models if len(name) >= 4 and model.key.startswith(name)]
    if len(found) != 1:
        raise ValueError(f"{store.folder} has no model {quoted(name)}: pass --model with one of {names}")
    return found[0]


def hit_name(window_id: int) -> str:
    """Return the short form of a window's id, "file:number"."""
    file, number = divmod(int(window_id), PER_FILE)
    return f"{file}:{number}"


def parse_hit(text: str) -> int:
    """Return the id of a window from its short form or from the number itself; ValueError for anything else."""
    file, colon, number = text.rpartition(":")
    if not (number.isdecimal() and (file.isdecimal() or not colon) and len(text) <= 24):
        raise ValueError(f"--like {shorten(text)}: is no hit; pass one of a query's output, such as 12:3")
    window_id = int(file or 0) * PER_FILE + int(number)
    if window_id >= 1 << 63 or (colon and int(number) >= PER_FILE):  # the number would be that of another file
        raise ValueError(f"--like {shorten(text)}: no index has such a window; pass one of a query's output")
    return window_id


def parse_moment(name: str, text: str) -> datetime.datetime:
    """Return the moment of a date, in this machine's time zone if it states none; ValueError that begins with `name`
    if it is none."""
    try:
        return datetime.datetime.fromisoformat(text).astimezone()
    except (ValueError, OverflowError):  # the first and the last day of all have no moment in some time zones
        raise ValueError(
            f"{name} {shorten(text)} is no date: pass one such as 2026-01-31 or 2026-01-31T18:00"
        ) from None


__all__ = ["Hit", "Index", "ModelMismatch", "choose_model", "hit_name", "parse_hit", "parse_moment"]
