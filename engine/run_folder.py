"""One run at a time in a folder: two would write over each other's checkpoints and resume points.

The lock is the system's own on a file in the folder (fcntl). It ends with the process, however that ends, so that
nobody has to clear up after a crash; and the loader's worker processes, which may outlive it by seconds, do not inherit
it. It holds between machines where the file system has such locks, as NFS does; there, that of a machine that went down
may stay.
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
    """Keep other runs out of `folder` as long as the context lasts. The main process holds the lock for all.

    What was made for the lock goes with it: the lock's file, and folders that are still empty.

    Raises, on all processes:
        OSError: the folder cannot be written to.
        ValueError: another run holds it; its host and process id are named, and nothing in the folder is touched.
    """
    held, error = None, None
    if process.is_main:
        try:
            held = _Lock(folder)
        except (OSError, ValueError) as caught:
            error = caught
    process.fail_together(error)
    try:
        yield
    finally:
        if held is not None:
            held.release()


def settings_file(folder: Path, training: bool) -> str:
    """Where a run writes its settings. `config.json` is the training's: an evaluation has a file of its own if there
    already is one."""
    return "eval_config.json" if not training and (folder / "config.json").exists() else "config.json"


class _Lock:
    """The lock of a folder, held from its construction on."""

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
                    f"--output_dir {folder} is in use by another run ({holder or 'which has just begun'}): wait for it "
                    f"to end, or name another folder; only if its machine is down, delete {LOCK}"
                ) from error
            except OSError as error:
                log.warning(
                    "the file system of %s has no locks (%s): nothing keeps a second run out of it", folder,
                    error.strerror,
                )  # fmt: skip
            if self._is_the_file():
                break
            os.close(self.descriptor)  # of a run that ended, and took its file away, in between
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
