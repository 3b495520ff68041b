"""The classes of the made world: what reversal and mirroring do to them, and what averaging frames can tell."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from dataloaders.transforms import normalise
from modules.clip_weights import load_clip
from modules.methods import build_method
from modules.tokenizer import Tokenizer
from preprocess.moving_shapes.actions import BASE, MIRRORED, MOTIONS, RESTING_SHARE, SYMMETRIC, class_key, draw_action
from preprocess.moving_shapes.stories import COLOURS, REVERSED, STAGED, TURNING_SHAPES, Story, phrase
from preprocess.moving_shapes.takes import OUTLINES, Pose, Take, paint, stage

SMALL_CLIP = Path(__file__).parents[3] / "pretrained/moving_shapes_clip.safetensors"


def take_of(motion: str, seed: int, held_out: bool = True) -> Take:
    rng = np.random.default_rng(seed)
    return stage(draw_action(motion, held_out, rng), rng)


def test_sixteen_classes_are_six_pairs_and_four_others() -> None:
    assert len(MOTIONS) == len({class_key(motion) for motion in MOTIONS}) == 16
    assert class_key("right") == "MovesFromLeftToRight"
    assert (
        [motion for motion in MOTIONS if motion not in REVERSED] == list(SYMMETRIC) == ["hop", "blink", "pulse", "rest"]
    )
    pairs = {frozenset((motion, REVERSED[motion])) for motion in REVERSED}
    assert len(pairs) == 6
    assert len(BASE) == 10
    assert sum(pair <= set(BASE) for pair in pairs) == 4
    assert sum(bool(pair & set(BASE)) for pair in pairs) == 4, "both classes of a pair are on one side"
    assert set(BASE) & set(SYMMETRIC) == {"hop", "blink"}


@pytest.mark.parametrize("motion", MOTIONS)
def test_stories_of_a_class(motion: str) -> None:
    rng = np.random.default_rng(0)
    stories = {held_out: [draw_action(motion, held_out, rng) for _ in range(300)] for held_out in (False, True)}
    assert not {story.content for story in stories[False]} & {story.content for story in stories[True]}
    everything = stories[False] + stories[True]
    assert {story.motions[0] for story in everything} == {motion}
    assert not any(story.is_order for story in everything)
    beside = np.mean([len(story.things) == 2 for story in everything])
    # Where things turn, more of the contents with one thing than of those with two happen to be held out.
    assert abs(beside - RESTING_SHARE) < 0.15 if motion in REVERSED else beside == 0
    assert {story.speed for story in everything} == ({""} if motion == "rest" else {"", "fast", "slow"})
    if "spin" in motion:
        assert {story.things[0].shape for story in everything} == set(TURNING_SHAPES)
    assert all(story.reversed().reversed() == story for story in everything)
    assert {story.reversed().motions[0] for story in everything} == {REVERSED.get(motion, motion)}


@pytest.mark.parametrize("motion", [motion for motion in MOTIONS if motion in STAGED])
def test_a_clip_backwards_is_a_clip_of_its_pair(motion: str) -> None:
    for seed in range(4):
        rng = np.random.default_rng(seed)
        story, state = draw_action(motion, False, rng), rng.bit_generator.state
        forwards = stage(story, rng, 64).frames(9)
        rng.bit_generator.state = state
        np.testing.assert_array_equal(stage(story.reversed(), rng, 64).frames(9), forwards[::-1])
        assert (forwards != forwards[::-1]).any()


@pytest.mark.parametrize("motion", SYMMETRIC)
def test_the_other_classes_look_the_same_backwards(motion: str) -> None:
    """Check that what a thing does begins and ends alike, and goes one way as much as the other."""
    for seed in range(4):
        take = take_of(motion, seed)
        assert not take.backwards
        poses = [take.poses_at(float(time))[0][1] for time in np.linspace(0, 1, 2001)]
        assert poses[0].x == poses[-1].x == poses[1000].x
        for values in ([p.y for p in poses], [p.radius for p in poses], [p.opacity for p in poses]):
            changed = np.flatnonzero(np.abs(np.array(values) - values[0]) > 1e-9)
            if len(changed):
                seen = np.array(values)[changed[0] : changed[-1] + 1]
                np.testing.assert_allclose(seen, seen[::-1], atol=0.02)  # the middle may lie between two moments
        moves = any(pose != poses[0] for pose in poses)
        assert moves == (motion != "rest")


def way(take: Take, mirror: bool = False) -> float:
    """Return which way the first thing goes: to the right, or clockwise, if positive."""
    poses = [take.poses_at(float(time))[0][1] for time in np.linspace(0, 1, 60)]
    if mirror:
        poses = [mirrored_pose(pose) for pose in poses]
    x, y = np.array([pose.x for pose in poses]), np.array([pose.y for pose in poses])
    family = take.story.family
    if family == "horizontal":
        return x[-1] - x[0]
    if family == "circling":
        return float(np.sum((x[:-1] - 0.5) * np.diff(y) - (y[:-1] - 0.5) * np.diff(x)))
    return poses[-1].angle - poses[0].angle


def mirrored_pose(pose: Pose) -> Pose:
    return replace(pose, x=1 - pose.x, angle=-pose.angle)


@pytest.mark.parametrize("motion", MOTIONS)
def test_a_mirror_exchanges_the_classes_of_the_flip_map_and_no_other(motion: str) -> None:
    assert len(MIRRORED) == 6
    for seed in range(4):
        take = take_of(motion, seed)
        frames = take.frames(5)
        for i, frame in enumerate(frames):
            drawn = np.ascontiguousarray(take.background[:, ::-1])
            for thing, pose in take.poses_at(i / 4):
                outline = OUTLINES[thing.shape] * [-1, 1]
                if thing.shape != "moon":  # the others are their own mirror images
                    outline = OUTLINES[thing.shape]
                paint(drawn, outline, COLOURS[thing.colour], mirrored_pose(pose))
            # Edges may be rounded the other way.
            assert (np.abs(drawn.astype(int) - frame[:, ::-1]) > 64).mean() < 0.005
        if motion in MIRRORED:
            assert np.sign(way(take, mirror=True)) == -np.sign(way(take)) != 0
            assert np.sign(way(take)) == (1 if motion in STAGED else -1)
            assert np.sign(way(take_of(MIRRORED[motion], seed))) == -np.sign(way(take))


def scores_of(clips: np.ndarray) -> np.ndarray:
    """Score clips uint8 [N,T,H,W,3] against the classes by the small CLIP, averaging frames: [N,16]."""
    method = build_method("clip4clip", load_clip(SMALL_CLIP)).eval()
    video = torch.from_numpy(clips).permute(0, 1, 4, 2, 3)
    texts = Tokenizer(32)([f"a shape {phrase(motion)}" for motion in MOTIONS])
    with torch.no_grad():
        features = method.encode_video(normalise(video), torch.ones(video.shape[:2], dtype=torch.bool))
        return method.similarity(method.encode_text(texts), features).T.numpy()


def test_a_model_that_averages_frames_is_at_chance_in_direction_and_blind_to_order() -> None:
    clips, truth = [], []
    for seed in range(3):
        for motion in MOTIONS:
            if motion in STAGED:
                forwards = take_of(motion, seed).frames(6)
                clips += [forwards, forwards[::-1]]
                truth += [motion, REVERSED[motion]]
            elif motion in SYMMETRIC:
                clips.append(take_of(motion, seed).frames(6))
                truth.append(motion)
    drawn = np.stack(clips)
    scores, row = scores_of(drawn), np.arange(len(truth))
    own = np.array([MOTIONS.index(motion) for motion in truth])
    other = np.array([MOTIONS.index(REVERSED.get(motion, motion)) for motion in truth])
    directed = own != other
    assert directed.sum() == 36
    right = scores[row, own] - scores[row, other]
    assert 100 * np.mean(right[directed] > 0) == 50.0
    assert np.abs(right[directed]).min() > 1e-3, "no difference is rounding"
    assert 100 * np.mean(scores.argmax(axis=1) == own) <= 62.5

    shuffled = drawn[:, np.random.default_rng(0).permutation(6)]
    np.testing.assert_allclose(scores_of(shuffled), scores, atol=1e-4)


def test_a_thing_alone_may_do_what_looks_the_same_backwards() -> None:
    take = take_of("hop", 0)
    assert take.story == Story(take.things, ("hop",), take.story.speed)
    assert take.story.reversed() == take.story
