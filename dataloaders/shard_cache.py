"""Shards that lie on a server, and a folder that keeps as many of them as there is room for.

All processes of a machine share the folder. Three locks of the operating system (flock) keep it in order; they end with
the process that holds them:

    cache.lock        who makes room. It removes the shards that were used least recently
    000000.tar.lock   who downloads this shard. Others wait. If it fails, it leaves the reason there for them
    000000.tar        shared by those who use the shard, so that it is not removed

A process announces the shards that it will read. They are downloaded in the background and then held.
"""

import fcntl
import math
import os
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from multiprocessing import Array
from pathlib import Path
from typing import Any

from dataloaders.shard_download import Patience, Source, fetch
from dataloaders.shard_index import ShardIndex

AT_ONCE = 4  # downloads of a process
RETRY = 0.5  # seconds until a download that failed, or had no room, is tried again
PART = ".part"


@dataclass(frozen=True)
class CachedShards:
    """The shards of a server in the folder `root`, which holds at most `most` bytes.

    `name` tells the shards of one index from those of another. `patience` is how many seconds a download is tried
    again. Only the process that calls `announce` downloads ahead; any process may call `opened`.
    """

    source: Source
    index: ShardIndex
    root: Path
    name: str
    most: int
    patience: float
    counts: Any = field(default_factory=lambda: Array("q", 2))  # shards and bytes, over a process and its workers

    def check(self, streams: int, samples: int) -> None:
        """Check that the shards fit which `streams` streams need at once, each for `samples` samples in a row, and that
        the folder can be used; raises ValueError or OSError."""
        shards = self.index.shards
        # A window may begin and end within a shard, and the next one is downloaded meanwhile.
        each = math.ceil(samples / min(shard.samples for shard in shards)) + 2
        most = sum(sorted((shard.bytes for shard in shards), reverse=True)[: streams * each])
        if most > self.most:
            raise ValueError(
                f"--shard_cache_gb {self.most / 1e9:g} is too small for the {min(streams * each, len(shards))} shards "
                f"that are in use at once: pass --shard_cache_gb {math.ceil(most / 1e7) / 100:g} or more, or fewer "
                "--shard_streams."
            )
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            with _locked(self.root / "cache.lock"):
                pass
        except OSError as error:
            raise OSError(
                f"--shard_cache {self.root}: cannot be used ({error.strerror or error}); name a folder on a disk of "
                "this machine."
            ) from error

    def path(self, shard: int) -> Path:
        """Return where a shard lies if it is here."""
        return self.root / self.name / self.index.shards[shard].file

    @contextmanager
    def opened(self, shard: int) -> Iterator[Path]:
        """Return the path of a shard, which stays there within the context; download it first if it is not here."""
        while (descriptor := self.held(shard)) is None:
            self.get(shard)
        try:
            yield self.path(shard)
        finally:
            os.close(descriptor)

    def held(self, shard: int) -> int | None:
        """Return a descriptor that keeps a shard here until it is closed; None if the shard is not here."""
        try:
            descriptor = os.open(self.path(shard), os.O_RDONLY)
        except FileNotFoundError:
            return None
        fcntl.flock(descriptor, fcntl.LOCK_SH)
        if not os.fstat(descriptor).st_nlink:  # removed before it was locked
            os.close(descriptor)
            return None
        os.utime(descriptor)
        return descriptor

    def get(self, shard: int, wait: bool = True) -> None:
        """Download a shard unless it is here. Without `wait`, do nothing if there is no room now.

        Raises OSError if it cannot be downloaded, or if there is no room for it.
        """
        began, path, entry = time.time(), self.path(shard), self.index.shards[shard]
        path.parent.mkdir(parents=True, exist_ok=True)
        with _locked(_lock_of(path)) as lock:
            if path.exists():
                return
            if os.fstat(lock).st_mtime >= began and (reason := os.pread(lock, 10_000, 0)):
                raise OSError(reason.decode())
            part = path.with_name(f"{path.name}.{entry.bytes}{PART}")
            try:
                if not self._make_room(entry.bytes, part, wait):
                    return
                fetch(self.source, entry, part, self.patience)
            except OSError as error:
                os.ftruncate(lock, 0)
                os.pwrite(lock, str(error).encode(), 0)
                raise
            part.replace(path)
        with self.counts.get_lock():
            self.counts[0] += 1
            self.counts[1] += entry.bytes

    def read_ahead(self) -> "ReadAhead":
        """Return what downloads the shards that it is called with, in the background."""
        return ReadAhead(self)

    def fetched(self) -> tuple[int, int]:
        """Return the number of shards that this process and its workers downloaded, and their bytes."""
        return self.counts[0], self.counts[1]

    def _make_room(self, size: int, part: Path, wait: bool) -> bool:
        """Remove shards until there is room for `size` bytes, and reserve it by the empty or begun file `part`."""
        patience = Patience(self.patience)
        while True:
            with _locked(self.root / "cache.lock"):
                if self._evict(size, part):
                    part.touch()
                    return True
            if not wait:
                return False
            full = OSError(f"--shard_cache {self.root} is full of shards in use, raise --shard_cache_gb")
            patience.wait_or_raise(full, part.name)

    def _evict(self, size: int, part: Path) -> bool:
        """Remove files that nobody uses, the least recently used ones first; return whether there is room."""
        there = []
        for file in self.root.rglob("*.tar*"):
            # A tar without a lock beside it was not downloaded by us, and stays.
            if file.suffix in (".tar", PART) and file != part and _lock_of(file).exists():
                with suppress(FileNotFoundError):  # a download that has just ended
                    status = file.stat()
                    there.append((status.st_mtime, status.st_size if file.suffix == ".tar" else _reserved(file), file))
        total = size + sum(bytes_ for _, bytes_, _ in there)
        for _, bytes_, file in sorted(there):
            if total <= self.most:
                break
            if _remove_unused(file):
                total -= bytes_
        return total <= self.most


class ReadAhead:
    """Downloads shards in the order in which they will be read, and holds them until they are not announced any more.

    Failures are left to the process that needs the shard.
    """

    def __init__(self, store: CachedShards) -> None:
        self.store = store
        self.wanted: list[int] = []
        self.held: dict[int, int] = {}  # descriptors
        self.busy: set[int] = set()
        self.changed = threading.Condition()
        self.threads: list[threading.Thread] = []

    def __call__(self, shards: Sequence[int]) -> None:
        """Download and hold these shards, the first ones first, and let go of all others."""
        with self.changed:
            self.wanted = list(shards)
            for shard in self.held.keys() - set(shards):
                _let_go(self.held.pop(shard))
            # Not before the first call: a fork takes no threads along. Daemons, so that no download keeps a run alive.
            while len(self.threads) < AT_ONCE:
                self.threads.append(threading.Thread(target=self._work, daemon=True))
                self.threads[-1].start()
            self.changed.notify_all()

    def _work(self) -> None:
        while True:
            with self.changed:
                while (shard := self._next()) is None:
                    self.changed.wait()
                self.busy.add(shard)
            descriptor = None
            with suppress(OSError):
                self.store.get(shard, wait=False)
                descriptor = self.store.held(shard)
            if descriptor is None:
                time.sleep(RETRY)
            with self.changed:
                self.busy.remove(shard)
                if descriptor is not None and shard in self.wanted:
                    self.held[shard] = descriptor
                elif descriptor is not None:
                    _let_go(descriptor)
                self.changed.notify_all()

    def _next(self) -> int | None:
        return next((shard for shard in self.wanted if shard not in self.held and shard not in self.busy), None)


def _let_go(descriptor: int) -> None:
    """Release a lock. Closing would not: a process that was forked in the meantime has the descriptor too."""
    fcntl.flock(descriptor, fcntl.LOCK_UN)
    os.close(descriptor)


@contextmanager
def _locked(path: Path) -> Iterator[int]:
    """Wait for the lock of a file, which is made if it is missing; return its descriptor."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield descriptor
    finally:
        _let_go(descriptor)


def _lock_of(file: Path) -> Path:
    """Return the lock of a shard's download, from the path of the shard or of its begun download."""
    tar = file.name if file.suffix == ".tar" else ".".join(file.name.split(".")[:-2])
    return file.with_name(tar + ".lock")


def _reserved(part: Path) -> int:
    """Return how many bytes a begun download will have; its name tells."""
    return int(part.name.split(".")[-2])


def _remove_unused(file: Path) -> bool:
    """Remove a shard or a begun download unless somebody uses it; return whether it is gone."""
    lock = file if file.suffix == ".tar" else _lock_of(file)
    try:
        descriptor = os.open(lock, os.O_RDONLY)
    except FileNotFoundError:
        return not file.exists()
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        file.unlink(missing_ok=True)
        return True
    except BlockingIOError:
        return False
    finally:
        _let_go(descriptor)
