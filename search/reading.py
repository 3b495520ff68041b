"""Reads video files in worker processes, window by window; a decoder that hangs or crashes costs one file.

Each file is decoded once (`FrameReader.read_windows`). A worker is killed if nothing came from it for a while, and
replaced. It ends by itself when this process is gone.
"""

import math
import multiprocessing
import os
import signal
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from dataloaders.frames import FrameReader
from dataloaders.quoting import shorten
from dataloaders.video_file import VideoError, length_of
from search.shots import CutFinder, Window, move_borders, reach
from search.store import PER_FILE
from search.walk import Found, content_key

WHOLE = 1.5  # windows; a shorter file is one window
ENOUGH = 1e-3  # seconds; a rest this short at the end is no window of its own


class Task(NamedTuple):
    """A file to read. If its content has `known_key`, it is not decoded. `known_key` is "" for a new file."""

    found: Found
    known_key: str = ""


class Begun(NamedTuple):
    """The first message about a file: its content's key and its seconds (0.0 if it states no frame rate)."""

    content_key: str
    duration: float


class Read(NamedTuple):
    """A window: [start, end) seconds, video uint8 [T, 3, S, S] and frame_mask bool [T]."""

    start: float
    end: float
    video: np.ndarray
    frame_mask: np.ndarray


class Ended(NamedTuple):
    """The last message about a file. `reason` says why it, or a part of it, could not be read; "" for nothing.

    `content_key` is set if it has the known content and was not decoded. `changed` says that somebody wrote to the file
    meanwhile, so that what was read does not count.
    """

    reason: str = ""
    content_key: str = ""
    changed: bool = False


Message = Begun | Read | Ended


def count_windows(duration: float, window: float, stride: float) -> int:
    """Return how many windows `cut` gives."""
    if duration < WHOLE * window:
        return 1
    return max(1, math.ceil((duration - window - ENOUGH) / stride)) + 1


def cut(duration: float, window: float, stride: float) -> list[Window]:
    """Return the windows of a file as (start, end) in seconds; (None, None) is the whole file.

    They begin every `stride` seconds, and the last one ends with the file. A file shorter than 1.5 windows, or of
    unknown length (0.0), is one window.
    """
    count = count_windows(duration, window, stride)
    if count == 1:
        return [(None, None)]
    starts = [number * stride for number in range(count - 1)]
    return [*((start, start + window) for start in starts), (duration - window, duration)]


def read_picture(path: Path) -> np.ndarray:
    """Return the pixels of a JPEG, PNG or WebP file, uint8 [H, W, 3] RGB. Raises OSError if there is no such file, and
    ValueError if it is no picture."""
    import cv2

    picture = None
    with suppress(cv2.error):  # raised for a header that promises more pixels than OpenCV takes
        picture = cv2.imdecode(np.frombuffer(path.read_bytes() or b"\0", dtype=np.uint8), cv2.IMREAD_COLOR)
    if picture is None:
        raise ValueError(f"--image {path}: is not a picture that can be read; pass a JPEG, PNG or WebP file")
    return cv2.cvtColor(picture, cv2.COLOR_BGR2RGB)


@dataclass(frozen=True)
class FileReader:
    """Reads one file into the windows that an index holds; a call yields the messages about it. With `shots`, windows
    begin and end at cuts that are near (search/shots.py)."""

    frames: FrameReader
    window: float
    stride: float
    shots: bool = False

    def __call__(self, task: Task) -> Iterator[Message]:
        path = task.found.path
        try:
            if self._differs(task.found):
                yield Ended(changed=True)
                return
            key = content_key(path)
            if key == task.known_key:
                yield Ended(content_key=key)
                return
            yield Begun(key, duration := length_of(Path(path)))
            if count_windows(duration, self.window, self.stride) > PER_FILE:
                raise VideoError(
                    f"{path} states a length of {duration:.0f} s, more than the {PER_FILE:,} windows that a file "
                    "may have: re-encode it (ffmpeg -i IN -c:v libx264 OUT.mp4), or pass a longer --stride."
                )
            windows, reason = cut(duration, self.window, self.stride), ""
            try:
                for (start, end), video, mask in self._read(Path(path), windows):
                    yield Read(start or 0.0, duration if end is None else end, video.numpy(), mask.numpy())
            except VideoError as error:  # the other windows of the file have come
                reason = str(error)
            yield Ended(reason, changed=self._differs(task.found))
        except FileNotFoundError:
            yield Ended(changed=True)
        except (VideoError, OSError) as error:
            yield Ended(f"{path}: cannot be read ({error.strerror})" if isinstance(error, OSError) else str(error))
        except Exception as error:  # one odd file must not stop thousands of others
            yield Ended(f"{path}: cannot be read ({type(error).__name__}: {shorten(str(error), 200)})")

    def _read(self, path: Path, windows: list[Window]) -> Iterator[tuple[Window, torch.Tensor, torch.Tensor]]:
        """Yield windows with what a `FrameReader` reads of each. Raises VideoError after the last one if one failed.

        Which windows move is known only after their frames have passed, so those that do are read in a second pass.
        """
        if not self.shots or len(windows) == 1:
            for index, video, mask in self.frames.read_windows(path, windows):
                yield windows[index], video, mask
            return
        finder, within, waiting = (
            CutFinder(),
            reach(self.window, self.stride),
            deque[tuple[int, torch.Tensor, torch.Tensor]](),
        )
        error: VideoError | None = None

        def settled() -> Iterator[tuple[Window, torch.Tensor, torch.Tensor]]:
            """Yield the windows that have come and stay as they are."""
            placed = move_borders(windows, finder.cuts, within)
            while waiting and (windows[waiting[0][0]][1] or 0.0) + within <= finder.decided:
                index, video, mask = waiting.popleft()
                if placed[index] == windows[index]:
                    yield windows[index], video, mask

        try:
            for read in self.frames.read_windows(path, windows, watch=finder):
                waiting.append(read)
                yield from settled()
        except VideoError as raised:
            error = raised
        finder.finish()
        yield from settled()
        placed = move_borders(windows, finder.cuts, within)
        moved = [new for new, old in zip(placed, windows, strict=True) if new != old]
        if moved:
            for index, video, mask in self.frames.read_windows(path, moved):
                yield moved[index], video, mask
        if error:
            raise error

    def _differs(self, found: Found) -> bool:
        status = os.stat(found.path)
        return (status.st_size, status.st_mtime_ns) != found[1:]


class Readers:
    """Worker processes that read files in the order given.

    Calling it yields (task, message)s, those of one file in their order and mixed with those of others. A worker that
    sends nothing for `limit` seconds is killed; its file then ends with a reason, like one whose worker crashes. Use it
    as a context, which ends the processes.
    """

    def __init__(self, read: Callable[[Task], Iterable[Message]], jobs: int, limit: float) -> None:
        self._read, self._jobs, self._limit = read, jobs, limit
        # Forks start at once and inherit the reader. They neither compute on a GPU nor touch the database.
        self._context: Any = multiprocessing.get_context("fork")
        self._workers: list[_Worker] = []

    def __enter__(self) -> "Readers":
        return self

    def __exit__(self, *error: object) -> None:
        for worker in self._workers:
            worker.end()
        self._workers = []

    def __call__(self, tasks: Iterable[Task]) -> Iterator[tuple[Task, Message]]:
        queue = iter(tasks)
        while True:
            for worker in self._workers:
                if worker.task is None and (task := next(queue, None)) is not None:
                    worker.give(task)
            while len(self._workers) < self._jobs and (task := next(queue, None)) is not None:
                self._workers.append(_Worker(self._context, self._read, [w.connection for w in self._workers]))
                self._workers[-1].give(task)
            busy = [worker for worker in self._workers if worker.task is not None]
            if not busy:
                return
            ready = set(wait([worker.connection for worker in busy], timeout=self._until(busy)))
            for worker in busy:
                task = worker.task
                assert task is not None
                if worker.connection in ready:
                    try:
                        message = worker.receive()
                    except (EOFError, OSError):
                        yield task, Ended(self._replace(worker, f"{task.found.path}: {worker.death()}"))
                        continue
                    yield task, message
                elif worker.silent() > self._limit:
                    said = f"{task.found.path}: its decoder did not get on for {self._limit:g} s (--time_limit)"
                    yield task, Ended(self._replace(worker, said))

    def _until(self, busy: "list[_Worker]") -> float:
        """Return the seconds until the first of the workers has been silent for too long."""
        return max(0.0, self._limit - max(worker.silent() for worker in busy)) + 0.01

    def _replace(self, worker: "_Worker", reason: str) -> str:
        worker.end()
        self._workers.remove(worker)
        return reason


class _Worker:
    """One process, and the file it reads (None: it waits). `connection` leads to it."""

    def __init__(self, context: Any, read: Callable[[Task], Iterable[Message]], others: list[Connection]) -> None:
        self.connection, theirs = context.Pipe()
        # A fork inherits all open files. While another process holds an end, its reader is not told that we are gone.
        inherited = [*others, self.connection]
        self._process = context.Process(target=_work, args=(read, theirs, inherited), daemon=True)
        self._process.start()
        theirs.close()
        self.task: Task | None = None
        self._heard = time.monotonic()

    def give(self, task: Task) -> None:
        self.task, self._heard = task, time.monotonic()
        with suppress(OSError):  # it died while it waited; receiving will tell
            self.connection.send(task)

    def receive(self) -> Message:
        """Return the next message about the task; EOFError if the process has died."""
        message: Message = self.connection.recv()
        self._heard = time.monotonic()
        if isinstance(message, Ended):
            self.task = None
        return message

    def silent(self) -> float:
        return time.monotonic() - self._heard

    def death(self) -> str:
        """Return how the process died, for a message."""
        self._process.join(5)
        code = self._process.exitcode
        how = signal.Signals(-code).name if code and code < 0 else f"exit code {code}"
        return f"its decoder crashed ({how}): re-encode it (ffmpeg -i IN -c:v libx264 OUT.mp4)"

    def end(self) -> None:
        self._process.kill()
        self._process.join()
        self.connection.close()


def _work(read: Callable[[Task], Iterable[Message]], connection: Connection, inherited: list[Connection]) -> None:
    """Read files until the other end is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends this process
    torch.set_num_threads(1)
    for other in inherited:
        other.close()
    with suppress(EOFError, OSError):
        while True:
            for message in read(connection.recv()):
                connection.send(message)
