"""Pack videos and captions into WebDataset shards, from which post-pretraining reads.

    python preprocess/make_shards.py --datatype webvid --train_csv results_10M_train.csv --features_path videos \\
        --output_dir data/webvid_shards
    python preprocess/make_shards.py --train_csv clips.csv --features_path videos --output_dir data/my_shards
    python preprocess/make_shards.py --verify data/my_shards
    python preprocess/make_shards.py --index data/shards_of_another_program

--datatype custom (the default) takes a csv or jsonl list of `path,caption` with optional `start,end,split`, and cuts
windows of time; webvid takes WebVid's own csv, or one of `video_id,caption`; msrvtt and the other data sets take their
own files. The training split is packed, one sample a video with all its captions, shuffled over the shards.

--store h264 (the default) keeps small clips of 3 frames a second, short side 224; jpeg their frames; original the files
as they are. docs/post_pretraining.md has sizes and times. The output folder gets 000000.tar, 000001.tar, ..., the index
shards.json with checksums when all shards are done, and failed.csv with every video that could not be stored.

The command may be interrupted or killed at any moment; the same command goes on where it was, and what comes out is the
same to the byte. Other settings or another list in the same folder are refused. Several machines share the job with
--shard 0/4 ... 3/4, or under torchrun, by its RANK and WORLD_SIZE; the last one to end writes the index.

Missing files are looked for first, and the size on disk is estimated from a few videos. --allow_missing says how many
videos may be missing or broken. A finished shard stays as it is; to have it made again, remove its tar.
Exit code: 0 if the work is done, 1 if too many videos failed or --verify found damage, 2 for a wrong command, 130 if
interrupted.
"""

import argparse
import math
import shutil
import signal
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from dataloaders import DATASETS, NEEDED_FLAGS, webvid
from dataloaders.preparation import gigabytes, missing_files
from dataloaders.quoting import counted, shorten
from dataloaders.samples import Sample
from dataloaders.shard_index import INDEX
from engine.flags import check_folder
from preprocess.shard_checks import add_index, verify
from preprocess.shard_clips import OF_H264, OF_JPEG, PRESETS, STORES, StoredClip, Storing, store_clip
from preprocess.shard_folder import (
    FAILED,
    Deal,
    Record,
    ShardWriter,
    check_settings,
    claim,
    digest_of,
    failures,
    find_settings,
    finish,
    read_records,
    remove_partials,
    shuffled,
    write_failed,
)
from preprocess.shards import default_jobs, exit_code, parse_shard, wait_for_other_ranks

READERS = {**DATASETS, "webvid": webvid.read_split}
NEEDED = {**NEEDED_FLAGS, "webvid": webvid.NEEDED_FLAGS}
SAMPLES_PER_SHARD = 1000
PROBES = 8  # videos from which the size of the others is estimated
SHOWN = 5  # failed videos that are printed

Item = TypeVar("Item")
Result = TypeVar("Result")


def in_order(function: Callable[[Item], Result], items: Iterable[Item], jobs: int) -> Iterator[tuple[Item, Result]]:
    """Yield each item and `function` of it, in order, running `jobs` threads. At most 2 `jobs` results wait to be
    taken, because they may be large."""
    pool = ThreadPoolExecutor(jobs)
    waiting: deque[tuple[Item, Future[Result]]] = deque()
    try:
        for item in items:
            waiting.append((item, pool.submit(function, item)))
            if len(waiting) >= 2 * jobs:
                first, future = waiting.popleft()
                yield first, future.result()
        while waiting:
            first, future = waiting.popleft()
            yield first, future.result()
    finally:
        pool.shutdown(cancel_futures=True)


def listed(options: argparse.Namespace) -> list[Sample]:
    """Return the training samples of the list that the options name."""
    if options.datatype not in READERS:
        raise ValueError(f"--datatype {shorten(options.datatype)} is not one of: {', '.join(READERS)}.")
    files: dict[str, Any] = {name: getattr(options, name) for name in ("data_path", "features_path", "train_csv")}
    of_all, of_training = NEEDED[options.datatype]
    needed = [name for name in (*of_training, *of_all) if name != "val_csv"]
    if absent := [f"--{name}" for name in needed if files[name] is None]:
        raise ValueError(f"--datatype {options.datatype} needs {' and '.join(absent)}: pass them.")
    files["val_csv"] = None  # of the test split
    return READERS[options.datatype]("train", **files)


def storing_of(options: argparse.Namespace) -> Storing:
    """Return how videos are stored; ValueError for a flag that the chosen store does not use."""
    used = {
        "h264": ("fps", "short_side", *OF_H264, "max_shortfall"),
        "jpeg": ("fps", "short_side", *OF_JPEG, "max_shortfall"),
        "original": (),
    }
    defaults: dict[str, Any] = {"fps": 3.0, "short_side": 224, "crf": 23, "preset": "veryfast", "fast_decode": False}
    defaults |= {"jpeg_quality": 90, "max_shortfall": 0.05}
    passed = {name: value for name in defaults if (value := getattr(options, name)) is not None}
    if unused := [name for name in passed if name not in used[options.store]]:
        raise ValueError(f"--{unused[0]} has no effect with --store {options.store}: leave it out.")
    return Storing(options.store, **{**defaults, **passed})


def store(row: int, samples: Sequence[Sample], missing: Mapping[int, str], storing: Storing) -> StoredClip | str:
    """Return what is stored of a sample, or why nothing can be."""
    if row in missing:
        return missing[row]
    try:
        return store_clip(samples[row], storing)
    except (ValueError, OSError) as error:
        return str(error)


class TooManyFailed(Exception):
    """More videos are missing or broken than --allow_missing says."""


def check_failed(folder: Path, samples: Sequence[Sample], failed: Mapping[int, str], allowed: int) -> None:
    """Raise TooManyFailed, after writing failed.csv, if more samples failed than `allowed`, or all of them."""
    if len(failed) <= allowed and len(failed) < len(samples):
        return
    write_failed(folder, samples, failed)
    first = failed[min(failed)].rstrip(".")
    raise TooManyFailed(
        f"{first}; {len(failed):,} of {counted(len(samples), 'video')} cannot be used, --allow_missing is {allowed}: "
        f"correct them, or allow more ({folder / FAILED} names them)."
    )


def probe(
    rows: Sequence[int], keep: Callable[[int], StoredClip | str], jobs: int, failed: dict[int, str]
) -> tuple[float, float]:
    """Store a few samples, evenly spread over the rows, and drop them; what fails is added to `failed`.

    Returns the mean bytes of a sample, and the samples stored in a second.
    """
    count = min(PROBES, 1 + len(rows) // 50)
    chosen = [rows[number * len(rows) // count] for number in range(count)]
    start, sizes = time.perf_counter(), []
    for row, kept in in_order(keep, chosen, jobs):
        if isinstance(kept, StoredClip):
            sizes.append(kept.size)
        else:
            failed[row] = kept
    seconds = time.perf_counter() - start
    return (sum(sizes) / len(sizes) if sizes else 0.0), count / seconds


def make(options: argparse.Namespace) -> int:
    """Make the shards of this share; returns the exit code."""
    number, count = parse_shard(options.shard)
    folder, storing, jobs = options.output_dir, storing_of(options), options.jobs
    begun = find_settings(folder)
    check_folder("--output_dir", folder)
    samples = listed(options)
    if storing.store == "original" and (
        cut := [sample for sample in samples if (sample.start, sample.end) != (None, None)]
    ):
        raise ValueError(f"--store original cannot cut {cut[0].video_id} out of its file: pass --store h264 or jpeg.")
    settings: dict[str, Any] = {
        **storing.settings(),
        "seed": options.seed,
        "videos": len(samples),
        "list_sha256": digest_of(samples),
        "shard_bytes": options.shard_bytes,
        "samples_per_shard": options.samples_per_shard or SAMPLES_PER_SHARD,
    }
    if options.shard_bytes is not None:
        settings["samples_per_shard"] = (begun or {}).get("samples_per_shard", 0)
    deal = Deal(shuffled(len(samples), options.seed), settings["samples_per_shard"])
    records: dict[int, Record] = {}
    if begun is not None:
        check_settings(folder, begun, settings)
        records = read_records(folder, deal)
    finished = {deal.order[place] for shard in records for place in deal.of_shard(shard)}
    rows = [row for row in range(len(samples)) if row not in finished]
    gone = missing_files([samples[row] for row in rows])
    missing = {rows[place]: reason for place, reason in gone.items()}
    failed = {**failures(records), **missing}
    check_failed(folder, samples, failed, options.allow_missing)

    there = [row for row in rows if row not in missing]
    keep = partial(store, samples=samples, missing=missing, storing=storing)
    rate = 0.0
    if records:
        stored = sum(record.shard.samples for record in records.values())
        mean = sum(record.shard.bytes for record in records.values()) / max(1, stored)
    else:
        mean, rate = probe(there, keep, jobs, failed)
        check_failed(folder, samples, failed, options.allow_missing)
        if options.shard_bytes is not None and begun is None:
            settings["samples_per_shard"] = max(1, int(options.shard_bytes // max(1.0, mean)))
            deal = Deal(deal.order, settings["samples_per_shard"])
    check_room(folder, len(there) * mean)
    claim(folder, settings)

    own = range(number, deal.shards, count)
    todo = [shard for shard in own if shard not in records]
    share = "" if count == 1 else f", share {number} of {count}: {counted(len(own), 'shard')}"
    n_left = sum(len(deal.of_shard(shard)) for shard in todo)
    estimate = f", about {n_left / rate / 3600:.2g} hours with {jobs} jobs" if rate else ""
    print(
        f"{folder}: {counted(len(samples), 'video')} in {counted(deal.shards, 'shard')}{share}; {n_left:,} to do, of "
        f"about {gigabytes(mean)} each, together {gigabytes(n_left * mean)}{estimate}.",
        flush=True,
    )
    remove_partials(folder, own)
    fill(folder, deal, samples, todo, keep, jobs, failed, options.allow_missing)
    done = conclude(folder, deal, samples, settings, options.allow_missing)
    if options.shard is None:
        wait_for_other_ranks()
    return done


def check_room(folder: Path, needed: float) -> None:
    """Raise ValueError if about `needed` bytes do not fit on the disk of a folder, which may not exist yet."""
    there = next(parent for parent in (folder.absolute(), *folder.absolute().parents) if parent.exists())
    free = shutil.disk_usage(there).free
    if needed > free:
        raise ValueError(
            f"--output_dir {folder} has no room, about {gigabytes(needed)} are to be written and {gigabytes(free)} are "
            "free: name a folder on a larger disk, or store less (--crf, --jpeg_quality, --short_side, --fps)."
        )


def fill(
    folder: Path,
    deal: Deal,
    samples: Sequence[Sample],
    todo: Sequence[int],
    keep: Callable[[int], StoredClip | str],
    jobs: int,
    failed: dict[int, str],
    allowed: int,
) -> None:
    """Write the shards `todo`, one after the other; their samples are made by `jobs` threads ahead of that.

    What fails is added to `failed`, {row: reason}. Raises TooManyFailed.
    """
    places = [place for shard in todo for place in deal.of_shard(shard)]
    kept = in_order(keep, (deal.order[place] for place in places), jobs)
    with tqdm(total=len(places), desc="packing", unit="video", disable=None) as progress:
        for shard in todo:
            writer = ShardWriter(folder, shard)
            lacking = []
            try:
                for place in deal.of_shard(shard):
                    row, clip = next(kept)
                    progress.update()
                    if isinstance(clip, StoredClip):
                        writer.add(place, clip)
                        continue
                    failed[row] = clip
                    lacking.append((row, clip))
                    check_failed(folder, samples, failed, allowed)
                writer.finish(lacking)
            finally:
                writer.close()


def conclude(folder: Path, deal: Deal, samples: Sequence[Sample], settings: Mapping[str, Any], allowed: int) -> int:
    """Write failed.csv, and the index if every shard is done. Says what there is; returns the exit code."""
    records = read_records(folder, deal)
    failed = failures(records)
    write_failed(folder, samples, failed)
    for row in list(failed)[:SHOWN]:
        print(f"left out: {failed[row]}", file=sys.stderr)
    if len(failed) > SHOWN:
        print(f"... and {len(failed) - SHOWN} more: {folder / FAILED} names all", file=sys.stderr)
    if len(records) < deal.shards:
        print(f"{folder}: {len(records):,} of {counted(deal.shards, 'shard')} done; {INDEX} comes with the last one.")
        return 0
    check_failed(folder, samples, failed, allowed)
    index = finish(folder, records, settings)
    print(
        f"{folder}: {counted(index.samples, 'sample')} in {counted(len(index.shards), 'shard')}, "
        f"{gigabytes(index.bytes)}, {len(failed):,} left out; {folder / INDEX} is complete."
    )
    return 0


# ---- the command ----------------------------------------------------------------------------------------------------


def run(options: argparse.Namespace) -> int:
    """Run the command; returns the exit code 0 or 1. ValueError or OSError if it cannot start or continue."""
    options.jobs = default_jobs() if options.jobs is None else options.jobs
    least = {"jobs": 1, "samples_per_shard": 1, "shard_bytes": 1, "allow_missing": 0, "seed": 0}
    for name, low in least.items():
        if (value := getattr(options, name)) is not None and value < low:
            raise ValueError(f"--{name} must be {low} or more, not {value:g}.")
    if options.shard_bytes is not None and not math.isfinite(options.shard_bytes):
        raise ValueError(f"--shard_bytes must be a finite number, not {options.shard_bytes:g}.")
    if options.samples_per_shard is not None and options.shard_bytes is not None:
        raise ValueError("--samples_per_shard and --shard_bytes exclude each other: pass one of them.")
    if options.verify:
        return verify(options.verify, options.jobs)
    if options.index:
        return add_index(options.index, options.jobs)
    if options.store != "original":
        import cv2

        cv2.setNumThreads(1)  # videos already run in parallel
    try:
        return make(options)
    except TooManyFailed as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def parse(parser: argparse.ArgumentParser, argv: Sequence[str] | None) -> argparse.Namespace:
    """Return the flags; ValueError for one that --verify or --index does not use."""
    options = parser.parse_args(argv)
    what = next(name for name in ("output_dir", "verify", "index") if getattr(options, name) is not None)
    passed = [name for name, value in vars(options).items() if value != parser.get_default(name)]
    if what != "output_dir" and (unused := [name for name in passed if name not in (what, "jobs")]):
        raise ValueError(f"--{unused[0]} has no effect with --{what}: leave it out.")
    return options


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    parser = argparse.ArgumentParser(description="Pack videos and captions into WebDataset shards.")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--output_dir", type=Path, help="folder to fill with shards")
    what.add_argument("--verify", type=Path, metavar="FOLDER", help="read the shards of a folder again and check them")
    what.add_argument("--index", type=Path, metavar="FOLDER", help="write shards.json for tars of another program")
    parser.add_argument("--datatype", default="custom", help="webvid, or a data set of training; default: custom")
    parser.add_argument("--train_csv", type=Path, help="list of videos and captions")
    parser.add_argument("--data_path", type=Path, help="as for training, if the data set needs it")
    parser.add_argument("--features_path", type=Path, help="folder with the videos")
    parser.add_argument("--store", choices=STORES, default="h264", help="small clips, their frames, or whole files")
    parser.add_argument("--fps", type=float, help="frames a second; default: 3")
    parser.add_argument("--short_side", type=int, help="most pixels of the shorter side; even; default: 224")
    parser.add_argument("--crf", type=int, help="h264: x264's constant rate factor, less is better; default: 23")
    parser.add_argument("--preset", choices=PRESETS, help="h264: x264's preset; default: veryfast")
    parser.add_argument("--fast_decode", action="store_true", default=None, help="h264: larger, decoded faster")
    parser.add_argument("--jpeg_quality", type=int, help="jpeg: 1 to 100; default: 90")
    parser.add_argument("--max_shortfall", type=float, help="share of a clip's length that may be lost; default: 0.05")
    parser.add_argument("--samples_per_shard", type=int, help=f"default: {SAMPLES_PER_SHARD}")
    parser.add_argument("--shard_bytes", type=float, help="bytes of a shard, about; in place of --samples_per_shard")
    parser.add_argument("--seed", type=int, default=0, help="of the order of the samples")
    parser.add_argument("--allow_missing", type=int, default=0, help="videos that may be missing or broken")
    parser.add_argument("--jobs", type=int, help="videos at a time; default: one for each processor")
    parser.add_argument("--shard", help="i/n: the i-th of n shares, counted from 0; default: torchrun's rank")
    return exit_code(lambda: run(parse(parser, argv)), "run the same command again to go on.")


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # like Ctrl-C: schedulers end jobs with it
    raise SystemExit(main())
