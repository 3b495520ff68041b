"""Files that the server makes and keeps: pictures and previews, in the folder of the index or, if that cannot be
written, in a temporary one."""

import os
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

MOST_CLIPS = 1 << 30  # bytes of previews that are kept


class Kept:
    """Files by name in `folder`; beyond `most` bytes, those that nobody has asked for the longest go. 0: no limit."""

    def __init__(self, folder: Path, most: int = 0) -> None:
        self.folder, self._most = folder, most
        self._lock = threading.Lock()
        self._making: dict[str, tuple[threading.Lock, int]] = {}

    def get(self, name: str, make: Callable[[Path], object]) -> Path:
        """Return the path of a file, which `make` writes if it is not there. Raises OSError if it cannot be written,
        and what `make` raises."""
        path = self.folder / name
        with self._alone(name):
            if path.is_file():
                with suppress(OSError):  # a folder that is read-only: the order of use does not matter
                    os.utime(path)
                return path
            path.parent.mkdir(parents=True, exist_ok=True)
            handle, partial = tempfile.mkstemp(".partial", dir=path.parent)
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
                    files.append((status.st_mtime, status.st_size, path))
            total = sum(size for _, size, _ in files)
            for _, size, path in sorted(files):
                if total <= self._most:
                    break
                if path != new:
                    with suppress(OSError):
                        path.unlink()
                        total -= size
