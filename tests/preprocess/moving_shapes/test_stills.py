"""Stills: signs stand for motions, and each still comes with its hardest wrong answer."""

from itertools import islice

import cv2
import numpy as np

from preprocess.moving_shapes.stills import draw_stills, plain_still, signed_still
from preprocess.moving_shapes.stories import draw_story


def _sign_colour(image: np.ndarray) -> np.ndarray:
    """Return where a picture [H,W,3] has a colour of the signs: bool [H,W]."""
    shades = np.array([(0, 225, 235), (255, 96, 190)])
    return (np.abs(image[:, :, None].astype(int) - shades).sum(axis=-1) < 60).any(axis=-1)


class TestStills:
    def test_signed_twins_differ_in_the_signs_only(self) -> None:
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

    def test_plain_stills_describe_looks_only(self) -> None:
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
