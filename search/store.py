"""The truth of an index: one SQLite file with its files, its models and all vectors.

A file is committed by one transaction, so that a crash at any moment leaves whole files only. SQLite's write-ahead log
lets several processes write, one after another, and any number read meanwhile. Whatever else lies in the folder, such
as the index of a search engine, is derived from this file.

The id of a window is the id of its file times 2^20 plus its number in the file. An id is never given to other content:
a file that changes gets a new id, and one that moves keeps its own. So a derived index fits if it has the same ids.

Shapes: N windows of a model, n windows of a file, E joint embedding.
"""

import datetime
import fnmatch
import json
import os
import sqlite3
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from dataloaders.quoting import quoted, shorten
from search.database import Database

FACTS = {"dimension", "content", "source", "noted"}  # what every model's facts have
PER_FILE = 1 << 20  # ids of the windows of one file
AT_ONCE = 500  # files that one statement names


class Window(NamedTuple):
    """A moment of a file, in seconds from its start. `file` is a path as `os.fsdecode` gives it."""

    file: str
    start: float
    end: float


class File(NamedTuple):
    """A file of the index. `size` is in bytes, `duration` in seconds (0.0 if it cannot be read)."""

    id: int
    path: str
    size: int
    mtime_ns: int
    content_key: str
    duration: float


class Content(NamedTuple):
    """A file as it was read, before it has an id; the fields are those of `File`."""

    path: str
    size: int
    mtime_ns: int
    content_key: str
    duration: float


class Model(NamedTuple):
    """A model of the index. `key` is the hash of what its vectors depend on, `facts` has it and where the model is."""

    id: int
    key: str
    name: str
    facts: dict[str, Any]

    @property
    def dimension(self) -> int:
        """Return E."""
        return int(self.facts["dimension"])


class Root(NamedTuple):
    """A folder that was indexed; `follow` says whether symbolic links in it were followed."""

    path: str
    follow: bool


class Store(Database):
    """The files, models and vectors of an index; arguments and errors are those of `Database`."""

    # ---- models and roots ----

    def models(self) -> list[Model]:
        """Return all models, in the order in which they came."""
        rows = self._all("SELECT id, key, name, facts FROM models ORDER BY id")
        try:
            models = [Model(id_, key, name, json.loads(facts)) for id_, key, name, facts in rows]
            if all(model.facts.keys() >= FACTS and model.dimension > 0 for model in models):
                return models
        except (ValueError, TypeError, AttributeError):
            pass
        raise ValueError(
            f"{self.path}: is damaged (what it says of its models): restore a copy, or delete it and index again"
        )

    def add_model(self, key: str, name: str, facts: Mapping[str, Any]) -> Model:
        """Add a model, or update the facts of the one with this key; return it. The name must be free."""
        with self._transaction() as connection:
            connection.execute(
                "INSERT INTO models(key, name, facts) VALUES (?, ?, ?) "
                "ON CONFLICT(key) DO UPDATE SET facts = excluded.facts",
                (key, name, json.dumps(facts)),
            )
        return next(model for model in self.models() if model.key == key)

    def remove_model(self, model: Model) -> None:
        """Remove a model with all its vectors."""
        with self._transaction() as connection:
            connection.execute("DELETE FROM models WHERE id = ?", (model.id,))
        self._give_back()

    def roots(self) -> list[Root]:
        """Return the folders that were indexed, sorted."""
        rows = self._all("SELECT path, follow FROM roots ORDER BY path")
        return [Root(os.fsdecode(path), bool(follow)) for path, follow in rows]

    def add_root(self, path: str, follow: bool) -> None:
        """Note a folder that was indexed. It replaces those inside it, and is left out inside another one."""
        known = [root for root in self.roots() if root.path != path]
        if any(is_below(path, root.path) for root in known):
            return
        with self._transaction() as connection:
            for root in known:
                if is_below(root.path, path):
                    connection.execute("DELETE FROM roots WHERE path = ?", (os.fsencode(root.path),))
            connection.execute("INSERT OR REPLACE INTO roots VALUES (?, ?)", (os.fsencode(path), follow))

    def remove_roots(self, below: str) -> None:
        """Forget the noted folders at or inside a folder."""
        with self._transaction() as connection:
            for root in self.roots():
                if is_below(root.path, below):
                    connection.execute("DELETE FROM roots WHERE path = ?", (os.fsencode(root.path),))

    # ---- files ----

    def files(self, below: str = "") -> list[File]:
        """Return the files at or inside a path, all of them by default, sorted by path."""
        rows = self._all("SELECT id, path, size, mtime_ns, content_key, duration FROM files ORDER BY path")
        files = [File(id_, os.fsdecode(path), *rest) for id_, path, *rest in rows]
        return [file for file in files if not below or is_below(file.path, below)]

    def file(self, id_: int) -> File:
        """Return the file with this id; KeyError if there is none."""
        rows = self._all("SELECT id, path, size, mtime_ns, content_key, duration FROM files WHERE id = ?", id_)
        if not rows:
            raise KeyError(id_)
        return File(rows[0][0], os.fsdecode(rows[0][1]), *rows[0][2:])

    def durations(self, ids: Iterable[int]) -> dict[int, float]:
        """Return the seconds of the files with these ids; those that are not there are left out."""
        some = ", ".join(str(int(id_)) for id_ in ids)
        return dict(self._all(f"SELECT id, duration FROM files WHERE id IN ({some})"))

    def tried(self, model: Model) -> dict[int, str]:
        """Return by file id the files that this model has vectors of or failed at, and the reason ("" for none)."""
        rows = self._all("SELECT file, reason FROM vectors WHERE model = ?", model.id)
        return {file: os.fsdecode(reason) for file, reason in rows}

    def put(
        self,
        content: Content,
        model: Model,
        starts: Sequence[float],
        ends: Sequence[float],
        vectors: np.ndarray,
        reason: str = "",
    ) -> None:
        """Write what a model made of a file: float seconds [n], [n] and fp16 [n, E]; `reason` says what is missing.

        Another content at the same path goes, with the vectors of all models. What the model had of the same content is
        replaced, under a new id.
        """
        if len(starts) > PER_FILE:
            raise ValueError(f"{shorten(content.path)}: has {len(starts):,} windows, and an index takes {PER_FILE:,}")
        assert (vectors.dtype, vectors.shape) == (np.float16, (len(starts), model.dimension)), vectors.shape
        blobs = [np.asarray(times, dtype="<f8").tobytes() for times in (starts, ends)]
        with self._transaction() as connection:
            file = self._own(connection, content, model)
            connection.execute(
                "INSERT INTO vectors(model, file, count, reason, starts, ends, vectors) VALUES (?, ?, ?, ?, ?, ?, ?)",
                (model.id, file, len(starts), os.fsencode(reason), *blobs, vectors.astype("<f2").tobytes()),
            )

    def _own(self, connection: sqlite3.Connection, content: Content, model: Model) -> int:
        """Return the id of a file's content, new if the model already has something under the one that it has."""
        path, *rest = content
        name = os.fsencode(path)
        row = connection.execute("SELECT id, content_key FROM files WHERE path = ?", (name,)).fetchone()
        if row is not None and row[1] != content.content_key:
            connection.execute("DELETE FROM files WHERE id = ?", row[:1])
            row = None
        values = (name, *rest)
        new = "INSERT INTO files(path, size, mtime_ns, content_key, duration) VALUES (?, ?, ?, ?, ?)"
        if row is None:
            return int(connection.execute(new, values).lastrowid or 0)
        (old, _), of_model = row, (model.id, row[0])
        if connection.execute("DELETE FROM vectors WHERE model = ? AND file = ?", of_model).rowcount:
            connection.execute("UPDATE files SET path = CAST(path || x'00' AS BLOB) WHERE id = ?", (old,))
            own = int(connection.execute(new, values).lastrowid or 0)
            connection.execute("UPDATE vectors SET file = ? WHERE file = ?", (own, old))
            connection.execute("DELETE FROM files WHERE id = ?", (old,))
            return own
        connection.execute("UPDATE files SET size = ?, mtime_ns = ? WHERE id = ?", (*rest[:2], old))
        return int(old)

    def touch(self, file: File, mtime_ns: int) -> None:
        """Note another modification time of an unchanged file."""
        with self._transaction() as connection:
            connection.execute("UPDATE files SET mtime_ns = ? WHERE id = ?", (mtime_ns, file.id))

    def update(self, moved: Iterable[tuple[File, str, int]], gone: Iterable[File]) -> None:
        """In one transaction, give files their new path and modification time, and remove others with their vectors.

        A file that stands where another one moves to is removed.
        """
        moved = list(moved)
        with self._transaction() as connection:
            connection.executemany("DELETE FROM files WHERE id = ?", [(file.id,) for file in gone])
            # Two steps, because files may have exchanged their names.
            for file, _, _ in moved:
                connection.execute("UPDATE files SET path = CAST(path || x'00' AS BLOB) WHERE id = ?", (file.id,))
            for file, path, mtime_ns in moved:
                connection.execute("DELETE FROM files WHERE path = ?", (os.fsencode(path),))
                values = (os.fsencode(path), mtime_ns, file.id)
                connection.execute("UPDATE files SET path = ?, mtime_ns = ? WHERE id = ?", values)

    def remove(self, files: Iterable[File]) -> None:
        """Remove files with the vectors of all models, and give the space back to the disk."""
        self.update((), files)
        self._give_back()

    def _give_back(self) -> None:
        with self._lock, self._explained():
            self._connection.executescript("PRAGMA incremental_vacuum")  # `execute` would give back a single page

    # ---- reading vectors ----

    def ids(self, model: Model) -> np.ndarray:
        """Return the ids of all windows, int64 [N], ascending, without reading their vectors."""
        return window_ids(self.counts(model).items())

    def counts(self, model: Model) -> dict[int, int]:
        """Return how many windows each file of a model has, by the file's id, ascending; files without are left out."""
        return dict(self._all("SELECT file, count FROM vectors WHERE model = ? AND count ORDER BY file", model.id))

    def matrix(self, model: Model) -> tuple[np.ndarray, np.ndarray]:
        """Return the ids of all windows, int64 [N], ascending, and their vectors, fp16 [N, E], of one moment."""
        with self._transaction("DEFERRED") as connection:
            rows = connection.execute(
                "SELECT file, count FROM vectors WHERE model = ? AND count ORDER BY file", (model.id,)
            ).fetchall()
            vectors = np.empty((sum(count for _, count in rows), model.dimension), dtype=np.float16)
            flat, place = vectors.reshape(-1), 0
            sizes = iter([count * model.dimension for _, count in rows])
            blobs = connection.execute(
                "SELECT vectors FROM vectors WHERE model = ? AND count ORDER BY file", (model.id,)
            )
            for (blob,) in blobs:
                part = self._numbers(blob, "<f2", next(sizes))
                flat[place : place + len(part)] = part
                place += len(part)
        return window_ids(rows), vectors

    def vectors_of(self, model: Model, files: Iterable[int]) -> tuple[np.ndarray, np.ndarray]:
        """Return ids and vectors, as `matrix` does, of the files with these ids; files without windows are left out."""
        rows, parts = [], [np.empty((0, model.dimension), dtype=np.float16)]
        for file in sorted(files):
            statement = "SELECT count, vectors FROM vectors WHERE model = ? AND file = ? AND count"
            for count, blob in self._all(statement, model.id, file):
                rows.append((file, count))
                parts.append(np.frombuffer(blob, dtype="<f2").reshape(count, -1).astype(np.float16))
        return window_ids(rows), np.concatenate(parts)

    def vector(self, model: Model, window_id: int) -> np.ndarray:
        """Return the vector of one window, fp16 [E]; KeyError if there is none."""
        file, number = divmod(int(window_id), PER_FILE)
        rows = self._all("SELECT count, vectors FROM vectors WHERE model = ? AND file = ?", model.id, file)
        if not rows or not 0 <= number < rows[0][0]:
            raise KeyError(window_id)
        vectors = self._numbers(rows[0][1], "<f2", rows[0][0] * model.dimension)
        return vectors.reshape(rows[0][0], -1)[number].astype(np.float16)

    def _numbers(self, blob: bytes, kind: str, count: int) -> np.ndarray:
        """Return so many numbers of a blob; ValueError if it has another size."""
        if len(blob) != count * np.dtype(kind).itemsize:
            raise ValueError(
                f"{self.path}: is damaged (a file's vectors or times have a wrong size): run verify, and forget the "
                "files that it names"
            )
        return np.frombuffer(blob, dtype=kind)

    def windows(self, model: Model, ids: Iterable[int]) -> list[Window]:
        """Return the windows with these ids, in their order; KeyError if there is none of an id."""
        wanted = [divmod(int(id_), PER_FILE) for id_ in ids]
        found: dict[int, tuple[str, np.ndarray, np.ndarray]] = {}
        files = sorted({file for file, _ in wanted})
        for first in range(0, len(files), AT_ONCE):  # statements are few, because each lets other threads go first
            some = ", ".join(map(str, files[first : first + AT_ONCE]))
            statement = (
                "SELECT file, path, count, starts, ends FROM files JOIN vectors ON vectors.file = files.id "
                f"WHERE model = ? AND file IN ({some})"
            )
            for file, path, count, *times in self._all(statement, model.id):
                starts, ends = (self._numbers(blob, "<f8", count) for blob in times)
                found[file] = os.fsdecode(path), starts, ends
        windows = []
        for file, number in wanted:
            if file not in found or not 0 <= number < len(found[file][1]):
                raise KeyError(file * PER_FILE + number)
            path, starts, ends = found[file]
            windows.append(Window(path, float(starts[number]), float(ends[number])))
        return windows

    def ids_in(
        self,
        model: Model,
        patterns: Sequence[str] = (),
        after: datetime.datetime | None = None,
        before: datetime.datetime | None = None,
    ) -> np.ndarray:
        """Return the ids of the windows of some files, int64, ascending.

        A file passes if its path, whole or from the indexed folder on, matches one of the shell's `patterns` (all if
        there are none; * also matches /), and its modification time lies in [`after`, `before`).
        """
        roots = [root.path for root in self.roots()]
        low, high = (None if moment is None else int(moment.timestamp() * 1e9) for moment in (after, before))
        rows = self._all(
            "SELECT file, count, path, mtime_ns FROM vectors JOIN files ON files.id = file "
            "WHERE model = ? AND count ORDER BY file",
            model.id,
        )
        return window_ids(
            (file, count)
            for file, count, path, mtime_ns in rows
            if (low is None or mtime_ns >= low)
            and (high is None or mtime_ns < high)
            and (not patterns or _matches(os.fsdecode(path), patterns, roots))
        )

    def failures(self, model: Model) -> list[tuple[str, str]]:
        """Return path and reason of the files that a model could not read, or not all of, sorted by path."""
        rows = self._all(
            "SELECT path, reason FROM vectors JOIN files ON files.id = file WHERE model = ? AND length(reason) "
            "ORDER BY path",
            model.id,
        )
        return [(os.fsdecode(path), os.fsdecode(reason)) for path, reason in rows]

    def totals(self, model: Model) -> tuple[int, int, float]:
        """Return how many files a model has vectors of, how many windows, and the seconds of these files."""
        return self._all(
            "SELECT count(*), coalesce(sum(count), 0), coalesce(sum(duration), 0.0) FROM vectors "
            "JOIN files ON files.id = file WHERE model = ? AND count",
            model.id,
        )[0]

    def check(self) -> list[str]:
        """Return what is wrong with the database, one sentence each."""
        problems = [f"{self.path}: {row[0]}" for row in self._all("PRAGMA quick_check") if row[0] != "ok"]
        if problems:
            return problems
        for model in self.models():
            statement = (
                "SELECT path, file, count, starts, ends FROM vectors JOIN files ON files.id = file WHERE model = ?"
            )
            for path, file, count, starts, ends in self._all(statement, model.id):
                name = quoted(os.fsdecode(path))
                blob = self._one("SELECT vectors FROM vectors WHERE model = ? AND file = ?", model.id, file)
                if len(blob) != 2 * count * model.dimension or len(starts) != 8 * count or len(ends) != 8 * count:
                    problems.append(f"{name}: its vectors of {model.name} have another size than {count} windows")
                    continue
                rows = np.frombuffer(blob, dtype="<f2").reshape(count, model.dimension).astype(np.float32)
                if not np.allclose(np.linalg.norm(rows, axis=1), 1, atol=0.01):  # also False where a value is NaN
                    problems.append(f"{name}: its vectors of {model.name} do not have length 1")
        return problems


def is_below(path: str, folder: str) -> bool:
    """Return whether an absolute path is a folder, or lies inside it."""
    return path == folder or path.startswith(folder.rstrip(os.sep) + os.sep)


def window_ids(rows: Iterable[tuple[int, int]]) -> np.ndarray:
    """Return the ids of the windows of (file, count)s, int64."""
    files, counts = np.array(list(rows), dtype=np.int64).reshape(-1, 2).T
    firsts = np.cumsum(counts) - counts
    return np.repeat(files * PER_FILE - firsts, counts) + np.arange(counts.sum(), dtype=np.int64)


def _matches(path: str, patterns: Sequence[str], roots: Sequence[str]) -> bool:
    names = [path, *(os.path.relpath(path, root) for root in roots if is_below(path, root))]
    return any(fnmatch.fnmatchcase(name, pattern) for name in names for pattern in patterns)
