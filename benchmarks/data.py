"""Measures the loader in clips per second, from video files and from both frame caches; needs no data of yours.

    bash scripts/benchmark_data.sh
    python -m benchmarks.data --videos data/msrvtt/videos --max_frames 12 --image_size 224

It measures two sets of clips: those in --videos, and `--clips` made clips. The made clips resemble MSR-VTT's after
preprocess/compress_video.py: 3 frames per second, 20 seconds, 320x224 pixels, h264 in its default quality, moving waves
with grain. Frames are sampled as in STOP's training: one random frame from each segment of the whole clip.

`storage` is one thread that reads clips, in clips per second of its processor time, with all files in the operating
system's memory. `loader` is wall-clock time as training sees it: worker processes, batches, the copy to the device and
the conversion to floats. The sources alternate in every round; the table has the medians of the rounds.

Shapes: B batch, T frames, S image side.
"""

import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Annotated

import av
import numpy as np
import torch
from tqdm import tqdm

from benchmarks.common import check_outputs, default_device, origin_of, parse_settings, write_json
from dataloaders.cache import FRAME_CACHE_FORMAT, FrameCache
from dataloaders.datasets import TrainingPairs, make_training_loader
from dataloaders.frames import FrameReader
from dataloaders.listed_videos import VIDEO_EXTENSIONS
from dataloaders.sampler import EpochSampler
from dataloaders.samples import Sample
from dataloaders.transforms import normalise
from engine.errors import print_report
from modules.options import Checked, Range

SOURCES = ("video files", *FRAME_CACHE_FORMAT)
MADE = "made, 224 pixels"
CAPTIONS = 4  # per clip, so an epoch reads each clip four times


@dataclass(frozen=True)
class Settings(Checked):
    """The flags."""

    videos: Annotated[str, "folder with video files"] = "data/moving_shapes/videos"
    image_size: Annotated[int, "S for --videos", Range(1)] = 112
    clips: Annotated[int, "clips per set", Range(1)] = 16
    max_frames: Annotated[int, "T, frames per clip", Range(1)] = 12
    batch_size: Annotated[int, "clips per batch", Range(1)] = 16
    num_thread_reader: Annotated[int, "worker processes of the loader; 0: none", Range(0)] = 1
    repeats: Annotated[int, "rounds to take the median of", Range(1)] = 5
    output: Annotated[str, "json file for the numbers; empty: none"] = ""


@dataclass(frozen=True)
class Row:
    """Medians in clips per second, and the megabytes of a clip on the disk."""

    data: str
    source: str
    megabytes: float
    storage: float
    loader: float


def write_made_clip(
    path: Path, seed: int, seconds: int = 20, height: int = 224, width: int = 320, rate: int = 3
) -> Path:
    """Write an h264 file of `seconds` at `rate` frames per second."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width] / height
    waves = rng.uniform(-1, 1, (3, 4))  # per channel: direction, speed and phase
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=rate)
        assert isinstance(stream, av.VideoStream)
        stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
        for frame in range(rate * seconds):
            picture = np.stack([np.sin(9 * (a * x + b * y) + v * frame + 6 * p) for a, b, v, p in waves], axis=-1)
            grey = 127 + 90 * picture + rng.normal(0, 4, (height, width, 1))
            pixels = np.clip(grey, 0, 255).astype(np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
    return path


def videos_in(folder: Path, count: int) -> list[Path]:
    """Return the first `count` video files; raise FileNotFoundError if there is none."""
    found = sorted(path for path in folder.glob("*") if path.suffix.lower() in VIDEO_EXTENSIONS)[:count]
    if not found:
        raise FileNotFoundError(f"--videos {folder} holds no video file: run preprocess/make_moving_shapes.py first")
    return found


def clips_per_cpu_second(read: FrameReader, paths: Sequence[Path], epoch: int) -> float:
    """Read every video once in this thread; return clips per second of processor time."""
    begin = time.process_time()
    for number, path in enumerate(paths):
        read(path, np.random.default_rng([epoch, number]))
    return len(paths) / (time.process_time() - begin)


class Feed:
    """A training loader over some videos, kept from epoch to epoch as in training."""

    def __init__(self, paths: Sequence[Path], read: FrameReader, settings: Settings, device: torch.device) -> None:
        samples = [Sample(path.name, path, ("a caption",) * CAPTIONS) for path in paths]
        pairs = TrainingPairs(samples, lambda caption: torch.zeros(1, 1, dtype=torch.int64), read, True, seed=0)
        batch_size = min(settings.batch_size, len(pairs))
        self.sampler = EpochSampler(len(pairs), batch_size, 0, 1, seed=0)
        self.loader = make_training_loader(
            pairs, self.sampler, settings.num_thread_reader, pin_memory=device.type == "cuda"
        )
        self.device = device

    def clips_per_second(self, epoch: int) -> float:
        """Load an epoch; return clips per second until its last batch is on the device as floats."""
        self.sampler.set_epoch(epoch)
        clips, begin = 0, time.perf_counter()
        for batch in self.loader:
            normalise(batch["video"].to(self.device, non_blocking=True))
            clips += len(batch["video"])
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        return clips / (time.perf_counter() - begin)


def measure(data: str, paths: Sequence[Path], image_size: int, settings: Settings, folder: Path) -> Iterator[Row]:
    """Yield a row for each source; the caches are made in `folder`."""
    device = default_device()
    caches: dict[str, FrameCache | None] = {SOURCES[0]: None}
    caches |= {name: FrameCache(folder / name, name) for name in FRAME_CACHE_FORMAT}
    readers = {
        name: FrameReader(settings.max_frames, image_size, "segment", training=True, cache=cache)
        for name, cache in caches.items()
    }
    feeds = {name: Feed(paths, read, settings, device) for name, read in readers.items()}
    storage: dict[str, list[float]] = {name: [] for name in SOURCES}
    loader: dict[str, list[float]] = {name: [] for name in SOURCES}
    for epoch in tqdm(range(settings.repeats + 1), f"{data}, rounds", leave=False):
        for name in SOURCES:
            storage[name].append(clips_per_cpu_second(readers[name], paths, epoch))
        for name in SOURCES:
            loader[name].append(feeds[name].clips_per_second(epoch))
    # The first round is left out: it fills the caches and starts the workers.
    for name, cache in caches.items():
        files = list(paths) if cache is None else [path for path in cache.folder.rglob("*") if path.is_file()]
        megabytes = sum(path.stat().st_size for path in files) / len(paths) / 1e6
        yield Row(data, name, megabytes, median(storage[name][1:]), median(loader[name][1:]))


def format_rows(rows: Sequence[Row]) -> str:
    """Return the table. Ratios are to the video files of the same clips."""
    lines = [f"{'clips':<22}{'source':<14}{'MB per clip':>10}{'storage, clips/s/core':>24}{'loader, clips/s':>20}"]
    for row in rows:
        base = next(other for other in rows if other.data == row.data)
        storage, loader = (
            f"{value:,.0f} ({value / over:.1f}x)"
            for value, over in ((row.storage, base.storage), (row.loader, base.loader))
        )
        lines.append(f"{row.data:<22}{row.source:<14}{row.megabytes:>10.2f}{storage:>24}{loader:>20}")
    return "\n".join(lines)


def report(settings: Settings) -> str:
    """Measure, write the file and return the text to print."""
    check_outputs(settings.output)
    torch.set_num_threads(1)
    given = Path(settings.videos)
    paths = videos_in(given, settings.clips)
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        (folder / "made").mkdir()
        made = [
            write_made_clip(folder / "made" / f"{number}.mp4", number)
            for number in tqdm(range(settings.clips), "making clips", leave=False)
        ]
        name = given.parent.name if given.name == "videos" else given.name
        rows += measure(name, paths, settings.image_size, settings, folder / "given")
        rows += measure(MADE, made, 224, settings, folder / "caches")
    origin, where = origin_of(default_device())
    if settings.output:
        content = {"settings": asdict(settings), **origin, "rows": [asdict(row) for row in rows]}
        write_json(Path(settings.output), content)
    return "\n".join(
        (
            f"{settings.clips} clips of {settings.max_frames} frames, batch {settings.batch_size}, "
            f"{settings.num_thread_reader} worker processes, medians of {settings.repeats} rounds",
            where,
            "",
            format_rows(rows),
        )
    )


def main(argv: Sequence[str] | None = None) -> int:
    return print_report(lambda: report(parse_settings(Settings, argv)))


if __name__ == "__main__":
    sys.exit(main())
