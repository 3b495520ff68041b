"""Brings an index up to date with a folder: finds what changed, reads it, encodes it, and commits file by file.

Several processes share the files; each commits its own. Stopped at any moment, the same call goes on where it was.
"""

import csv
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from dataloaders.video_file import VideoError, length_of
from engine.writing import write_atomically
from search.model import Clip, Encoder
from search.page.kept import sweep_pictures
from search.reading import Begun, Ended, FileReader, Message, Read, Readers, Task, count_windows
from search.store import PER_FILE, Content, File, Model, Store, is_below
from search.walk import Changes, Walked, check_gone, compare, walk

FAILURES = "failures.csv"
BATCH = 16  # windows encoded at once
LIMIT = 120.0  # seconds without a window after which a decoder counts as hung


@dataclass(frozen=True)
class Options:
    """How a folder is indexed: `jobs` decoding processes, `limit` seconds of silence allowed to each, `batch_size`
    windows encoded at once; `follow` symbolic links; `yes`, more than half of the files may be gone; `retry` files that
    failed before."""

    jobs: int = 1
    limit: float = LIMIT
    batch_size: int = BATCH
    follow: bool = False
    yes: bool = False
    retry: bool = False


@dataclass(frozen=True)
class Plan:
    """What is to be done in a folder: `tasks` are the files to read, the largest first."""

    walked: Walked
    changes: Changes
    tasks: list[Task]


@dataclass
class Report:
    """What one process did. `files` gave windows; `changed` ones were written to while read, and wait for next time."""

    files: int = 0
    windows: int = 0
    touched: int = 0
    failed: int = 0
    changed: int = 0
    seconds: float = 0.0  # of video

    def plus(self, other: "Report") -> "Report":
        """Return the sums."""
        return Report(**{name: value + getattr(other, name) for name, value in vars(self).items()})


def make_plan(folder: str, known: Sequence[File], tried: dict[int, str], index: str, options: Options) -> Plan:
    """Find out what is to be done in a folder, without writing anything.

    `known` are the files of the index in it, and `tried` those of them that the model has been given, with the reason
    why it failed ("" for none). Raises OSError if the folder cannot be read, and ValueError if more than half of the
    known files are gone.
    """
    walked = walk(folder, options.follow, index)
    changes = compare(walked, known)
    check_gone(folder, changes.gone, known, options.yes)

    def is_done(file: File) -> bool:
        return file.id in tried and not (options.retry and tried[file.id])

    tasks = [
        Task(found, file.content_key if file is not None and is_done(file) else "") for found, file in changes.to_read
    ]
    tasks += [Task(found) for found, file in changes.unchanged if not is_done(file)]
    tasks += [Task(found) for file, found in changes.moved if not is_done(file)]
    # The largest first: the processes then end at about the same time.
    tasks.sort(key=lambda task: (-task.found.size, task.found.path))
    return Plan(walked, changes, tasks)


def apply_plan(store: Store, plan: Plan, folder: str, options: Options) -> None:
    """Write to the index what needs no reading: moved files and vanished ones."""
    changes = plan.changes
    store.add_root(folder, options.follow)
    if changes.moved or changes.gone:
        store.update([(file, found.path, found.mtime_ns) for file, found in changes.moved], [])
        store.remove(changes.gone)
    sweep_pictures(store)


@dataclass(eq=False)
class _Open:
    """A file that is being read: what came of it so far, and the window that came last."""

    task: Task
    begun: Begun | None = None
    windows: list[tuple[float, float]] = field(default_factory=list)
    rows: dict[int, np.ndarray] = field(default_factory=dict)
    last: Read | None = None
    ended: Ended | None = None

    def take(self, read: Read) -> bool:
        """Note a window; return False if it shows the same as the last one, which then becomes longer.

        A gap between the times of two frames, or a picture that stands still, would else be thousands of windows.
        """
        last, self.last = self.last, read
        touch = last is not None and last.start <= read.start <= last.end
        if last is not None and touch and all(map(np.array_equal, last[2:], read[2:])):
            start, end = self.windows[-1]
            self.windows[-1] = start, max(end, read.end)
            return False
        self.windows.append((read.start, read.end))
        return True


class Indexer:
    """Encodes the windows of files as they come, and commits each file when its last window is encoded."""

    def __init__(self, store: Store, model: Model, encoder: Encoder, options: Options) -> None:
        self.store, self.model, self.encoder, self.options = store, model, encoder, options
        self.report = Report()
        self._known: dict[str, File] = {}
        self._open: dict[str, _Open] = {}
        self._waiting: list[tuple[_Open, int, Read]] = []

    def run(self, tasks: Sequence[Task], quiet: bool = False) -> Report:
        """Read the files of some tasks, and write what the model makes of them into the index."""
        self._known = {file.path: file for file in self.store.files()}
        bar = tqdm(total=len(tasks), desc="files", unit="file", disable=quiet or None, leave=False, dynamic_ncols=True)
        with bar, read_files(self.encoder, self.options) as readers:
            for task, message in readers(tasks):
                self._take(task, message)
                if isinstance(message, Ended):
                    bar.update()
            self._encode()
        assert not self._open, "a file has neither ended nor failed"
        return self.report

    def _take(self, task: Task, message: Message) -> None:
        state = self._open.setdefault(task.found.path, _Open(task))
        if isinstance(message, Begun):
            state.begun = message
        elif isinstance(message, Read):
            if state.take(message):
                self._waiting.append((state, len(state.windows) - 1, message))
            if len(self._waiting) >= self.options.batch_size:
                self._encode()
        else:
            state.ended = message
            self._commit(state)

    def _encode(self) -> None:
        """Encode the windows that wait, which may be of several files."""
        waiting, self._waiting = self._waiting, []
        if not waiting:
            return
        rows = self.encoder.encode_windows([_as_clip(read) for _, _, read in waiting])
        for (state, number, _), row in zip(waiting, rows, strict=True):
            state.rows[number] = row
        for state in dict.fromkeys(state for state, _, _ in waiting):
            self._commit(state)

    def _commit(self, state: _Open) -> None:
        """Write a file into the index if all of it has come."""
        ended, found = state.ended, state.task.found
        if ended is None or len(state.rows) < len(state.windows):
            return
        del self._open[found.path]
        known = self._known.get(found.path)
        if ended.changed:
            self.report.changed += 1
        elif ended.content_key:
            assert known is not None
            self.store.touch(known, found.mtime_ns)
            self.report.touched += 1
        else:
            self._put(state, self._content(state, known), ended.reason)

    def _content(self, state: _Open, known: File | None) -> Content:
        found, begun = state.task.found, state.begun
        if begun is None:  # its content could not be read; that of an unchanged file is known
            is_same = known is not None and (known.size, known.mtime_ns) == found[1:]
            begun = Begun(known.content_key, known.duration) if is_same and known is not None else Begun("", 0.0)
        return Content(*found, *begun)

    def _put(self, state: _Open, content: Content, reason: str) -> None:
        order = sorted(range(len(state.windows)), key=state.windows.__getitem__)
        finite = [number for number in order if np.isfinite(state.rows[number]).all()]
        if len(finite) < len(order) and not reason:
            lost = len(order) - len(finite)
            reason = f"{content.path}: {lost} of its {len(order)} windows have no finite vector; use --precision fp32"
        starts, ends = zip(*(state.windows[number] for number in finite), strict=True) if finite else ((), ())
        vectors = np.stack([state.rows[number] for number in finite]) if finite else np.empty((0, self.model.dimension))
        self.store.put(content, self.model, starts, ends, vectors.astype(np.float16), reason)
        self.report.files += bool(finite)
        self.report.windows += len(finite)
        self.report.failed += bool(reason)
        self.report.seconds += content.duration


def read_files(encoder: Encoder, options: Options) -> Readers:
    """Return the worker processes that read files for a model."""
    return Readers(
        FileReader(encoder.reader, encoder.window, encoder.stride, encoder.shots), options.jobs, options.limit
    )


@dataclass(frozen=True)
class Forecast:
    """What indexing would take: seconds of video, windows, seconds of computing, and the file measured for it."""

    seconds: float
    windows: int
    computing: float
    measured: str
    failed: int


def forecast(encoder: Encoder, tasks: Sequence[Task], options: Options) -> Forecast:
    """Look at the headers of all files of some tasks, and read and encode one of middle length, for an estimate."""
    lengths: dict[str, float] = {}
    failed = 0
    with Readers(_Survey(), options.jobs, options.limit) as readers:
        for task, message in readers(tasks):
            if isinstance(message, Begun):
                lengths[task.found.path] = message.duration
            elif isinstance(message, Ended) and message.reason:
                failed += 1
    counts = {path: count_windows(length, encoder.window, encoder.stride) for path, length in lengths.items()}
    for path in [path for path, count in counts.items() if count > PER_FILE]:  # indexing will refuse them too
        del counts[path], lengths[path]
        failed += 1
    by_length = sorted((length, path) for path, length in lengths.items())
    if not by_length:
        return Forecast(0.0, 0, 0.0, "", failed)
    path = by_length[len(by_length) // 2][1]
    middle = next(task for task in tasks if task.found.path == path)
    begun = time.perf_counter()
    with read_files(encoder, options) as readers:
        clips = [_as_clip(message) for _, message in readers([middle]) if isinstance(message, Read)]
    decoding = (time.perf_counter() - begun) / options.jobs
    for first in range(0, len(clips), options.batch_size):
        encoder.encode_windows(clips[first : first + options.batch_size])
    encoding = time.perf_counter() - begun - decoding * options.jobs
    windows = sum(counts.values())
    computing = max(decoding, encoding) * windows / max(1, len(clips))  # both go on at the same time
    return Forecast(sum(lengths.values()), windows, computing, path, failed)


def _as_clip(read: Read) -> Clip:
    return torch.from_numpy(read.video), torch.from_numpy(read.frame_mask)


class _Survey:
    """Reads only the header of a file."""

    def __call__(self, task: Task) -> Iterator[Message]:
        try:
            yield Begun("", length_of(Path(task.found.path)))
            yield Ended()
        except (VideoError, OSError) as error:
            yield Ended(str(error))


def write_failures(store: Store) -> Path | None:
    """Write a csv with the files that could not be read, or not all of, and why; none if there are none."""
    path = store.folder / FAILURES
    rows = [
        (file, model.name, reason.removeprefix(f"{file}: ").removeprefix(f"{file} "))
        for model in store.models()
        for file, reason in store.failures(model)
    ]
    if not rows:
        path.unlink(missing_ok=True)
        return None

    def write(partial: Path) -> None:
        with open(partial, "w", newline="", errors="surrogateescape") as file:
            csv.writer(file).writerows([("file", "model", "reason"), *rows])

    write_atomically(path, write)
    return path


def failed_in(store: Store, model: Model, folder: str) -> list[tuple[str, str]]:
    """Return path and reason of the files in a folder that a model could not read, or not all of."""
    return [(path, reason) for path, reason in store.failures(model) if is_below(path, folder)]
