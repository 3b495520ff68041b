"""Indexes a folder of mixed files: how much comes out, what fails and why, and how long it takes.

    python -m benchmarks.search_folder
    python -m benchmarks.search_folder --real data/real_videos --checkpoint runs/mine/last.safetensors --jobs 4

Makes clips in six codecs and containers, of random lengths, and breaks some of them. `--real` adds the files of a
folder. The index is made by `python -m search index` in a process of its own; its processor time, with that of its
workers, is what `video_hours_per_core_hour` counts. The time of a second call, which has nothing to read, is that of
starting and walking.
"""

import csv
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

import av
import numpy as np
import torch

from benchmarks.common import check_outputs, origin_of, parse_settings, write_json
from dataloaders.listed_videos import VIDEO_EXTENSIONS
from engine.errors import print_report
from modules.options import Checked, Range
from search.index import Index

HEIGHT, WIDTH = 240, 320
FRAMES_PER_SECOND = 12
SHORTEST, LONGEST = 4.0, 40.0  # seconds
# Each frame refers to earlier ones only, so that the first packets of a stream are a whole clip.
CODECS = {
    "h264.mp4": ("libx264", {"preset": "veryfast", "bf": "0"}),
    "hevc.mkv": ("libx265", {"preset": "ultrafast", "x265-params": "bframes=0:log-level=error"}),
    "vp9.webm": ("libvpx-vp9", {"deadline": "realtime", "cpu-used": "8", "lag-in-frames": "0"}),
    "av1.mp4": ("libsvtav1", {"preset": "12", "svtav1-params": "pred-struct=1:lp=1"}),
    "mpeg4.avi": ("mpeg4", {"q": "4"}),
    "mpeg2.ts": ("mpeg2video", {"b": "1500000"}),
}
BROKEN = ("half", "empty", "text", "noise")


@dataclass(frozen=True)
class Settings(Checked):
    """The flags."""

    clips: Annotated[int, "clips to make", Range(6)] = 200
    broken: Annotated[int, "of them, clips to break", Range(0)] = 12
    real: Annotated[str, "folder with further files; empty: none"] = ""
    checkpoint: Annotated[str, "model; empty: the CLIP alone"] = ""
    pretrained_clip_name: Annotated[str, "CLIP"] = "pretrained/moving_shapes_clip.safetensors"
    window: Annotated[float, "seconds of a window", Range(0, above=True)] = 10.0
    jobs: Annotated[int, "decoding processes", Range(1)] = 1
    output: Annotated[str, "json file for the numbers; empty: none"] = "results/search_folder.json"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.broken > self.clips:
            raise ValueError(f"--broken {self.broken} is more than --clips {self.clips}: pass less")
        if self.real and not Path(self.real).is_dir():
            raise ValueError(f"--real {self.real}: is no folder; name one with videos, or leave it out")


def picture(moment: float) -> np.ndarray:
    """Return coloured waves at so many seconds, uint8 [H, W, 3]."""
    y, x = np.mgrid[:HEIGHT, :WIDTH].astype(np.float32)
    waves = (x + 40 * moment) / 27, (y + 60 * moment) / 19 + 1, (x + y - 20 * moment) / 33 + 2
    return np.stack([128 + 100 * np.sin(wave) for wave in waves], axis=-1).astype(np.uint8)


def write_sources(folder: Path) -> dict[str, Path]:
    """Write the longest clip of each codec; return them by the names of `CODECS`."""
    frames = [picture(number / FRAMES_PER_SECOND) for number in range(int(LONGEST * FRAMES_PER_SECOND))]
    os.environ.setdefault("SVT_LOG", "1")  # the AV1 encoder would tell its settings
    sources = {}
    for name, (codec, options) in CODECS.items():
        sources[name] = folder / f"source_{name}"
        with av.open(str(sources[name]), "w") as container:
            stream = container.add_stream(codec, rate=FRAMES_PER_SECOND, options=options)
            assert isinstance(stream, av.VideoStream)
            stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
            for frame in frames:
                container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
            container.mux(stream.encode(None))
    return sources


def write_start(source: Path, path: Path, packets: int) -> None:
    """Write the first packets of a file into another one, as they are."""
    with av.open(str(source)) as given, av.open(str(path), "w") as container:
        stream = given.streams.video[0]
        copy = container.add_stream_from_template(stream, opaque=True)  # the decoder of AV1 has no encoder's name
        for packet in islice(given.demux(stream), packets):
            if packet.dts is not None:  # the last packet of all is empty
                packet.stream = copy
                container.mux(packet)


def make_clips(folder: Path, count: int, broken: int) -> dict[str, str]:
    """Write clips of random lengths, the codecs in turn; return the names of those that were broken then, and how.

    Half of a transport stream is a shorter clip, because nothing in it states its length.
    """
    draw = np.random.default_rng(0)
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        sources, paths = write_sources(Path(scratch)), []
        for number in range(count):
            name = list(CODECS)[number % len(CODECS)]
            paths.append(folder / f"clip{number:04d}_{name}")
            write_start(sources[name], paths[-1], round(FRAMES_PER_SECOND * draw.uniform(SHORTEST, LONGEST)))
    chosen = [paths[place] for place in np.sort(draw.choice(count, broken, replace=False))]
    done = {path.name: BROKEN[number % len(BROKEN)] for number, path in enumerate(chosen)}
    for path in chosen:
        content = path.read_bytes()
        contents = {
            "half": content[: len(content) // 2], "empty": b"", "text": b"<html>404 Not Found</html>\n" * 50,
            "noise": draw.bytes(5000),
        }  # fmt: skip
        path.write_bytes(contents[done[path.name]])
    return done


def timed_index(settings: Settings, videos: Path, index: Path) -> tuple[float, float]:
    """Index the folder; return the seconds of wall clock, and of all processors."""
    model = ["--checkpoint", settings.checkpoint] if settings.checkpoint else []
    model += ["--pretrained_clip_name", settings.pretrained_clip_name, "--window", str(settings.window)]
    command = ["-m", "search", "index", str(videos), "--index", str(index), "--jobs", str(settings.jobs), *model]
    used, begun = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run([sys.executable, *command], capture_output=True, text=True, check=False)
    wall, after = time.perf_counter() - begun, resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode not in (0, 3):  # 3: some files could not be read
        raise RuntimeError(f"indexing ended with exit code {done.returncode}: {done.stderr[-500:]}")
    return wall, after.ru_utime + after.ru_stime - used.ru_utime - used.ru_stime


def measure(settings: Settings, folder: Path) -> dict[str, Any]:
    """Return all numbers; `folder` takes the clips and the index."""
    videos, index = folder / "videos", folder / "index"
    videos.mkdir()
    broken = make_clips(videos, settings.clips, settings.broken)
    for path in sorted(Path(settings.real).iterdir()) if settings.real else []:
        if path.suffix.lower() in VIDEO_EXTENSIONS:
            shutil.copy2(path, videos / f"real_{path.name}")
    megabytes = sum(path.stat().st_size for path in videos.iterdir()) / 1e6
    wall, computing = timed_index(settings, videos, index)
    again = timed_index(settings, videos, index)
    with Index.open(index) as opened:
        files, windows, seconds = opened.store.totals(opened.model)
        told = opened.store.failures(opened.model)
        size = opened.store.path.stat().st_size / 1e6
    failures = {os.path.basename(path): reason.replace(f"{videos}{os.sep}", "") for path, reason in told}
    if (index / "failures.csv").is_file():
        with open(index / "failures.csv", newline="") as file:
            assert {Path(row["file"]).name for row in csv.DictReader(file)} == set(failures)
    return {
        "files": len(list(videos.iterdir())), "megabytes": megabytes, "files_with_windows": files, "windows": windows,
        "video_hours": seconds / 3600, "failures": failures, "broken": broken,
        "index_megabytes": size, "wall_s": wall, "computing_s": computing, "again_wall_s": again[0],
        "again_computing_s": again[1], "video_hours_per_core_hour": seconds / computing,
        "video_hours_per_core_hour_without_start": seconds / max(1e-9, computing - again[1]),
    }  # fmt: skip


def report(argv: Sequence[str] | None) -> str:
    """Measure as the flags say; return the text to print."""
    settings = parse_settings(Settings, argv)
    check_outputs(settings.output)
    origin, line = origin_of(torch.device("cpu"))
    with tempfile.TemporaryDirectory() as folder:
        found = measure(settings, Path(folder))
    if settings.output:
        write_json(Path(settings.output), {**origin, "settings": asdict(settings), "measured": found})
    reasons = [f"  {name}: {reason}" for name, reason in found["failures"].items()]
    rates = [found[f"video_hours_per_core_hour{start}"] for start in ("", "_without_start")]
    lines = [
        f"{found['files']} files, {found['megabytes']:.1f} MB, {found['video_hours']:.2f} h, "
        f"{found['windows']} windows of {found['files_with_windows']} files; {len(reasons)} failed:",
        *reasons,
        f"{found['wall_s']:.1f} s, {found['computing_s']:.1f} s of computing; again {found['again_wall_s']:.1f} s",
        f"{rates[0]:.0f} hours of video an hour and core, {rates[1]:.0f} without the start",
        line,
    ]
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    return print_report(lambda: report(argv))


if __name__ == "__main__":
    sys.exit(main())
