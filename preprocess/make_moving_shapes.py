"""Write the made world to disk: h264 clips of moving shapes, with csv and json files in MSR-VTT's formats.

    python preprocess/make_moving_shapes.py --output_dir data/moving_shapes

writes the following files, with the same bytes for the same settings:

    videos/<video_id>.mp4        clips of --frames frames at 3 frames a second
    MSRVTT_train.csv             video_id
    MSRVTT_data.json             sentences: caption, video_id (several for a training video, one for a test video)
    MSRVTT_JSFUSION_test.csv     key, vid_key, video_id, sentence
    twins.csv                    video_id, twin_id: one row for each pair of test clips that are each other backwards
    train_twins.csv              the same for the training clips
    frame_captions.json          <video_id>_<caption>: a caption of each frame, for every caption of a training clip
    settings.json                the settings; a second run with the same settings does nothing

Contents (colour, shape and kind of motion) of test clips never occur in training clips. No two test clips share a
content, so that only one clip matches a caption; some contents come both fast and slow.
"""

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from engine.messages import print_error
from preprocess.moving_shapes.files import (
    FRAMES_PER_SECOND,
    fingerprint,
    is_made,
    make_whole,
    write_csv,
    write_video,
)
from preprocess.moving_shapes.stories import Story, caption, draw_story, paraphrases
from preprocess.moving_shapes.takes import Take, stage

FAST_AND_SLOW_SHARE = 0.3  # of the test contents with one thing
VISIBLE = 0.25  # opacity from which a caption of a frame names a thing
SMALL, LARGE = 0.1, 0.2  # radii, as fractions of the image side
ROWS, COLUMNS = ("top", "middle", "bottom"), ("left", "middle", "right")
_MAX_DRAWS = 2000


@dataclass(frozen=True)
class Clip:
    """One planned video: its story, captions, the seed of its staging and its split."""

    video_id: str
    split: str
    story: Story
    captions: tuple[str, ...]
    seed: tuple[int, ...]


def draw_test_pairs(n_pairs: int, rng: np.random.Generator) -> list[tuple[Story, str, str]]:
    """Draw stories of held-out contents, each with its caption and the caption of its reversal.

    No two contents can be confused, and no two captions are equal. ValueError if the world has too few contents.
    """
    pairs: list[tuple[Story, str, str]] = []
    contents: set[str] = set()
    sentences: set[str] = set()
    while len(pairs) < n_pairs:
        for _ in range(_MAX_DRAWS):
            story = draw_story(rng, held_out=True)
            # Neither a resting neighbour nor other events of the same things would clearly tell two clips apart.
            if story.is_order:
                content = " ".join(sorted(str(thing) for thing in story.things))
            else:
                content = f"{story.things[0]} {story.family}"
            if content not in contents:
                break
        else:
            raise ValueError(
                f"--test_pairs {n_pairs} is too many for the contents held out: ask for {len(pairs)} or fewer."
            )
        contents.add(content)
        both_speeds = len(story.things) == 1 and len(pairs) + 2 <= n_pairs and rng.random() < FAST_AND_SLOW_SHARE
        for told in [replace(story, speed=speed) for speed in ("fast", "slow")] if both_speeds else [story]:
            state = rng.bit_generator.state
            forwards = caption(told, rng)
            rng.bit_generator.state = state
            backwards = caption(told.reversed(), rng)
            assert not {forwards, backwards} & sentences, "different contents have different captions"
            sentences.update((forwards, backwards))
            pairs.append((told, forwards, backwards))
    return pairs


def plan(train_pairs: int, test_pairs: int, captions_per_video: int, seed: int) -> tuple[list[Clip], list[Clip]]:
    """Plan all training clips and all test clips, the two of a pair next to each other.

    Captions with the same number are the same sentence in two twins, except for the direction.
    """
    rng = np.random.default_rng([seed, 0])
    training = []
    for i in range(train_pairs):
        # Orders are the hardest to learn, so they are more frequent than in the test split.
        story = draw_story(rng, held_out=False, shares=(0.45, 0.2, 0.35))
        state = rng.bit_generator.state
        for j, told in enumerate((story, story.reversed())):
            rng.bit_generator.state = state
            texts = tuple(paraphrases(told, captions_per_video, rng))
            training.append(Clip(f"video{2 * i + j}", "train", told, texts, (seed, 1, i)))

    rng = np.random.default_rng([seed, 2])
    pairs = draw_test_pairs(test_pairs, rng)
    # Numbers in random order, so that neither a twin's number nor which of the two comes first gives anything away.
    numbers = iter(rng.permutation(2 * test_pairs) + 2 * train_pairs)
    test = []
    for i, (story, forwards, backwards) in enumerate(pairs):
        test.append(Clip(f"video{next(numbers)}", "test", story, (forwards,), (seed, 3, i)))
        test.append(Clip(f"video{next(numbers)}", "test", story.reversed(), (backwards,), (seed, 3, i)))
    return training, test


def frame_captions(take: Take, n_frames: int) -> list[str]:
    """Return a sentence on what each of `n_frames` frames of a take shows: things, sizes and places, no motion.

    The order of the things tells nothing about the story, in which the one with the first event comes first.
    """
    sentences = []
    for i in range(n_frames):
        seen = []
        for thing, pose in take.poses_at(i / max(n_frames - 1, 1)):
            if pose.opacity > VISIBLE:
                size = "small " if pose.radius < SMALL else "large " if pose.radius > LARGE else ""
                row, column = (names[min(max(int(3 * at), 0), 2)] for names, at in ((ROWS, pose.y), (COLUMNS, pose.x)))
                article = "an" if not size and thing.colour == "orange" else "a"
                seen.append(f"{article} {size}{thing} at the {row} {column}".replace("middle middle", "centre"))
        sentences.append(" and ".join(sorted(seen)) or "an empty background")
    return sentences


def _video_number(clip: Clip) -> int:
    return int(clip.video_id.removeprefix("video"))


def write_world(
    folder: Path, training: list[Clip], test: list[Clip], frames: int, image_size: int, progress: Callable = tqdm
) -> None:
    """Write videos, csv and json files of the planned clips into an existing, empty folder."""
    videos = folder / "videos"
    videos.mkdir()
    of_frames: dict[str, list[str]] = {}
    for clip in progress([*training, *test], desc="drawing clips", unit="clip"):
        take = stage(clip.story, np.random.default_rng(clip.seed), image_size)
        write_video(videos / f"{clip.video_id}.mp4", take.frames(frames))
        if clip.split == "train":
            of_frames |= {f"{clip.video_id}_{text}": frame_captions(take, frames) for text in clip.captions}
    (folder / "frame_captions.json").write_text(json.dumps(of_frames, indent=1) + "\n", encoding="utf-8")

    ordered = sorted(test, key=_video_number)
    write_csv(folder / "MSRVTT_train.csv", ["video_id"], [[clip.video_id] for clip in training])
    write_csv(
        folder / "MSRVTT_JSFUSION_test.csv",
        ["key", "vid_key", "video_id", "sentence"],
        [[f"ret{i}", f"msr{_video_number(clip)}", clip.video_id, clip.captions[0]] for i, clip in enumerate(ordered)],
    )
    for name, clips in (("train_twins.csv", training), ("twins.csv", test)):
        pairs = [[one.video_id, other.video_id] for one, other in zip(clips[::2], clips[1::2], strict=True)]
        write_csv(folder / name, ["video_id", "twin_id"], pairs)
    everything = [*training, *ordered]
    sentences = [(clip.video_id, text) for clip in everything for text in clip.captions]
    data = {
        "videos": [
            {"video_id": clip.video_id, "split": clip.split, "category": clip.story.family} for clip in everything
        ],
        "sentences": [
            {"sen_id": i, "video_id": video_id, "caption": text} for i, (video_id, text) in enumerate(sentences)
        ],
    }
    (folder / "MSRVTT_data.json").write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")


def _settings(options: argparse.Namespace) -> dict[str, object]:
    names = ("train_pairs", "test_pairs", "captions_per_video", "seed", "frames", "image_size")
    return fingerprint({name: getattr(options, name) for name in names}, Path(__file__))


def _range(options: argparse.Namespace) -> None:
    limits = {
        "train_pairs": (1, 1_000_000),
        "test_pairs": (1, 1_000_000),
        "captions_per_video": (1, 8),
        "seed": (0, 2**32 - 1),
        "frames": (2, 1000),
        "image_size": (32, 1024),
    }
    for name, (low, high) in limits.items():
        if not low <= getattr(options, name) <= high:
            raise ValueError(f"--{name} must be in {low}..{high}, not {getattr(options, name)}.")
    if options.image_size % 2:
        raise ValueError(f"--image_size must be even for h264, not {options.image_size}.")


def make(options: argparse.Namespace) -> None:
    """Make the world at `options.output_dir`; do nothing if it is there already."""
    _range(options)
    output = options.output_dir
    settings = _settings(options)
    count = f"{2 * options.train_pairs} training and {2 * options.test_pairs} test clips"
    if is_made(output, settings):
        print(f"{output} already holds these {count}; nothing to do.")
        return
    training, test = plan(options.train_pairs, options.test_pairs, options.captions_per_video, options.seed)
    make_whole(output, settings, lambda made: write_world(made, training, test, options.frames, options.image_size))
    size = sum(path.stat().st_size for path in (output / "videos").iterdir())
    print(
        f"{output}: {count} of {options.frames} frames at {FRAMES_PER_SECOND} frames a second, "
        f"{options.image_size}x{options.image_size} pixels, {size / 2**20:.1f} MiB; "
        f"{options.captions_per_video} captions a training clip, one a test clip, seed {options.seed}."
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    parser = argparse.ArgumentParser(description="Write clips of moving shapes in MSR-VTT's file formats.")
    parser.add_argument("--output_dir", type=Path, required=True, help="folder to make, for example data/moving_shapes")
    parser.add_argument("--train_pairs", type=int, default=2000, help="number of training clips and backwards twins")
    parser.add_argument("--test_pairs", type=int, default=120, help="number of test clips and backwards twins")
    parser.add_argument("--captions_per_video", type=int, default=2, help="captions for each training clip")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--frames", type=int, default=12, help="frames in each clip")
    parser.add_argument("--image_size", type=int, default=112, help="side of the frames in pixels")
    try:
        make(parser.parse_args(argv))
    except (ValueError, OSError) as error:
        print_error(error)
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
