"""Writes files completely or not at all, and names the reason if that fails, such as a full disk."""

import errno
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

PROBE = bytes(1 << 20)


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Write a file by `write`. A reader of `path` sees the old file or the complete new one, even after a crash.

    Raises OSError if it cannot be written; the old file is then unchanged.
    """
    partial = path.with_name(path.name + ".partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(partial)
        _flush(partial)
        os.replace(partial, path)
        _flush(path.parent)  # makes the renaming itself durable
    except Exception as error:
        reason = _reason(error, partial)
        with suppress(OSError):
            partial.unlink()
        raise OSError(f"{path}: could not be saved ({reason}); what was saved before is unharmed") from error


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Add the file's name and a fix to an OSError that is raised while the file is written."""
    try:
        yield
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        fix = "make room on its disk" if full else "check its permissions, or name another place"
        raise OSError(f"{path}: could not be written ({error.strerror or error}); {fix}") from error


def _reason(error: Exception, partial: Path) -> str:
    """Return why a file could not be written, in the system's words."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    if number := re.search(r"\(os error (\d+)\)", str(error)):  # safetensors
        return os.strerror(int(number[1]))
    # torch says that a write failed but not why. The next write gets the reason from the system.
    try:
        with open(partial, "ab") as file:
            file.write(PROBE)
            file.flush()
            os.fsync(file.fileno())
    except OSError as again:
        return again.strerror or str(again)
    return str(error).partition("\n")[0]


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
