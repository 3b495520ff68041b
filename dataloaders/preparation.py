"""Checks before training: whether the videos of a split can be read, and how much room the frame cache will take.

A problem with a video is found here or where the video is read. It ends the run with one sentence, unless `leave_out`
is allowed to skip that many videos.
"""

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

from tqdm import tqdm

from dataloaders.decode import VideoError
from dataloaders.frames import FrameReader
from dataloaders.quoting import shorten
from dataloaders.samples import Sample

Item = TypeVar("Item")
Result = TypeVar("Result")

PROBES = 16  # videos from which `forecast` estimates the size of the others


def missing_files(samples: Sequence[Sample]) -> dict[int, str]:
    """Return {index: reason} for every sample whose video file is missing."""
    return {row: _missing(sample) for row, sample in enumerate(samples) if not sample.path.is_file()}


def _missing(sample: Sample) -> str:
    looked_for = ""
    if sample.listed_in:
        looked_for = f", also under any other video extension ({sample.listed_in} lists it)"
    return f"{shorten(str(sample.path), 300)} is missing{looked_for}: download it, or correct --features_path."


def in_threads(function: Callable[[Item], Result], items: Sequence[Item], jobs: int) -> Iterator[Result]:
    """Yield `function` of each item, in order, running `jobs` threads: decoding releases Python's lock.

    Items that have not begun when the caller stops are dropped.
    """
    pool = ThreadPoolExecutor(jobs)
    try:
        yield from pool.map(function, items)
    finally:
        pool.shutdown(cancel_futures=True)


def read_all(samples: Sequence[Sample], frames: FrameReader, jobs: int) -> Iterator[str | None]:
    """Read every video as training will, into the cache if `frames` has one. Yields the problem with each, in order.

    Reads `jobs` videos at a time. Raises OSError if the cache cannot be written.
    """

    def problem(sample: Sample) -> str | None:
        try:
            frames.prepare(sample.path, sample.start, sample.end)
        except VideoError as error:
            return str(error)
        return None

    return in_threads(problem, samples, jobs)


def leave_out(samples: Sequence[Sample], problems: Mapping[int, str], allowed: int, split: str) -> list[Sample]:
    """Return the samples without those in `problems`, {index: reason}.

    Raises ValueError if there are more than `allowed`, or if no sample is left.
    """
    if not problems:
        return list(samples)
    if len(problems) > allowed or len(problems) == len(samples):
        first = problems[min(problems)]
        raise ValueError(
            f"{first.rstrip('.')}; it is the first of {len(problems)} unusable among the {len(samples)} videos of the "
            f"{split} split" + (f", --allow_missing is {allowed}." if allowed else ".")
        )
    return [sample for row, sample in enumerate(samples) if row not in problems]


@dataclass(frozen=True)
class CacheForecast:
    """How many of a split's `videos` are `present` in the cache, the mean size of an entry, estimated from a few, and
    the free bytes of the cache's disk."""

    videos: int
    present: int
    entry_bytes: float
    free_bytes: int

    @property
    def missing_bytes(self) -> float:
        """Bytes still to be written."""
        return (self.videos - self.present) * self.entry_bytes

    def __str__(self) -> str:
        return (
            f"{self.videos:,} videos of about {gigabytes(self.entry_bytes)}, together "
            f"{gigabytes(self.videos * self.entry_bytes)}; {self.present:,} are there, {gigabytes(self.missing_bytes)} "
            f"to be written, {gigabytes(self.free_bytes)} free"
        )


def gigabytes(n: float) -> str:
    """Format bytes in MB or GB."""
    return f"{n / 1e9:.3g} GB" if n >= 1e9 else f"{n / 1e6:.3g} MB"


def _entry_bytes(sample: Sample, frames: FrameReader) -> int:
    """Return the size of a video's entry in the cache, 0 if there is none."""
    try:
        return frames.cache_place(sample.path, sample.start, sample.end).stat().st_size
    except (FileNotFoundError, VideoError):
        return 0


def forecast(samples: Sequence[Sample], frames: FrameReader, allow_missing: int = 0, jobs: int = 1) -> CacheForecast:
    """Put a few videos, evenly spread over the split, into the cache; estimate from their size how much all will take.

    This reads a sample of every video file's content, from `jobs` files at a time; the cache remembers them. The files
    of `samples` must exist. `allow_missing` of those that are tried may be unreadable, but not all of them. Raises
    VideoError if more are, OSError if the cache cannot be written, and ValueError if the rest does not fit on the disk.
    """
    assert frames.cache is not None
    frames.cache.remove_partials()
    # Before the probes are written, so that they are not counted as present.
    entries = in_threads(lambda sample: _entry_bytes(sample, frames), samples, jobs)
    entries = tqdm(entries, "looking for entries", len(samples), unit="video", leave=False, disable=None, delay=2)
    present = sum(size > 0 for size in entries)
    probes = [samples[row] for row in sorted({row * len(samples) // PROBES for row in range(PROBES)})]
    # Not on the main thread, where torch's constructors turn a signal's KeyboardInterrupt into another error.
    problems = [problem for problem in read_all(probes, frames, 1) if problem]
    sizes = [size for probe in probes if (size := _entry_bytes(probe, frames))]
    if problems and (len(problems) > allow_missing or not sizes):
        raise VideoError(problems[0])
    entry_bytes = sum(sizes) / len(sizes)
    found = CacheForecast(len(samples), present, entry_bytes, shutil.disk_usage(frames.cache.folder).free)
    if found.missing_bytes > found.free_bytes:
        raise ValueError(
            f"--frame_cache {frames.cache.folder} has no room ({found}): name a folder on a larger disk, or pass "
            "--frame_cache_format jpeg."
        )
    return found
