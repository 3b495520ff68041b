"""The classes of the made world for action recognition: what one thing does, in 16 classes.

Twelve classes are six pairs: each is the other played backwards, so only the order of the frames tells them apart. Four
look the same backwards. A class is called by its motion's first phrase, and its key is that phrase in UCF101's
CamelCase: "moves from left to right" is MovesFromLeftToRight.
"""

import numpy as np

from preprocess.moving_shapes.stories import (
    EVENTS,
    FAMILIES,
    REVERSED,
    SHAPES,
    SPEEDS,
    TURNING_SHAPES,
    Story,
    draw_thing,
    phrase,
    pick,
)

SYMMETRIC = (*EVENTS, "rest")
MOTIONS = (*REVERSED, *SYMMETRIC)
# A mirror exchanges these. All outlines but the moon's are their own mirror images, and the moon's turned by half a
# turn is its mirror image, so a mirrored clip is a clip of this world.
MIRRORED: dict[str, str] = {
    motion: REVERSED[motion] for motion in REVERSED if FAMILIES[motion] in ("horizontal", "circling", "spinning")
}
# The base classes of base-to-novel: four pairs and two others. "clockwise" is a word of both sides.
_BASE_FAMILIES = ("horizontal", "circling", "size", "presence")
BASE = (*(motion for motion in REVERSED if FAMILIES[motion] in _BASE_FAMILIES), "hop", "blink")

RESTING_SHARE = 0.4  # of the clips of the twelve classes: beside a thing that rests


def class_key(motion: str) -> str:
    """Return the name of a class's folder: "MovesFromLeftToRight"."""
    return "".join(word.capitalize() for word in phrase(motion).split())


def draw_action(motion: str, held_out: bool, rng: np.random.Generator) -> Story:
    """Draw a story of a class; its content is `held_out` for the test split, or is not."""
    while True:
        thing = draw_thing(rng, TURNING_SHAPES if FAMILIES.get(motion) == "spinning" else SHAPES)
        beside = draw_thing(rng)
        if motion in REVERSED and rng.random() < RESTING_SHARE:
            story = Story((thing, beside), (motion, "rest"))
        else:
            story = Story((thing,), (motion,), "" if motion == "rest" else pick(SPEEDS, rng))
        if story.held_out == held_out and (len(story.things) == 1 or thing != beside):
            return story
