"""Allows one run at a time in a folder: two would overwrite each other's checkpoints and resume points.

The lock is a file lock of the operating system (fcntl) on a file in the folder. It ends with the process, even after a
crash, so nobody has to clean up. The loader's worker processes may outlive the run by seconds, but do not inherit the
lock. It also works between machines if the file system supports such locks, as NFS does; the lock of a machine that
went down may then remain.
"""

import fcntl
import os
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from engine.distributed import Process
from engine.logger import log
from engine.writing import writing

LOCK = "run.lock"


@contextmanager
def one_run_at_a_time(folder: Path, process: Process) -> Iterator[None]:
    """Keep other runs out of `folder` while the context lasts. The main process holds the lock for all processes.

    At the end, delete the lock's file, and the folders that were created for it if they are still empty.

    Raises, on all processes:
        OSError: the folder cannot be written to.
        ValueError: another run holds the lock; the message names its host and process id. The folder stays unchanged.
    """
    held: _Lock | None = process.on_main(lambda: _Lock(folder))
    try:
        yield
    finally:
        if held is not None:
            held.release()


def settings_file(folder: Path, training: bool) -> str:
    """Return the name of the settings file; an evaluation must not overwrite the config.json of a training."""
    return "eval_config.json" if not training and (folder / "config.json").exists() else "config.json"


class _Lock:
    """The lock of a folder, held from construction to `release`."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / LOCK
        self.made = [parent for parent in (folder, *folder.parents) if not parent.exists()]  # innermost first
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
        while True:
            with writing(self.path):
                self.descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o666)
            try:
                fcntl.lockf(self.descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except (BlockingIOError, PermissionError) as error:
                holder = os.pread(self.descriptor, 1000, 0).decode(errors="replace").strip()
                os.close(self.descriptor)
                raise ValueError(
                    f"--output_dir {folder} is in use by another run ({holder or 'just started'}): wait for it "
                    f"to end, or name another folder; only if its machine is down, delete {LOCK}"
                ) from error
            except OSError as error:
                log.warning(
                    "the file system of %s has no locks (%s), so a second run in this folder is not refused", folder,
                    error.strerror,
                )  # fmt: skip
            if self._is_the_file():
                break
            os.close(self.descriptor)  # the file of a run that has just ended and deleted it
        holder = f"process {os.getpid()} on {platform.node()}, since {time.strftime('%Y-%m-%d %H:%M:%S')}\n"
        try:
            with writing(self.path):
                os.ftruncate(self.descriptor, 0)
                os.pwrite(self.descriptor, holder.encode(), 0)
        except OSError:
            self.release()
            raise

    def _is_the_file(self) -> bool:
        try:
            return os.path.samestat(os.stat(self.path), os.fstat(self.descriptor))
        except FileNotFoundError:
            return False

    def release(self) -> None:
        if self._is_the_file():
            with suppress(OSError):
                self.path.unlink()
        os.close(self.descriptor)
        with suppress(OSError):
            for folder in self.made:
                folder.rmdir()
