"""Write the made world for action recognition to disk: h264 clips of moving shapes in UCF101's own layout.

    python preprocess/make_moving_actions.py --output_dir data/moving_actions

writes the following files, with the same bytes for the same settings:

    videos/<Class>/v_<Class>_g<group>_c01.mp4   clips of 8 to 12 frames at 3 frames a second
    ucfTrainTestlist/classInd.txt               <id from 1> <Class>
    ucfTrainTestlist/trainlist01.txt            <Class>/<file> <id from 1>
    ucfTrainTestlist/testlist01.txt             <Class>/<file>
    labels.csv                                  id,name: ids from 0, what a text calls the class
    flip_map.csv                                class,mirrored: the classes that a horizontal flip exchanges
    twins.csv                                   class,reversed: the classes that are each other played backwards
    train_twins.csv                             video_id,twin_id: the training clips that are
    few_shot/train1_few_shot_<K>.txt            <Class>/<file> <id from 0>: K = 2, 4, 8 and 16 training clips a class
    base_classes.txt, novel_classes.txt         the two halves of base-to-novel, one class a line
    settings.json                               the settings; a second run with the same settings does nothing

A group is one take. Group NN of a class and of its reverse is the same take, played both ways: the frames of one are
those of the other in backwards order, to the bit. As every frame is encoded alone, that also holds after decoding. As
in UCF101's split 1, the lowest groups are the test's. Contents (colour, shape and kind of motion) of test clips never
occur in training clips.

A model that ignores the order of frames cannot tell the classes of a pair apart. It scores exactly 50 in `direction`
and, over all classes, at most (12 / 2 + 4) / 16 = 62.5 % top-1.
"""

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from engine.messages import print_error
from preprocess.moving_shapes.actions import BASE, MIRRORED, MOTIONS, SYMMETRIC, class_key, draw_action
from preprocess.moving_shapes.files import (
    FRAMES_PER_SECOND,
    fingerprint,
    is_made,
    make_whole,
    write_csv,
    write_video,
)
from preprocess.moving_shapes.stories import REVERSED, STAGED, phrase
from preprocess.moving_shapes.takes import stage
from preprocess.shards import default_jobs

SHOTS = (2, 4, 8, 16)
KEYS = tuple(sorted(class_key(motion) for motion in MOTIONS))  # in the order of their ids, as in UCF101
_MOTION = {class_key(motion): motion for motion in MOTIONS}


@dataclass(frozen=True)
class Group:
    """One take: the motion that is staged, the group's number from 1, its split and its seed."""

    motion: str
    number: int
    test: bool
    seed: tuple[int, ...]

    @property
    def motions(self) -> tuple[str, ...]:
        """The motions of the clips that this take gives: forwards, and backwards where that is another class."""
        return (self.motion, REVERSED[self.motion]) if self.motion in STAGED else (self.motion,)


def file_name(key: str, number: int) -> str:
    """Return where a clip lies below `videos`: "Rises/v_Rises_g03_c01.mp4"."""
    return f"{key}/v_{key}_g{number:02d}_c01.mp4"


def plan(train_groups: int, test_groups: int, seed: int) -> list[Group]:
    """Plan the takes of all classes, those of the test first."""
    staged = [motion for motion in MOTIONS if motion in STAGED or motion in SYMMETRIC]
    return [
        Group(motion, number, number <= test_groups, (seed, 4, MOTIONS.index(motion), number))
        for motion in staged
        for number in range(1, test_groups + train_groups + 1)
    ]


def draw_group(group: Group, frames: tuple[int, int], image_size: int) -> Iterator[tuple[str, np.ndarray]]:
    """Yield the clips of a take: the motion, and the frames uint8 [T,H,W,3], T in `frames` (both ends included)."""
    rng = np.random.default_rng(group.seed)
    story = draw_action(group.motion, group.test, rng)
    n_frames = int(rng.integers(frames[0], frames[1] + 1))
    forwards = stage(story, rng, image_size).frames(n_frames)
    yield from zip(group.motions, (forwards, forwards[::-1]), strict=False)  # a take of a symmetric class gives one


def write_group(videos: Path, frames: tuple[int, int], image_size: int, group: Group) -> None:
    """Draw a take and write its clips below `videos`, whose class folders exist."""
    for motion, clip in draw_group(group, frames, image_size):
        path = videos / file_name(class_key(motion), group.number)
        write_video(path, np.ascontiguousarray(clip), every_frame_alone=True)


def draw_shots(training: range, shots: int, seed: int) -> list[tuple[str, int]]:
    """Draw K of the training groups for each class: (class, group), sorted. Lists of different K are not nested."""
    drawn = []
    for row, key in enumerate(KEYS):
        rng = np.random.default_rng([seed, 5, shots, row])
        drawn += [(key, int(number)) for number in np.sort(rng.choice(training, shots, replace=False))]
    return drawn


def _write_lists(folder: Path, train_groups: int, test_groups: int, seed: int) -> None:
    def lines(path: Path, rows: Sequence[str]) -> None:
        path.parent.mkdir(exist_ok=True)
        path.write_text("".join(f"{row}\n" for row in rows), encoding="utf-8", newline="\n")

    ids = {key: number for number, key in enumerate(KEYS, start=1)}
    test, training = range(1, test_groups + 1), range(test_groups + 1, test_groups + train_groups + 1)
    lists = folder / "ucfTrainTestlist"
    lines(lists / "classInd.txt", [f"{number} {key}" for key, number in ids.items()])
    lines(lists / "trainlist01.txt", [f"{file_name(key, n)} {ids[key]}" for key in KEYS for n in training])
    lines(lists / "testlist01.txt", [file_name(key, n) for key in KEYS for n in test])
    for shots in (shots for shots in SHOTS if shots <= train_groups):
        drawn = draw_shots(training, shots, seed)
        # As in the published lists, ids count from 0 here.
        lines(folder / f"few_shot/train1_few_shot_{shots}.txt", [f"{file_name(k, n)} {ids[k] - 1}" for k, n in drawn])
    write_csv(folder / "labels.csv", ["id", "name"], [(row, phrase(_MOTION[key])) for row, key in enumerate(KEYS)])
    for name, header, other in (("flip_map", "mirrored", MIRRORED), ("twins", "reversed", REVERSED)):
        pairs = [(key, class_key(other[_MOTION[key]])) for key in KEYS if _MOTION[key] in other]
        write_csv(folder / f"{name}.csv", ["class", header], pairs)
    twins = [(key, other) for key, other in pairs if key < other]
    pairs = [(Path(file_name(a, n)).stem, Path(file_name(b, n)).stem) for a, b in twins for n in training]
    write_csv(folder / "train_twins.csv", ["video_id", "twin_id"], pairs)
    lines(folder / "base_classes.txt", [key for key in KEYS if _MOTION[key] in BASE])
    lines(folder / "novel_classes.txt", [key for key in KEYS if _MOTION[key] not in BASE])


@contextmanager
def _mapped(jobs: int) -> Iterator[Callable]:
    """Give a `map` over `jobs` processes; with one job, the builtin."""
    if jobs == 1:
        yield map
        return
    # Not forked: PyAV and OpenCV may hold threads.
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        try:
            yield partial(pool.map, chunksize=16)
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)  # otherwise it draws everything before it tells the error
            raise


def write_world(folder: Path, options: argparse.Namespace) -> None:
    """Write videos and lists into an existing, empty folder."""
    groups = plan(options.train_groups, options.test_groups, options.seed)
    for key in KEYS:
        (folder / "videos" / key).mkdir(parents=True)
    write = partial(write_group, folder / "videos", (options.min_frames, options.max_frames), options.image_size)
    with _mapped(min(options.jobs, len(groups))) as mapped:
        for _ in tqdm(mapped(write, groups), "drawing takes", len(groups), unit="take"):
            pass
    _write_lists(folder, options.train_groups, options.test_groups, options.seed)


def _check_range(options: argparse.Namespace) -> None:
    limits = {
        "train_groups": (1, 100_000),
        "test_groups": (1, 100_000),
        "seed": (0, 2**32 - 1),
        "min_frames": (2, 1000),
        "max_frames": (2, 1000),
        "image_size": (32, 1024),
        "jobs": (1, 1024),
    }
    for name, (low, high) in limits.items():
        if not low <= getattr(options, name) <= high:
            raise ValueError(f"--{name} must be in {low}..{high}, not {getattr(options, name)}.")
    if options.image_size % 2:
        raise ValueError(f"--image_size must be even for h264, not {options.image_size}.")
    if options.min_frames > options.max_frames:
        raise ValueError(f"--min_frames {options.min_frames} is more than --max_frames {options.max_frames}.")


def make(options: argparse.Namespace) -> None:
    """Make the world at `options.output_dir`; do nothing if it is there already."""
    _check_range(options)
    output = options.output_dir
    names = ("train_groups", "test_groups", "seed", "min_frames", "max_frames", "image_size")
    settings = fingerprint({name: getattr(options, name) for name in names}, Path(__file__))
    classes = len(KEYS)
    count = f"{classes * options.train_groups} training and {classes * options.test_groups} test clips"
    if is_made(output, settings):
        print(f"{output} already holds these {count}; nothing to do.")
        return
    make_whole(output, settings, partial(write_world, options=options))
    size = sum(path.stat().st_size for path in (output / "videos").rglob("*.mp4"))
    print(
        f"{output}: {count} of {classes} classes, {options.min_frames} to {options.max_frames} frames at "
        f"{FRAMES_PER_SECOND} frames a second, {options.image_size}x{options.image_size} pixels, "
        f"{size / 2**20:.1f} MiB; seed {options.seed}."
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    parser = argparse.ArgumentParser(description="Write clips of moving shapes in UCF101's file formats.")
    parser.add_argument(
        "--output_dir", type=Path, required=True, help="folder to make, for example data/moving_actions"
    )
    parser.add_argument("--train_groups", type=int, default=256, help="training clips of each of the 16 classes")
    parser.add_argument("--test_groups", type=int, default=15, help="test clips of each class")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--min_frames", type=int, default=8, help="frames of the shortest clips")
    parser.add_argument("--max_frames", type=int, default=12, help="frames of the longest clips")
    parser.add_argument("--image_size", type=int, default=112, help="side of the frames in pixels")
    parser.add_argument("--jobs", type=int, default=default_jobs(), help="processes that draw (default: %(default)s)")
    try:
        make(parser.parse_args(argv))
    except (ValueError, OSError) as error:
        print_error(error)
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
