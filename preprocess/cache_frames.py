"""Fill a frame cache before training, so that training decodes nothing.

    PROGRAM=preprocess/cache_frames.py bash scripts/msrvtt.sh --frame_cache data/msrvtt/frames --jobs 16

It takes the flags of main_task_retrieval.py, because the stored frames depend on them, or with --task recognition those
of main_task_recognition.py; with PROGRAM set, the launch scripts run it with theirs. It adds

    --task    retrieval (the default) or recognition
    --split   train, val, test or all; all (the default) is train and test with --do_train, else test; a number is the
              official split of recognition's --split
    --jobs    videos at a time; default: one for each processor
    --shard   i/n: the i-th of n shares, counted from 0; default: torchrun's rank

An entry gets its name when it is complete, so the command can be interrupted or killed at any moment; when run again,
it skips what is there. It can run on several machines that share the folder, and while a training uses the folder.
Exit code: 0 if all videos are there, 1 if some are missing or cannot be read, 2 for a wrong command, 130 if
interrupted.
"""

import argparse
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from dataloaders.frames import FrameReader
from dataloaders.preparation import forecast, missing_files, read_all
from dataloaders.quoting import shorten
from engine.cli import parse_config
from engine.config import Config
from engine.data import frame_cache, frame_reader
from engine.tasks.recognition import RecognitionSettings
from engine.tasks.registry import TASKS
from modules.backbones import Backbone
from modules.clip_weights import backbone_of
from preprocess.shards import default_jobs, exit_code, parse_shard, wait_for_other_ranks

SHOWN_PROBLEMS = 20


def reader_of(config: Config, backbone: Backbone, split: str) -> FrameReader:
    """Return the reader of a split that the task will use, with the cache."""
    frames = frame_reader(config.data, backbone, split == "train", frame_cache(config.data, config.run))
    return config.task.reader(frames, split)


def fill(config: Config, backbone: Backbone, split: str, jobs: int, shard: tuple[int, int]) -> list[str]:
    """Put this share of a split's videos into the cache; returns the problems of those that cannot be."""
    number, count = shard
    frames = reader_of(config, backbone, split)
    listed = config.task.list_split(config.data, split)
    missing = missing_files(listed)
    samples = [sample for row, sample in enumerate(listed) if row not in missing]
    if number == 0 and samples:
        found = forecast(samples, frames, allow_missing=len(samples) - 1, jobs=jobs)
        print(f"{config.run.frame_cache} ({config.run.frame_cache_format}), {split} split: {found}.", flush=True)
    share = samples[number::count]
    progress = tqdm(read_all(share, frames, jobs), f"{split} split", len(share), unit="video", disable=number > 0)
    problems = [*list(missing.values())[number::count], *(reason for reason in progress if reason)]
    n_listed = len(share) + len(list(missing)[number::count])
    of_shard = "" if count == 1 else f" (shard {number}/{count})"
    print(f"{split} split{of_shard}: {n_listed - len(problems)} of {n_listed} videos are in the cache.", flush=True)
    return problems


def run(argv: Sequence[str] | None) -> int:
    """Run the command; returns the exit code 0 or 1. ValueError or OSError if it cannot start or continue."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("--task", default="retrieval")
    parser.add_argument("--split", action="append", default=[])
    parser.add_argument("--jobs", default=str(default_jobs()))
    parser.add_argument("--shard")
    own, flags = parser.parse_known_args(argv)
    if "--help" in flags or "-h" in flags:
        print(__doc__)
        return 0
    if own.task not in TASKS:
        raise ValueError(f"--task {shorten(own.task)} is not one of: {', '.join(TASKS)}")
    numbers = [value for value in own.split if own.task == "recognition" and value.isdecimal()]
    split = next((value for value in reversed(own.split) if value not in numbers), "all")
    flags += [f"--split={number}" for number in numbers]
    if split not in ("train", "val", "test", "all"):
        raise ValueError(f"--split {shorten(split)} is not one of: train, val, test, all")
    if not own.jobs.isdecimal() or int(own.jobs) < 1:
        raise ValueError(f"--jobs {shorten(own.jobs)} is out of range: it takes a number at least 1")
    shard = parse_shard(own.shard)
    if "--do_train" not in flags and "--do_eval" not in flags:
        flags.append("--do_train" if split in ("train", "all") else "--do_eval")
    config = parse_config(flags, TASKS[own.task].settings)
    if not config.run.frame_cache:
        raise ValueError("--frame_cache is not given: name the folder to fill")
    splits = [split]
    if split == "all":
        selects = config.run.do_train and config.run.select_on == "val"
        splits = ["train"] * config.run.do_train + ["val"] * selects + ["test"]
        if isinstance(config.task, RecognitionSettings) and config.task.classes == "base":
            splits.append("novel")  # tested at the end
    model = config.model
    backbone = backbone_of(model.pretrained_clip_name, model.pretrained_dir, model.asked_of_clip())
    problems = [problem for split in splits for problem in fill(config, backbone, split, int(own.jobs), shard)]
    for problem in problems[:SHOWN_PROBLEMS]:
        print(problem, file=sys.stderr)
    if len(problems) > SHOWN_PROBLEMS:
        rest = len(problems) - SHOWN_PROBLEMS
        print(f"... and {rest} more: preprocess/check_videos.py writes a report of all", file=sys.stderr)
    if own.shard is None:
        wait_for_other_ranks()
    return int(bool(problems))


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    return exit_code(lambda: run(argv), "run the same command again to go on.")


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # like Ctrl-C: schedulers end jobs with it
    raise SystemExit(main())
