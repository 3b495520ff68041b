"""Files that the server makes and keeps: pictures and previews, in the folder of the index or, if that cannot be
written, in a temporary one."""

import os
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from search.store import Store

THUMBS, CLIPS = "thumbs", "clips"  # folders in that of the index
MOST_CLIPS = 1 << 30  # bytes of previews that are kept
KEY = 64  # characters of a content's key
ABANDONED = 3600.0  # seconds after which a file that was begun is that of a server which was killed


class Kept:
    """Files by name in `folder`; beyond `most` bytes, those that nobody has asked for the longest go. 0: no limit."""

    def __init__(self, folder: Path, most: int = 0) -> None:
        self.folder, self._most = folder, most
        self._lock = threading.Lock()
        self._begun = folder / "begun"
        with suppress(OSError):
            for path in self._begun.iterdir():
                if path.stat().st_mtime < time.time() - ABANDONED:
                    path.unlink()
        self._making: dict[str, tuple[threading.Lock, int]] = {}

    def get(self, name: str, make: Callable[[Path], object]) -> Path:
        """Return the path of a file, which `make` writes if it is not there. Raises OSError if it cannot be written,
        and what `make` raises."""
        path = self.folder / name
        with self._alone(name):
            if path.is_file():
                if self._most:
                    # The time of reading, for `_drop_old`; a browser that has the file knows it by that of writing.
                    os.utime(path, ns=(time.time_ns(), path.stat().st_mtime_ns))
                return path
            for folder in (path.parent, self._begun):
                folder.mkdir(parents=True, exist_ok=True)
            handle, partial = tempfile.mkstemp(dir=self._begun)
            os.close(handle)
            try:
                make(Path(partial))
                os.replace(partial, path)
            except BaseException:
                with suppress(OSError):
                    os.unlink(partial)
                raise
        if self._most:
            self._drop_old(path)
        return path

    @contextmanager
    def _alone(self, name: str) -> Iterator[None]:
        """Let one thread at a time make a file."""
        with self._lock:
            lock, waiting = self._making.get(name, (threading.Lock(), 0))
            self._making[name] = lock, waiting + 1
        try:
            with lock:
                yield
        finally:
            with self._lock:
                lock, waiting = self._making.pop(name)
                if waiting > 1:
                    self._making[name] = lock, waiting - 1

    def _drop_old(self, new: Path) -> None:
        with self._lock:
            files = []
            for path in self.folder.rglob("*.mp4"):
                with suppress(OSError):
                    status = path.stat()
                    files.append((status.st_atime_ns, status.st_size, path))
            total = sum(size for _, size, _ in files)
            for _, size, path in sorted(files):
                if total <= self._most:
                    break
                if path != new:
                    with suppress(OSError):
                        path.unlink()
                        total -= size


def folder_for(index: Path) -> "tempfile.TemporaryDirectory[str] | None":
    """Return a temporary folder if that of an index cannot be written, else None."""
    try:
        with tempfile.TemporaryFile(dir=index):
            return None
    except OSError:
        return tempfile.TemporaryDirectory(prefix="search_page_")


def thumb_name(content_key: str, moment: str) -> str:
    """Return the name of a thumbnail: not all contents in one folder."""
    return f"{content_key[:2]}/{content_key}/{moment}.jpg"


def sweep_pictures(store: Store) -> None:
    """Remove what was kept of contents that are no longer in an index."""
    there = {file.content_key for file in store.files()}
    for pattern in (f"{THUMBS}/??/*", f"{CLIPS}/*"):
        for folder in store.folder.glob(pattern):
            if len(folder.name) == KEY and folder.name not in there:
                shutil.rmtree(folder, ignore_errors=True)
