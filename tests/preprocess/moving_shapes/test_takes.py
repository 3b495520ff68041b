"""Takes: what is drawn is what the story says, and backwards play tells the reversed story."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from preprocess.moving_shapes.stories import COLOURS, REVERSED, SHAPES, Story, Thing, draw_story
from preprocess.moving_shapes.takes import OUTLINES, Take, stage

HEART, STAR = Thing("red", "heart"), Thing("blue", "star")


def visible(take: Take, n_frames: int = 12) -> np.ndarray:
    """Return how far each pixel is from the background, float [T,H,W] in 0..1."""
    difference = np.abs(take.frames(n_frames).astype(float) - take.background).sum(axis=-1)
    return np.clip((difference - 30) / 100, 0, 1)


def centroids(mass: np.ndarray) -> np.ndarray:
    """Return the centre of mass of each frame as (x, y) in 0..1: [T,2]."""
    side = mass.shape[-1]
    ticks = (np.arange(side) + 0.5) / side
    total = mass.sum(axis=(1, 2))
    return np.stack([(mass.sum(axis=1) * ticks).sum(-1) / total, (mass.sum(axis=2) * ticks).sum(-1) / total], axis=1)


def take_of(motion: str, seed: int, speed: str = "", thing: Thing = HEART) -> Take:
    return stage(Story((thing,), (motion,), speed), np.random.default_rng(seed))


def test_every_shape_has_an_outline() -> None:
    assert tuple(OUTLINES) == SHAPES


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("speed", ["", "fast", "slow"])
class TestMotions:
    def test_travel(self, seed: int, speed: str) -> None:
        for motion, axis, sign in (("right", 0, 1), ("left", 0, -1), ("up", 1, -1), ("down", 1, 1)):
            path = centroids(visible(take_of(motion, seed, speed)))
            steps = sign * np.diff(path[:, axis])
            assert steps.min() > -0.01
            assert steps.sum() > 0.4
            assert abs(path[-1, 1 - axis] - path[0, 1 - axis]) < 0.1

    def test_circling(self, seed: int, speed: str) -> None:
        for motion, sign in (("circle_clockwise", 1), ("circle_anticlockwise", -1)):
            path = centroids(visible(take_of(motion, seed, speed, STAR))) - 0.5
            angles = np.unwrap(np.arctan2(path[:, 1], path[:, 0]))  # y points down: growing angles turn clockwise
            assert np.ptp(np.hypot(*path.T)) < 0.03
            assert sign * (angles[-1] - angles[0]) > np.pi
            # Every other frame is enough to tell the direction.
            assert np.abs(angles[2:] - angles[:-2]).max() < 0.9 * np.pi

    def test_spinning(self, seed: int, speed: str) -> None:
        for motion, sign in (("spin_clockwise", 1), ("spin_anticlockwise", -1)):
            mass = visible(take_of(motion, seed, speed, Thing("white", "moon")))
            centre = centroids(mass)
            ticks = (np.arange(mass.shape[-1]) + 0.5) / mass.shape[-1]
            x, y = ticks[None, None, :] - centre[:, :1, None], ticks[None, :, None] - centre[:, 1:, None]
            # A moon's third moment points out through its opening.
            third = np.stack([(mass * x * (x**2 + y**2)).sum((1, 2)), (mass * y * (x**2 + y**2)).sum((1, 2))])
            angles = np.unwrap(np.arctan2(third[1], third[0]))
            assert sign * (angles[-1] - angles[0]) > 0.4 * np.pi
            assert np.abs(np.diff(angles)).max() < 0.55 * np.pi

    def test_size(self, seed: int, speed: str) -> None:
        for motion, sign in (("grow", 1), ("shrink", -1)):
            area = visible(take_of(motion, seed, speed)).sum(axis=(1, 2))
            assert (sign * np.diff(area) >= -8).all()
            assert max(area[0], area[-1]) > 5 * min(area[0], area[-1])

    def test_presence(self, seed: int, speed: str) -> None:
        for motion, order in (("appear", slice(None)), ("vanish", slice(None, None, -1))):
            mass = visible(take_of(motion, seed, speed)).sum(axis=(1, 2))[order]
            assert mass[0] < 20 < 200 < mass[-1]
            assert (np.diff(mass) >= -1).all()


def test_fast_motions_lie_in_the_middle_and_slow_ones_last_the_whole_clip() -> None:
    for motion in REVERSED:
        for seed in range(5):
            changed = {}
            for speed in ("fast", "slow", ""):
                clip = take_of(motion, seed, speed).frames(12).astype(int)
                changed[speed] = np.flatnonzero(np.abs(np.diff(clip, axis=0)).max(axis=(1, 2, 3)) > 0)
            assert 3 <= len(changed["fast"]) <= 6
            assert changed["fast"].min() >= 2
            assert changed["fast"].max() <= 8
            assert len(changed["slow"]) == 11
            assert len(changed["fast"]) < len(changed[""]) <= 11


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("events", [("hop", "hop"), ("blink", "hop"), ("hop", "pulse"), ("blink", "blink")])
def test_one_event_before_the_other(events: tuple[str, str], seed: int) -> None:
    for things in ((HEART, STAR), (STAR, HEART)):
        take = stage(Story(things, events), np.random.default_rng(seed))
        clip = take.frames(12).astype(int)
        when = []
        for thing in things:
            own = np.abs(clip - np.array(COLOURS[thing.colour])).sum(axis=-1) < 60
            assert own[0].sum() > 100
            assert (own[0] == own[-1]).all()
            when.append(np.flatnonzero((own != own[0]).sum(axis=(1, 2)) > 20))
            assert len(when[-1]) >= 2
        assert when[0].max() < when[1].min()


def test_a_resting_thing_does_not_move() -> None:
    for motion in REVERSED:
        story = Story((HEART, STAR), (motion, "rest"))
        looks = [stage(story, np.random.default_rng(1)).poses_at(time) for time in (0.0, 0.4, 1.0)]
        assert [thing for thing, _ in looks[0]] == [HEART, STAR]
        assert looks[0][1] == looks[1][1] == looks[2][1]
        assert looks[0][0] != looks[2][0]


@settings(max_examples=40)
@given(seed=st.integers(0, 2**32 - 1), held_out=st.booleans(), n_frames=st.integers(1, 16))
def test_backwards_play_is_the_reversed_story(seed: int, held_out: bool, n_frames: int) -> None:
    story = draw_story(np.random.default_rng(seed), held_out)
    assert story.held_out == held_out
    assert story.reversed() != story
    assert story.reversed().reversed() == story
    assert story.reversed().content == story.content
    forwards = stage(story, np.random.default_rng(seed), 64).frames(n_frames)
    backwards = stage(story.reversed(), np.random.default_rng(seed), 64).frames(n_frames)
    assert forwards.dtype == np.uint8
    assert forwards.shape == (n_frames, 64, 64, 3)
    # 1 - t differs by rounding between the two directions, so a value between two grey levels may become either.
    difference = np.abs(backwards.astype(int) - forwards[::-1])
    assert difference.max() <= 1
    assert (difference > 0).mean() < 1e-3
    if n_frames > 3:
        assert (forwards != backwards).any()


@pytest.mark.parametrize("motion", ["right", "up", "grow", "circle_clockwise"])
def test_unordered_frames_say_nothing_about_the_direction(motion: str) -> None:
    """Over many clips, the mean picture of the frames is as likely under a motion as under its reversal."""
    means = []
    for chosen in (motion, REVERSED[motion]):
        takes = [stage(Story((HEART,), (chosen,)), np.random.default_rng(seed), image_size=8) for seed in range(400)]
        poses = [take.poses_at(time)[0][1] for take in takes for time in np.linspace(0, 1, 5)]
        means.append(np.mean([(pose.x, pose.y, pose.radius) for pose in poses], axis=0))
    np.testing.assert_allclose(means[0], means[1], atol=1e-9)


def test_everything_drawn_stays_inside_and_apart() -> None:
    rng = np.random.default_rng(4)
    for _ in range(150):
        take = stage(draw_story(rng, held_out=False), rng)
        for time in np.linspace(0, 1, 7):
            poses = [pose for _, pose in take.poses_at(float(time))]
            for pose in poses:
                assert pose.radius <= min(pose.x, pose.y, 1 - pose.x, 1 - pose.y)
            if len(poses) == 2:
                a, b = poses
                assert np.hypot(a.x - b.x, a.y - b.y) > a.radius + b.radius


def test_things_stand_out_from_every_background() -> None:
    for seed in range(40):
        background = take_of("right", seed).background.astype(int)
        for name, colour in COLOURS.items():
            nearest = np.abs(background - np.array(colour)).sum(axis=-1).min()
            assert nearest > 100, (seed, name)


def test_shapes_are_large_and_different() -> None:
    masks = {}
    for shape in SHAPES:
        mass = visible(take_of("up", 3, thing=Thing("white", shape)))[0] > 0.5
        rows, columns = np.flatnonzero(mass.any(1)), np.flatnonzero(mass.any(0))
        assert 20 <= np.ptp(rows) + 1 <= 50
        assert 20 <= np.ptp(columns) + 1 <= 50
        masks[shape] = mass
    names = list(masks)
    for i, one in enumerate(names):
        for other in names[:i]:
            overlap = (masks[one] & masks[other]).sum() / (masks[one] | masks[other]).sum()
            assert overlap < 0.9, (one, other)
