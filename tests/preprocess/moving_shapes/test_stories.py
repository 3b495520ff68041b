"""Stories: their captions, and which contents are held out for the test split."""

from hashlib import sha256

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from preprocess.moving_shapes.stories import (
    COLOURS,
    EVENTS,
    REVERSED,
    SHAPES,
    TURNING_SHAPES,
    Story,
    Thing,
    caption,
    draw_story,
    paraphrases,
)

HEART, STAR = Thing("red", "heart"), Thing("blue", "star")


class TestCaptions:
    @settings(max_examples=60)
    @given(seed=st.integers(0, 2**32 - 1))
    def test_twins_differ_in_the_direction_only(self, seed: int) -> None:
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
    # The order in which its two things are named does not change a content.
    assert Story((HEART, STAR), ("hop", "blink")).content == Story((STAR, HEART), ("blink", "hop")).content


def test_a_seed_gives_the_same_stories_and_captions_in_every_version() -> None:
    """Versions of the code are compared by their results on the made world."""
    rng = np.random.default_rng(0)
    drawn = [draw_story(rng, held_out) for held_out in (False, True) for _ in range(200)]
    text = "\n".join(f"{story} {caption(story, rng)}" for story in drawn)
    assert sha256(text.encode()).hexdigest()[:16] == "f9a60b6a977f7724"
