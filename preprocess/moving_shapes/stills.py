"""Stills of the made world: single moments with captions, some with a small sign that stands for the motion.

Clips never have signs. A model trained on stills alone can learn the motion words from the signs without ever having
seen a motion.

Shapes: H = W image side in pixels, N points of an outline. Places and radii are fractions of the image side, images
uint8 RGB [H,W,3].
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np

from preprocess.moving_shapes.stories import (
    COLOURS,
    REVERSED,
    SHAPES,
    STAGED,
    TURNING_SHAPES,
    Story,
    caption,
    draw_story,
    pick,
)
from preprocess.moving_shapes.takes import OUTLINES, Pose, arc, blend, coverage, paint, stage

# Colours that no thing has. A sign's drawing says which kind of motion; drawing and colour together say which way, or
# which of two events is first. A small model takes far longer to learn signs that differ only in a small arrow head.
_SIGN_COLOURS = ((0, 225, 235), (255, 96, 190))
_SIGN_EDGE = (30, 30, 50)


@dataclass(frozen=True)
class Still:
    """One image uint8 [H,W,3] with its caption; `signed` if a sign stands for the motion of `story`."""

    image: np.ndarray
    caption: str
    story: Story
    signed: bool


def _stroke(points: np.ndarray, width: float) -> list[np.ndarray]:
    """Return the outlines of a line of this width along `points` [N,2], with square ends."""
    pieces = []
    for start, end in pairwise(points):
        step = (end - start) / max(float(np.hypot(*(end - start))), 1e-9) * width / 2
        side = np.array([-step[1], step[0]])
        # Each piece overlaps the next a little, so that there is no seam.
        pieces.append(
            np.array(
                [start - 0.5 * step + side, end + 0.5 * step + side, end + 0.5 * step - side, start - 0.5 * step - side]
            )
        )
    return pieces


def _arrow(
    tail: tuple[float, float], tip: tuple[float, float], width: float = 0.2, head: float = 0.62
) -> list[np.ndarray]:
    start, end = np.array(tail), np.array(tip)
    step = (end - start) / np.hypot(*(end - start))
    side = np.array([-step[1], step[0]])
    neck = end - step * head
    barb = np.array([end, neck + side * head * 0.72, neck - side * head * 0.72])
    return [*_stroke(np.stack([start, neck + step * 0.05]), width), barb]


def _turning_arrow(clockwise: bool) -> list[np.ndarray]:
    ring = arc(-0.9 * math.pi, 0.45 * math.pi, 20, 0.68)
    step = (ring[-1] - ring[-2]) / np.hypot(*(ring[-1] - ring[-2]))
    side = np.array([-step[1], step[0]])
    barb = np.array([ring[-1] + 0.66 * step, ring[-1] + 0.46 * side, ring[-1] - 0.46 * side])
    pieces = [*_stroke(ring, 0.22), barb]
    return pieces if clockwise else [piece * np.array([-1.0, 1.0]) for piece in pieces]


def _frame_outline(half: float, width: float) -> list[np.ndarray]:
    corners = np.array([[-half, -half], [half, -half], [half, half], [-half, half], [-half, -half]])
    return _stroke(corners, width)


def _dot(x: float, y: float, radius: float) -> np.ndarray:
    return arc(0, 2 * math.pi, 17)[:-1] * radius + np.array([x, y])


_DIAGONALS = tuple((x * math.sqrt(0.5), y * math.sqrt(0.5)) for x in (-1, 1) for y in (-1, 1))


def _size_sign(outward: bool) -> list[np.ndarray]:
    near, far = 0.42, 1.3
    pieces = _frame_outline(0.24, 0.16)
    for x, y in _DIAGONALS:
        inner, outer = (x * near, y * near), (x * far, y * far)
        pieces += _arrow(*((inner, outer) if outward else (outer, inner)), width=0.16, head=0.5)
    return pieces


# Signs within the square -1..1, x to the right and y down.
_SIGNS: dict[str, list[np.ndarray]] = {
    "right": _arrow((-0.95, 0.0), (0.95, 0.0)),
    "left": _arrow((0.95, 0.0), (-0.95, 0.0)),
    "up": _arrow((0.0, 0.95), (0.0, -0.95)),
    "down": _arrow((0.0, -0.95), (0.0, 0.95)),
    "circle_clockwise": [*_turning_arrow(True), _dot(0.0, 0.0, 0.26)],
    "circle_anticlockwise": [*_turning_arrow(False), _dot(0.0, 0.0, 0.26)],
    "spin_clockwise": _turning_arrow(True),
    "spin_anticlockwise": _turning_arrow(False),
    "grow": _size_sign(True),
    "shrink": _size_sign(False),
    "appear": [
        *_frame_outline(0.8, 0.16),
        *_arrow((0.0, 0.5), (0.0, -0.55), 0.2, 0.5),
        *_stroke(np.array([[-0.45, 0.5], [0.45, 0.5]]), 0.2),
    ],
    "vanish": _stroke(np.array([[-0.8, -0.8], [0.8, 0.8]]), 0.24) + _stroke(np.array([[0.8, -0.8], [-0.8, 0.8]]), 0.24),
    "hop": _stroke(arc(math.pi, 2 * math.pi, 16, 0.8) + np.array([0.0, 0.4]), 0.24),
    "blink": [
        piece
        for x, y in (*_DIAGONALS, (1, 0), (-1, 0), (0, 1), (0, -1))
        for piece in _stroke(np.array([[0.35 * x, 0.35 * y], [0.95 * x, 0.95 * y]]), 0.18)
    ],
    "pulse": _stroke(arc(0, 2 * math.pi, 28, 0.8), 0.18) + _stroke(arc(0, 2 * math.pi, 20, 0.38), 0.18),
    "rest": _stroke(np.array([[-0.35, -0.7], [-0.35, 0.7]]), 0.3) + _stroke(np.array([[0.35, -0.7], [0.35, 0.7]]), 0.3),
}
# Strips below the sign, three times as wide as high: tempo, or the place in the order.
_STRIPS: dict[str, list[np.ndarray]] = {
    "fast": [piece for y in (-0.27, 0.0, 0.27) for piece in _stroke(np.array([[-0.9, y], [0.9, y]]), 0.13)],
    "slow": [_dot(x, 0.0, 0.2) for x in (-0.7, 0.0, 0.7)],
    "first": [np.array([[-0.3, -0.3], [0.3, -0.3], [0.3, 0.3], [-0.3, 0.3]])],
    "second": [np.array([[c - 0.3, -0.3], [c + 0.3, -0.3], [c + 0.3, 0.3], [c - 0.3, 0.3]]) for c in (-0.5, 0.5)],
}
_SIGN_HALF, _STRIP_HALF = 0.12, 0.055
_RING = 1.3  # radii of the thing


def _paint_sign(image: np.ndarray, sign: str, strip: str, x: float, y: float, around: Pose) -> None:
    """Draw the sign of the thing at `around`, its board centred at (x, y), with a strip unless `strip` is ""."""
    import cv2

    side = image.shape[0]
    pieces = [(piece * _SIGN_HALF + (x, y - (_STRIP_HALF if strip else 0.0))) * side for piece in _SIGNS[sign]]
    if strip:
        pieces += [(piece * _SIGN_HALF + (x, y + _SIGN_HALF)) * side for piece in _STRIPS[strip]]
    if strip in ("first", "second"):
        # Two things have two signs: a ring says which sign belongs to which.
        ring = arc(0, 2 * math.pi, 41, _RING * around.radius) + np.array([around.x, around.y])
        pieces += [piece * side for piece in _stroke(ring, 0.022)]
    covered = coverage(pieces, side)
    colour = _SIGN_COLOURS[strip == "second" or (sign in REVERSED and sign not in STAGED)]
    edge = cv2.dilate(covered, cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (3, 3)))
    blend(image, edge, _SIGN_EDGE)
    blend(image, covered, colour)


def _sign_place(
    pose: Pose, reach: float, half_height: float, taken: list[tuple[float, float, float]], rng: np.random.Generator
) -> tuple[float, float] | None:
    """Return a free place for a board `reach` radii beside a thing, clear of the circles (x, y, radius) in `taken`."""
    sides = ((1.0, 0.0), (-1.0, 0.0), (0.0, 1.0), (0.0, -1.0))
    for turn in rng.permutation(4):
        dx, dy = sides[turn]
        x = pose.x + dx * (reach * pose.radius + _SIGN_HALF + 0.025)
        y = pose.y + dy * (reach * pose.radius + half_height + 0.025)
        if not (_SIGN_HALF < x < 1 - _SIGN_HALF and half_height < y < 1 - half_height):
            continue
        if all(
            math.hypot(max(abs(x - a) - _SIGN_HALF, 0.0), max(abs(y - b) - half_height, 0.0)) > radius
            for a, b, radius in taken
        ):
            return x, y
    return None


def signed_still(story: Story, rng: np.random.Generator, image_size: int = 112) -> Still:
    """Draw a moment of a story with a sign beside each thing that says what it does, and the story's caption.

    With generators in the same state, the stills of a story and its reversal differ in the signs alone.
    """
    strips = ("first", "second") if story.is_order else (story.speed, "")
    reach = _RING + 0.08 if story.is_order else 1.05
    while True:
        take = stage(story, rng, image_size)
        # Staged time, not the story's, so that the moment does not tell a story from its reversal.
        staged = float(rng.uniform())
        seen = take.poses_at(1.0 - staged if take.backwards else staged)
        seen = [(thing, replace(pose, opacity=max(pose.opacity, 0.6))) for thing, pose in seen]
        taken: list[tuple[float, float, float]] = []
        places = []
        order = sorted(range(len(seen)), key=lambda i: seen[i][0])
        for i in order:
            half_height = _SIGN_HALF + (_STRIP_HALF if strips[i] else 0.0)
            # Farther from the other thing than from its own, or it could be read as the other's.
            others = [(pose.x, pose.y, reach * pose.radius + 0.05) for j, (_, pose) in enumerate(seen) if j != i]
            place = _sign_place(seen[i][1], reach, half_height, others + taken, rng)
            if place is None:
                break
            taken.append((*place, _SIGN_HALF + 0.03))
            places.append((i, place))
        if len(places) == len(seen):
            break
    image = take.background.copy()
    for thing, pose in seen:
        paint(image, OUTLINES[thing.shape], COLOURS[thing.colour], pose)
    for i, (x, y) in places:
        _paint_sign(image, story.motions[i], strips[i], x, y, seen[i][1])
    return Still(image, caption(story, rng), story, signed=True)


def _size_word(radius: float) -> str:
    return "small " if radius < 0.115 else "big " if radius > 0.165 else ""


def _place_words(pose: Pose) -> str:
    row = "top" if pose.y < 0.38 else "bottom" if pose.y > 0.62 else ""
    column = "left" if pose.x < 0.38 else "right" if pose.x > 0.62 else ""
    if row and column:
        return f"in the {row} {column} corner"
    return f"at the {row}" if row else f"on the {column}" if column else "in the middle"


def plain_still(story: Story, rng: np.random.Generator, image_size: int = 112) -> Still:
    """Draw a moment of a story without a sign; the caption names size, colour, shape and place, but no motion."""
    take = stage(story, rng, image_size)
    seen = [
        (thing, replace(pose, opacity=max(pose.opacity, 0.6))) for thing, pose in take.poses_at(float(rng.uniform()))
    ]
    image = take.background.copy()
    for thing, pose in seen:
        paint(image, OUTLINES[thing.shape], COLOURS[thing.colour], pose)
    names = []
    for thing, pose in seen:
        size = _size_word(pose.radius) if rng.random() < 0.7 else ""
        names.append(f"{'an' if not size and thing.colour == 'orange' else 'a'} {size}{thing}")
    if len(seen) == 1:
        sentence = f"{names[0]} {_place_words(seen[0][1])}" if rng.random() < 0.8 else names[0]
    else:
        one, two = seen[0][1], seen[1][1]
        across, along = one.x - two.x, one.y - two.y
        if abs(across) > abs(along):
            relation = "to the left of" if across < 0 else "to the right of"
        else:
            relation = "above" if along < 0 else "below"
        sentence = f"{names[0]} {relation if rng.random() < 0.8 else 'and'} {names[1]}"
    return Still(image, sentence, story, signed=False)


def _other_shapes(story: Story, rng: np.random.Generator) -> Story:
    """Return the same story of things of the same colours, with their shapes exchanged or one shape replaced."""
    shapes = [thing.shape for thing in story.things]
    colours = {thing.colour for thing in story.things}
    if len(set(shapes)) == len(colours) == 2 and story.family != "spinning" and rng.random() < 0.5:
        shapes.reverse()
    else:
        changed = int(rng.integers(len(shapes)))
        choices = TURNING_SHAPES if story.family == "spinning" and changed == 0 else SHAPES
        shapes[changed] = pick([shape for shape in choices if shape != shapes[changed]], rng)
    things = tuple(replace(thing, shape=shape) for thing, shape in zip(story.things, shapes, strict=True))
    return replace(story, things=things)


def draw_stills(
    rng: np.random.Generator,
    image_size: int = 112,
    signed_share: float = 0.65,
    held_out: bool = False,
) -> Iterator[Still]:
    """Yield stills without end, of contents that are `held_out` for the test split or of those that are not.

    `signed_share` of them have signs. They come in pairs that differ little: a signed story and its reversal, or a
    story and the same story with other shapes. In a contrastive batch each is the other's hardest negative; without
    them, colours alone tell most stills of a batch apart.
    """
    while True:
        # Orders are the hardest to learn, so they are more frequent than in the clips.
        story = draw_story(rng, held_out, shares=(0.45, 0.2, 0.35))
        still = signed_still if rng.random() < signed_share else plain_still
        if still is signed_still and rng.random() < 0.65:
            other = story.reversed()
        else:
            other = _other_shapes(story, rng)
            if other.held_out != held_out or len(set(other.things)) < len(other.things):
                continue
        state = rng.bit_generator.state
        yield still(story, rng, image_size)
        rng.bit_generator.state = state
        yield still(other, rng, image_size)
