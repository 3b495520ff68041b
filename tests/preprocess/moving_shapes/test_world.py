"""The embedded world: what is drawn is what the caption says, and backwards play tells the reversed story."""

from itertools import islice

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from preprocess.moving_shapes.world import (
    COLOURS,
    EVENTS,
    REVERSED,
    SHAPES,
    TURNING_SHAPES,
    Story,
    Take,
    Thing,
    caption,
    draw_stills,
    draw_story,
    paraphrases,
    plain_still,
    signed_still,
    stage,
)

HEART, STAR = Thing("red", "heart"), Thing("blue", "star")


def visible(take: Take, n_frames: int = 12) -> np.ndarray:
    """How far each pixel is from the background, float [T,H,W] in 0..1."""
    difference = np.abs(take.frames(n_frames).astype(float) - take.background).sum(axis=-1)
    return np.clip((difference - 30) / 100, 0, 1)


def centroids(mass: np.ndarray) -> np.ndarray:
    """Centre of mass of each frame as (x, y) in 0..1: [T,2]."""
    side = mass.shape[-1]
    ticks = (np.arange(side) + 0.5) / side
    total = mass.sum(axis=(1, 2))
    return np.stack([(mass.sum(axis=1) * ticks).sum(-1) / total, (mass.sum(axis=2) * ticks).sum(-1) / total], axis=1)


def take_of(motion: str, seed: int, speed: str = "", thing: Thing = HEART) -> Take:
    return stage(Story((thing,), (motion,), speed), np.random.default_rng(seed))


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
            # Every other frame is enough to see which way it went.
            assert np.abs(angles[2:] - angles[:-2]).max() < 0.9 * np.pi

    def test_spinning(self, seed: int, speed: str) -> None:
        for motion, sign in (("spin_clockwise", 1), ("spin_anticlockwise", -1)):
            mass = visible(take_of(motion, seed, speed, Thing("white", "moon")))
            centre = centroids(mass)
            ticks = (np.arange(mass.shape[-1]) + 0.5) / mass.shape[-1]
            x, y = ticks[None, None, :] - centre[:, :1, None], ticks[None, :, None] - centre[:, 1:, None]
            # A moon's third moment points out of its opening.
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
        looks = [stage(story, np.random.default_rng(1)).look(time) for time in (0.0, 0.4, 1.0)]
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
    # 1 - t is not the same number on both ways, and a value that lies between two grey levels may fall to either.
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
        poses = [take_of(chosen, seed).look(time)[0][1] for seed in range(100) for time in np.linspace(0, 1, 5)]
        means.append(np.mean([(pose.x, pose.y, pose.radius) for pose in poses], axis=0))
    np.testing.assert_allclose(means[0], means[1], atol=1e-9)


def test_everything_drawn_stays_inside_and_apart() -> None:
    rng = np.random.default_rng(4)
    for _ in range(150):
        take = stage(draw_story(rng, held_out=False), rng)
        for time in np.linspace(0, 1, 7):
            poses = [pose for _, pose in take.look(float(time))]
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


class TestCaptions:
    @settings(max_examples=60)
    @given(seed=st.integers(0, 2**32 - 1))
    def test_twins_differ_in_the_direction_alone(self, seed: int) -> None:
        story = draw_story(np.random.default_rng(seed), held_out=False)
        forwards = caption(story, np.random.default_rng(seed))
        backwards = caption(story.reversed(), np.random.default_rng(seed))
        assert forwards != backwards
        for thing in story.things:
            assert str(thing) in forwards
            assert str(thing) in backwards
        assert len(forwards.split()) <= 18
        if story.is_order:
            assert sorted(forwards.replace(",", "").split()) == sorted(backwards.replace(",", "").split())

    def test_motion_words(self) -> None:
        def sentences(*motions: str, things: tuple[Thing, ...] = (HEART,), speed: str = "") -> set[str]:
            return {caption(Story(things, motions, speed), np.random.default_rng(i)) for i in range(1000)}

        assert "a red heart moves from left to right" in sentences("right")
        assert "the red heart moves from right to left" in sentences("left")
        assert not sentences("right") & sentences("left")
        assert all("anticlockwise" in text for text in sentences("spin_anticlockwise"))
        assert not any("anticlockwise" in text for text in sentences("circle_clockwise"))
        assert {"a red heart slowly gets bigger", "a red heart grows little by little"} <= sentences(
            "grow", speed="slow"
        )
        pair = sentences("hop", "blink", things=(HEART, STAR))
        assert {"a red heart hops before a blue star blinks", "a blue star blinks after a red heart hops"} <= pair
        assert "a blue star blinks before a red heart hops" not in pair
        assert "a red heart rises while a blue star rests" in sentences("up", "rest", things=(HEART, STAR))
        assert "an orange disc hops" in caption(
            Story((Thing("orange", "disc"), STAR), ("hop", "hop")), np.random.default_rng(3)
        ).replace("jumps", "hops").replace("the orange", "an orange")

    def test_paraphrases(self) -> None:
        story = Story((HEART,), ("right",))
        texts = paraphrases(story, 8, np.random.default_rng(0))
        assert len(set(texts)) == 8
        assert texts == paraphrases(story, 8, np.random.default_rng(0))
        with pytest.raises(ValueError, match="fewer than 500 sentences"):
            paraphrases(story, 500, np.random.default_rng(0))


def test_drawn_stories_are_of_every_kind_and_held_out_by_content() -> None:
    rng = np.random.default_rng(0)
    stories = {held_out: [draw_story(rng, held_out) for _ in range(1500)] for held_out in (False, True)}
    assert not {story.content for story in stories[False]} & {story.content for story in stories[True]}
    everything = stories[False] + stories[True]
    assert {story.motions[0] for story in everything} == {*REVERSED, *EVENTS}
    assert {story.speed for story in everything} == {"", "fast", "slow"}
    assert {thing for story in stories[False] for thing in story.things} == {
        Thing(colour, shape) for colour in COLOURS for shape in SHAPES
    }
    turning = {story.things[0].shape for story in everything if story.family == "spinning"}
    assert turning == set(TURNING_SHAPES)
    # A held-out content is not given away by the order in which its two things are named.
    assert Story((HEART, STAR), ("hop", "blink")).content == Story((STAR, HEART), ("blink", "hop")).content


def _sign_colour(image: np.ndarray) -> np.ndarray:
    """Where a picture [H,W,3] has a colour of the signs: bool [H,W]."""
    shades = np.array([(0, 225, 235), (255, 96, 190)])
    return (np.abs(image[:, :, None].astype(int) - shades).sum(axis=-1) < 60).any(axis=-1)


class TestStills:
    def test_signed_twins_differ_in_the_signs_alone(self) -> None:
        for seed in range(60):
            story = draw_story(np.random.default_rng(seed), held_out=False)
            one = signed_still(story, np.random.default_rng(seed))
            other = signed_still(story.reversed(), np.random.default_rng(seed))
            assert one.signed
            assert one.caption != other.caption
            differing = (one.image != other.image).any(axis=-1)
            assert 5 < differing.sum() < 0.3 * differing.size
            signs = (_sign_colour(one.image) | _sign_colour(other.image)).astype(np.uint8)
            around = cv2.dilate(signs, np.ones((7, 7), np.uint8)) > 0
            assert (differing & ~around).sum() < 10  # a ring may be cut off by the frame

    def test_plain_stills_speak_of_looks_alone(self) -> None:
        for seed in range(60):
            story = draw_story(np.random.default_rng(seed), held_out=False)
            still = plain_still(story, np.random.default_rng(seed))
            assert not still.signed
            assert not _sign_colour(still.image).any()
            assert _sign_colour(signed_still(story, np.random.default_rng(seed)).image).sum() > 50
            for thing in story.things:
                assert str(thing) in still.caption
            assert not {"clockwise", "rises", "hops", "while", "before", "grows", "to"} & set(
                still.caption.replace("to the left of", "").replace("to the right of", "").split()
            )

    def test_stream(self) -> None:
        stills = list(islice(draw_stills(np.random.default_rng(7), 64), 400))
        assert all(still.image.shape == (64, 64, 3) and still.image.dtype == np.uint8 for still in stills)
        assert not any(still.story.held_out for still in stills)
        assert 0.5 < np.mean([still.signed for still in stills]) < 0.8
        again = list(islice(draw_stills(np.random.default_rng(7), 64), 400))
        assert [still.caption for still in again] == [still.caption for still in stills]
        assert all(
            still.story.held_out for still in islice(draw_stills(np.random.default_rng(7), 64, held_out=True), 9)
        )

    def test_stills_come_with_their_hardest_wrong_answer(self) -> None:
        stills = list(islice(draw_stills(np.random.default_rng(8), 64), 600))
        kinds = {"reversed": 0, "exchanged": 0, "other shape": 0}
        for one, other in zip(stills[::2], stills[1::2], strict=True):
            assert one.signed == other.signed
            assert one.caption != other.caption
            assert (one.image != other.image).any()
            if other.story == one.story.reversed():
                assert one.signed
                kinds["reversed"] += 1
                continue
            assert other.story.motions == one.story.motions
            assert [thing.colour for thing in other.story.things] == [thing.colour for thing in one.story.things]
            shapes = [[thing.shape for thing in still.story.things] for still in (one, other)]
            if shapes[0] == shapes[1][::-1]:
                kinds["exchanged"] += 1
            else:
                assert sum(a != b for a, b in zip(*shapes, strict=True)) == 1
                kinds["other shape"] += 1
        assert min(kinds.values()) > 20
