"""Opens the SQLite file of an index, and runs statements together or not at all."""

import os
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote

NAME = "index.sqlite"
SCHEMA = 1
APPLICATION = 0x53544F50  # SQLite's application_id: tells this database from any other
WAIT = 60.0  # seconds to wait for another writer's transaction, which takes milliseconds
PAGE = 16384  # bytes; vectors of a file take several pages of 4096, each of them an own read

TABLES = """
CREATE TABLE roots(path BLOB PRIMARY KEY, follow INTEGER NOT NULL);
CREATE TABLE files(
    id INTEGER PRIMARY KEY AUTOINCREMENT, path BLOB NOT NULL UNIQUE, size INTEGER NOT NULL, mtime_ns INTEGER NOT NULL,
    content_key TEXT NOT NULL, duration REAL NOT NULL
);
CREATE INDEX files_by_content ON files(content_key);
CREATE TABLE models(id INTEGER PRIMARY KEY, key TEXT NOT NULL UNIQUE, name TEXT NOT NULL UNIQUE, facts TEXT NOT NULL);
CREATE TABLE vectors(
    model INTEGER NOT NULL REFERENCES models(id) ON DELETE CASCADE,
    file INTEGER NOT NULL REFERENCES files(id) ON DELETE CASCADE,
    count INTEGER NOT NULL, reason BLOB NOT NULL, starts BLOB NOT NULL, ends BLOB NOT NULL, vectors BLOB NOT NULL,
    UNIQUE(model, file)
);
CREATE INDEX vectors_of_a_file ON vectors(file);
"""
COUNTS = "CREATE INDEX IF NOT EXISTS counts_of_a_model ON vectors(model, file, count)"  # listed without their vectors
REMOTE = {"nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "afs", "ncpfs", "fuse.sshfs"}
MOUNTS = Path("/proc/self/mounts")

Own = TypeVar("Own", bound="Database")


class Database:
    """The database of the index in `folder`. Use it as a context, or call `close`.

    `write` opens it to write and makes it if it is not there; otherwise it is opened read-only, which also works on a
    read-only disk. Methods may be called from several threads.

    Raises:
        FileNotFoundError: there is no index in the folder, to be read.
        ValueError: the file is no index, or a newer version of this project wrote it.
        OSError: it cannot be opened or written; here and in all methods.
    """

    def __init__(self, folder: Path, write: bool = False) -> None:
        self.folder, self.path = folder, folder / NAME
        self._lock = threading.RLock()
        if write:
            _refuse_remote(folder)
            folder.mkdir(parents=True, exist_ok=True)
        elif not self.path.is_file():
            raise self._missing()
        with self._explained():
            self._connection = sqlite3.connect(
                self._address(write), timeout=WAIT, isolation_level=None, check_same_thread=False, uri=True
            )
        try:
            with self._explained():
                self._prepare(write)
        except BaseException:
            self._connection.close()
            raise

    def __enter__(self: Own) -> Own:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the database; the last one to close it also empties the write-ahead log."""
        with self._lock:
            self._connection.close()

    def data_version(self) -> int:
        """Return a number that is another one after another connection has changed the database; it takes no time."""
        return int(self._one("PRAGMA data_version"))

    def _address(self, write: bool) -> str:
        address = f"file:{quote(os.fsencode(self.path.absolute()))}"
        if write:
            return address
        log = self.path.with_name(f"{NAME}-wal")
        # Reading needs a writable folder for the log's shared memory, unless nothing can change.
        fixed = not os.access(self.folder, os.W_OK) and not (log.exists() and log.stat().st_size)
        return f"{address}?mode=ro{'&immutable=1' * fixed}"

    def _prepare(self, write: bool) -> None:
        found = self._version()
        is_empty = found == (0, 0) and not self._one("SELECT count(*) FROM sqlite_master")
        if is_empty and not write:  # the command that made the file was killed at once
            raise self._missing()
        if is_empty:
            for setting in (f"page_size={PAGE}", "auto_vacuum=INCREMENTAL", "journal_mode=WAL"):
                self._connection.execute(f"PRAGMA {setting}").fetchall()
            with self._transaction():
                if self._version() == (0, 0):  # nobody else has made it meanwhile
                    for statement in TABLES.split(";")[:-1]:
                        self._connection.execute(statement)
                    self._connection.execute(f"PRAGMA application_id={APPLICATION}")
                    self._connection.execute(f"PRAGMA user_version={SCHEMA}")
            found = self._version()
        application, schema = found
        if application != APPLICATION:
            raise ValueError(f"{self.path} is a database, but not an index of this project: name another folder")
        if schema > SCHEMA:
            raise ValueError(
                f"{self.path}: has schema_version {schema}, written by a newer version of this project, and this "
                f"version reads {SCHEMA}: update it, or make another index"
            )
        if write:
            self._connection.execute(COUNTS)
        for setting in ("foreign_keys=ON", "secure_delete=ON", "synchronous=FULL"):
            self._connection.execute(f"PRAGMA {setting}").fetchall()

    def _missing(self) -> FileNotFoundError:
        return FileNotFoundError(
            f"{self.folder} has no index: make one (python -m search index FOLDER --index {self.folder}), or name "
            "another folder with --index"
        )

    def _version(self) -> tuple[int, int]:
        return self._one("PRAGMA application_id"), self._one("PRAGMA user_version")

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            said = str(error)
            if any(part in said for part in ("not a database", "malformed", "no such table", "no such column")):
                raise ValueError(
                    f"{self.path}: is damaged or no index ({said}): restore a copy, or delete it and index again"
                ) from error
            fix = "check the folder's permissions"
            if "full" in said:
                fix = "make room on its disk, the same command then goes on"
            elif "locked" in said:
                fix = "wait until the other command has ended"
            raise OSError(f"{self.path}: cannot be used ({said}): {fix}") from error

    @contextmanager
    def _transaction(self, kind: str = "IMMEDIATE") -> Iterator[sqlite3.Connection]:
        """Run statements together: all of them take effect, or none."""
        with self._lock, self._explained():
            self._connection.execute(f"BEGIN {kind}")
            try:
                yield self._connection
                self._connection.execute("COMMIT")
            except BaseException:
                if self._connection.in_transaction:  # SQLite itself ends it if the disk is full
                    self._connection.execute("ROLLBACK")
                raise

    def _all(self, statement: str, *values: Any) -> list[Any]:
        with self._lock, self._explained():
            return self._connection.execute(statement, values).fetchall()

    def _one(self, statement: str, *values: Any) -> Any:
        """Return the first value of the first row."""
        return self._all(statement, *values)[0][0]


def _refuse_remote(folder: Path) -> None:
    """Raise ValueError for a folder on a network file system, where the write-ahead log does not work (Linux only)."""
    if not MOUNTS.exists():
        return
    place, longest, kind = os.path.realpath(folder), "", ""
    for line in MOUNTS.read_text(errors="surrogateescape").splitlines():
        _, point, type_, *_ = line.split()
        point = point.replace("\\040", " ")
        if os.path.commonpath((place, point)) == point and len(point) >= len(longest):
            longest, kind = point, type_
    if kind in REMOTE:
        raise ValueError(
            f"--index {folder} is on a network file system ({kind}), where SQLite cannot keep it safe: name a folder "
            "on a local disk; the videos may stay where they are"
        )
