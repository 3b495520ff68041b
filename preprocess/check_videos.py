"""Decode every video that a data set needs, before training meets one that cannot be decoded.

    python preprocess/check_videos.py --datatype msrvtt --train_csv data/msrvtt/MSRVTT_train.9k.csv \\
        --val_csv data/msrvtt/MSRVTT_JSFUSION_test.csv --data_path data/msrvtt/MSRVTT_data.json \\
        --features_path data/msrvtt/videos --output report.csv

With --task recognition, --datatype is a data set of action recognition, and --fold one of its official splits.

It reads the videos as training does, to their last frame, and gives each a status:

    missing   there is no such file
    broken    training would stop at it
    cut       its end is missing, but less than a quarter of it; training uses what is there
    short     it is complete and has fewer frames than --max_frames
    ok        none of these

Transport streams, program streams and Ogg do not say where they end. They count as broken only if more than a quarter
of their stated length is missing.

--output gets one line for each video: path, status, frames, fps, width, height, reason.
Exit code: 0 if no video is missing or broken, 1 if one is, 2 for a wrong command, 130 if interrupted.
"""

import argparse
import csv
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from pathlib import Path

from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from dataloaders import ACTION_DATASETS, ACTION_NEEDED_FLAGS, DATASETS, NEEDED_FLAGS
from dataloaders.decode import VideoError, read_frames
from dataloaders.preparation import in_threads, missing_files
from dataloaders.quoting import shorten
from dataloaders.samples import Sample
from dataloaders.stated_size import stated_size
from dataloaders.video_file import open_video
from engine.flags import check_file
from preprocess.shards import default_jobs, exit_code

# Data sets with the flags that they need, and the data set without --datatype.
TASKS = {
    "retrieval": (DATASETS, NEEDED_FLAGS, "msrvtt"),
    "recognition": (ACTION_DATASETS, ACTION_NEEDED_FLAGS, "ucf101"),
}
STATUSES = ("ok", "short", "cut", "broken", "missing")
SHOWN_PROBLEMS = 20


@dataclass(frozen=True)
class Finding:
    """The facts about one video; zeros if it cannot be decoded."""

    path: Path
    status: str
    frames: int = 0
    fps: float = 0.0
    width: int = 0
    height: int = 0
    reason: str = ""


def check(path: Path, max_frames: int) -> Finding:
    """Decode a video to its end and return its finding."""
    if not path.is_file():
        return Finding(path, "missing", reason=f"{path} does not exist: download it.")
    try:
        frames, n_frames, fps = read_frames(path, lambda n_frames, fps: [n_frames - 1], thorough=True)
        with open_video(path) as (_, stream):
            n_bytes, stated_bytes = path.stat().st_size, stated_size(path, stream)
            # An AVI counts the ticks of its clock; its index shows whether they are frames.
            promised = stream.frames if stream.frames == len(stream.index_entries) else 0
    except (VideoError, OSError) as error:
        return Finding(path, "broken", reason=str(error))
    height, width = frames.shape[1:3]
    found = partial(Finding, path, frames=n_frames, fps=round(fps, 3), width=width, height=height)
    if n_bytes < stated_bytes:
        reason = f"{path} is cut: {n_bytes:,} of its {stated_bytes:,} bytes are there, and {n_frames} "
        reason += f"of its {promised} frames can be decoded." if n_frames < promised else "frames can be decoded."
        return found(status="cut", reason=reason)
    if n_frames < max_frames:
        return found(status="short", reason=f"{path} has {n_frames} frames, less than --max_frames {max_frames}.")
    return found(status="ok")


def check_all(paths: Sequence[Path], max_frames: int, jobs: int) -> list[Finding]:
    """Return a finding for each path, in the same order."""
    found = in_threads(partial(check, max_frames=max_frames), paths, jobs)
    return list(tqdm(found, total=len(paths), desc="decoding", unit="video"))


def write_report(path: Path, findings: Iterable[Finding]) -> None:
    """Write one csv line for each finding."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
        writer = csv.DictWriter(file, [field.name for field in fields(Finding)], lineterminator="\n")
        writer.writeheader()
        writer.writerows(asdict(finding) for finding in findings)


def listed(options: argparse.Namespace) -> list[Sample]:
    """Return the samples of the splits that the options name, each file once."""
    datasets, needed_flags, default = TASKS[options.task]
    datatype = options.datatype or default
    if datatype not in datasets:
        raise ValueError(
            f"--datatype {shorten(datatype)} is not one of: {', '.join(datasets)} (--task {options.task})."
        )
    of_recognition = {"labels_csv": options.labels_csv, "fold": options.fold}
    given = [name for name, value in of_recognition.items() if value is not None]
    if given and options.task != "recognition":
        raise ValueError(f"--{given[0]} has no effect with --task {options.task}: leave it out.")
    files = {name: getattr(options, name) for name in ("data_path", "features_path", "train_csv", "val_csv")}
    splits = ("train", "test") if options.split == "all" else (options.split,)
    of_all, of_training = needed_flags[datatype]
    for split in splits:
        needed = of_training or of_all if split == "train" else of_all
        if absent := [f"--{name}" for name in needed if files[name] is None]:
            raise ValueError(f"the split {split} needs {' and '.join(absent)}: pass them, or another --split.")
    if options.task == "recognition":
        files |= of_recognition | {"fold": 1 if options.fold is None else options.fold}
    return list({sample.path: sample for split in splits for sample in datasets[datatype](split, **files)}.values())


def run(options: argparse.Namespace) -> int:
    """Run the command; returns the exit code 0 or 1. ValueError or OSError if it cannot start."""
    if options.output:
        check_file("--output", options.output)
    jobs = default_jobs() if options.jobs is None else options.jobs
    for name, value in (("max_frames", options.max_frames), ("jobs", jobs)):
        if value < 1:
            raise ValueError(f"--{name} must be 1 or more, not {value}.")
    samples = listed(options)
    findings = check_all([sample.path for sample in samples], options.max_frames, jobs)
    for row, reason in missing_files(samples).items():  # these reasons name the list that asks for the file
        findings[row] = replace(findings[row], reason=reason)
    if options.output:
        write_report(options.output, findings)
    counts = Counter(finding.status for finding in findings)
    print(f"{len(findings)} videos: " + ", ".join(f"{counts[status]} {status}" for status in STATUSES) + ".")
    # The worst come first.
    problems = sorted((f for f in findings if f.status != "ok"), key=lambda f: -STATUSES.index(f.status))
    for finding in problems[:SHOWN_PROBLEMS]:
        print(f"{finding.status}: {finding.reason}", file=sys.stderr)
    if len(problems) > SHOWN_PROBLEMS:
        rest = options.output or "pass --output report.csv to see them"
        print(f"... and {len(problems) - SHOWN_PROBLEMS} more: {rest}", file=sys.stderr)
    return int(counts["missing"] + counts["broken"] > 0)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    parser = argparse.ArgumentParser(description="Decode every video that a data set needs and report what is wrong.")
    parser.add_argument("--task", choices=sorted(TASKS), default="retrieval")
    parser.add_argument("--datatype", help="as for training; default: msrvtt, or ucf101 with --task recognition")
    parser.add_argument("--train_csv", type=Path, help="as for training, like the next three flags")
    parser.add_argument("--val_csv", type=Path)
    parser.add_argument("--data_path", type=Path)
    parser.add_argument("--features_path", type=Path, required=True, help="folder with the videos")
    parser.add_argument("--labels_csv", type=Path, help="recognition: file with the classes, as for training")
    parser.add_argument("--fold", type=int, help="recognition: the official split, training's --split (default: 1)")
    parser.add_argument("--split", choices=("train", "val", "test", "all"), default="all", help="all: train and test")
    parser.add_argument("--max_frames", type=int, default=12, help="frames of a clip; shorter videos are reported")
    parser.add_argument("--jobs", type=int, help="videos at a time; default: one for each processor")
    parser.add_argument("--output", type=Path, help="csv file to write")
    return exit_code(lambda: run(parser.parse_args(argv)), "nothing is reported.")


if __name__ == "__main__":
    raise SystemExit(main())
