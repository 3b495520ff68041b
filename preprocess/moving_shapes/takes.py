"""Takes of the made world: a story staged with places, sizes and speeds, which can be drawn at any moment.

A story and its reversal are staged alike and played in opposite directions. The frames of a clip in backwards order are
therefore exactly the clip of the reversed story.

Shapes: T frames, H = W image side in pixels, N points of an outline. Places and radii are fractions of the image side,
times fractions of the clip (0 first frame, 1 last frame), angles radians, images uint8 RGB [H,W,3].
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from preprocess.moving_shapes.stories import COLOURS, STAGED, Story, Thing, pick

# ---- outlines -------------------------------------------------------------------------------------------------------


def arc(start: float, end: float, points: int, radius: float = 1.0) -> np.ndarray:
    """Return `points` points, [N,2], on an arc around the origin."""
    angles = np.linspace(start, end, points)
    return radius * np.stack([np.cos(angles), np.sin(angles)], axis=1)


def _star() -> np.ndarray:
    radii = np.where(np.arange(10) % 2 == 0, 1.08, 0.44)[:, None]
    return arc(-math.pi / 2, 1.5 * math.pi, 11)[:-1] * radii


def _cross() -> np.ndarray:
    arm = 0.33
    quarter = np.array([[arm, -1.0], [arm, -arm], [1.0, -arm]])
    turn = np.array([[0.0, 1.0], [-1.0, 0.0]])
    return np.concatenate([quarter @ np.linalg.matrix_power(turn, k) for k in range(4)])


def _heart() -> np.ndarray:
    t = np.linspace(0, 2 * math.pi, 60, endpoint=False)
    x = 16 * np.sin(t) ** 3
    y = -(13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t))
    return np.stack([x, y - 2.5], axis=1) / 15.5


def _moon() -> np.ndarray:
    outer = arc(0.28 * math.pi, 1.72 * math.pi, 40)
    tip = outer[-1]
    centre = np.array([0.58, 0.0])
    radius = float(np.hypot(*(tip - centre)))
    angle = math.atan2(tip[1] - centre[1], tip[0] - centre[0])
    inner = centre + arc(angle, -angle - 2 * math.pi, 30, radius)
    return np.concatenate([outer, inner]) * 1.05 + np.array([0.15, 0.0])


# Outlines [N,2] of the SHAPES around the origin, x to the right and y down, with a radius of about 1.
OUTLINES: dict[str, np.ndarray] = {
    "disc": arc(0, 2 * math.pi, 49)[:-1] * 0.95,
    "square": np.array([[-0.84, -0.84], [0.84, -0.84], [0.84, 0.84], [-0.84, 0.84]]),
    "triangle": np.array([[0.0, -1.1], [0.82, 0.85], [-0.82, 0.85]]),
    "star": _star(),
    "cross": _cross(),
    "heart": _heart(),
    "moon": _moon(),
}


# ---- staging --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Pose:
    """How a thing looks at one moment: centre and radius as fractions of the image side, angle, opacity in 0..1."""

    x: float
    y: float
    radius: float
    angle: float = 0.0
    opacity: float = 1.0


Course = Callable[[float], Pose]


@dataclass(frozen=True)
class Take:
    """A staged story: `poses[i](time)` is the pose of `things[i]` at a staged time in 0..1; `background` uint8 [H,W,3].

    `backwards` means that the story runs against the staged time.
    """

    story: Story
    things: tuple[Thing, ...]
    poses: tuple[Course, ...]
    background: np.ndarray
    backwards: bool

    def poses_at(self, time: float) -> list[tuple[Thing, Pose]]:
        """Return the things in the story's order, each with its pose at `time` (0 first frame, 1 last frame)."""
        staged = 1.0 - time if self.backwards else time
        seen = {thing: pose(staged) for thing, pose in zip(self.things, self.poses, strict=True)}
        return [(thing, seen[thing]) for thing in self.story.things]

    def draw(self, time: float) -> np.ndarray:
        """Draw the frame at `time`: uint8 [H,W,3]."""
        image = self.background.copy()
        for thing, pose in self.poses_at(time):
            paint(image, OUTLINES[thing.shape], COLOURS[thing.colour], pose)
        return image

    def frames(self, n_frames: int) -> np.ndarray:
        """Draw the clip: uint8 [T,H,W,3], frames evenly spread from time 0 to time 1."""
        # Drawn in staged order and then reversed, because 1 - i/n is not always (n-i)/n in floating point.
        staged = replace(self, backwards=False)
        clip = np.stack([staged.draw(i / max(n_frames - 1, 1)) for i in range(n_frames)])
        return np.ascontiguousarray(clip[::-1]) if self.backwards else clip


def _progress(time: float, start: float, end: float) -> float:
    return min(max((time - start) / (end - start), 0.0), 1.0)


def _window(speed: str, rng: np.random.Generator) -> tuple[float, float]:
    """Draw start and end of a motion within the clip; fast ones lie in the middle, to be fast backwards too."""
    length = {"fast": rng.uniform(0.28, 0.36), "slow": rng.uniform(0.96, 1.0), "": rng.uniform(0.60, 0.82)}[speed]
    centre = 0.5 + rng.uniform(-0.5, 0.5) * min(1.0 - length, 0.18)
    return centre - length / 2, centre + length / 2


def _motion(motion: str, radius: float, window: tuple[float, float], rng: np.random.Generator) -> Course:
    """Draw a path for one of the staged motions; returns time -> Pose."""
    start, end = window
    tilt = rng.uniform(-0.12, 0.12)
    low, high = radius + 0.02, 1.0 - radius - 0.02

    if motion in ("right", "up"):
        length = rng.uniform(0.44, high - low)
        begin = rng.uniform(low, high - length)
        across = rng.uniform(low + 0.06, high - 0.06)
        drift = rng.uniform(-0.06, 0.06)

        def travel(time: float) -> Pose:
            p = _progress(time, start, end)
            along, aside = begin + length * p, across + drift * (p - 0.5)
            return Pose(along, aside, radius, tilt) if motion == "right" else Pose(aside, 1.0 - along, radius, tilt)

        return travel

    if motion == "circle_clockwise":
        orbit = rng.uniform(0.29, 0.47 - radius)
        begin, arc = rng.uniform(0, 2 * math.pi), rng.uniform(1.15, 1.55) * math.pi

        def circle(time: float) -> Pose:
            angle = begin + arc * _progress(time, start, end)
            return Pose(0.5 + orbit * math.cos(angle), 0.5 + orbit * math.sin(angle), radius, tilt)

        return circle

    if motion == "spin_clockwise":
        x, y = rng.uniform(low, high, 2)
        # A fast turn takes two steps of eight frames; a longer arc could then be read as a turn the other way.
        begin, arc = rng.uniform(0, 2 * math.pi), rng.uniform(0.55, 0.75) * math.pi
        return lambda time: Pose(x, y, radius, begin + arc * _progress(time, start, end))

    x, y = rng.uniform(low, high, 2)
    if motion == "grow":
        small = radius * rng.uniform(0.26, 0.36)
        return lambda time: Pose(x, y, small + (radius - small) * _progress(time, start, end), tilt)
    if motion == "appear":
        return lambda time: Pose(x, y, radius, tilt, _progress(time, start, end))
    raise AssertionError(f"no staging for {motion}")


def _event(event: str, radius: float, window: tuple[float, float], rng: np.random.Generator) -> Course:
    """Draw a place for a thing that hops, blinks, pulses or rests; returns time -> Pose."""
    start, end = window
    tilt = rng.uniform(-0.12, 0.12)
    reach = {"hop": rng.uniform(0.22, 0.30), "pulse": rng.uniform(0.5, 0.7)}.get(event, 0.0)
    size = radius * (1.0 + reach) if event == "pulse" else radius
    x = rng.uniform(size + 0.02, 1.0 - size - 0.02)
    y = rng.uniform(size + 0.02 + (reach if event == "hop" else 0.0), 1.0 - size - 0.02)

    def act(time: float) -> Pose:
        bump = math.sin(math.pi * _progress(time, start, end))
        if event == "hop":
            return Pose(x, y - reach * bump, radius, tilt)
        if event == "pulse":
            return Pose(x, y, radius * (1.0 + reach * bump), tilt)
        if event == "blink":
            return Pose(x, y, radius, tilt, max(0.0, 1.0 - 1.6 * bump))
        return Pose(x, y, radius, tilt)

    return act


def _radii(motion: str, alone: bool) -> tuple[float, float]:
    """Return the smallest and largest radius of a moving thing, alone or beside a resting one."""
    if motion == "spin_clockwise":  # only the outline shows which way it turns
        return (0.23, 0.28) if alone else (0.19, 0.22)
    if motion in ("grow", "appear"):
        return (0.17, 0.21) if alone else (0.15, 0.18)
    return (0.13, 0.175) if alone else (0.11, 0.15)


def _apart(first: Course, second: Course, gap: float = 0.03) -> bool:
    for time in np.linspace(0.0, 1.0, 13):
        a, b = first(float(time)), second(float(time))
        if math.hypot(a.x - b.x, a.y - b.y) < 1.1 * (a.radius + b.radius) + gap:
            return False
    return True


def _poses(story: Story, rng: np.random.Generator) -> tuple[Course, ...]:
    motion = story.motions[0]
    if len(story.things) == 1:
        staging = _motion if motion in STAGED else _event
        return (staging(motion, rng.uniform(*_radii(motion, alone=True)), _window(story.speed, rng), rng),)
    while True:
        if story.is_order:
            length = rng.uniform(0.34, 0.40)
            early, late = rng.uniform(0.04, 0.09), rng.uniform(0.91, 0.96)
            first = _event(motion, rng.uniform(0.11, 0.145), (early, early + length), rng)
            second = _event(story.motions[1], rng.uniform(0.11, 0.145), (late - length, late), rng)
        else:
            radius = rng.uniform(*_radii(motion, alone=False))
            first = _motion(motion, radius, _window(story.speed, rng), rng)
            second = _event("rest", rng.uniform(0.11, 0.145), (0.0, 1.0), rng)
        if _apart(first, second):
            return first, second


def stage(story: Story, rng: np.random.Generator, image_size: int = 112) -> Take:
    """Draw background, places, sizes and tempo for a story.

    With generators in the same state, a story and its reversal get the same take, played in opposite directions.
    """
    staged = story.reversed() if story.plays_backwards else story
    return Take(story, staged.things, _poses(staged, rng), _background(image_size, rng), story.plays_backwards)


# ---- drawing --------------------------------------------------------------------------------------------------------

_SUBPIXEL_BITS = 6


def coverage(outlines: Sequence[np.ndarray], side: int) -> np.ndarray:
    """Return how much of each pixel the outlines [N,2] (in pixels) cover, antialiased: float32 [H,W] in 0..1."""
    import cv2

    mask = np.zeros((side, side), np.uint8)
    for outline in outlines:
        points = np.round((outline - 0.5) * 2**_SUBPIXEL_BITS).astype(np.int32)
        cv2.fillPoly(mask, [points], 255, cv2.LINE_AA, _SUBPIXEL_BITS)
    return mask.astype(np.float32) / 255.0


def blend(image: np.ndarray, covered: np.ndarray, colour: tuple[int, int, int]) -> None:
    """Blend a colour into `image` uint8 [H,W,3] in place, by the share in `covered`, float32 [H,W]."""
    rows, columns = np.flatnonzero(covered.any(axis=1)), np.flatnonzero(covered.any(axis=0))
    if rows.size == 0:
        return
    box = np.s_[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    share = covered[box][..., None]
    below = image[box].astype(np.float32)
    image[box] = np.round(below + (np.asarray(colour, np.float32) - below) * share).astype(np.uint8)


def paint(image: np.ndarray, outline: np.ndarray, colour: tuple[int, int, int], pose: Pose) -> None:
    """Draw an outline [N,2] at a pose into `image` uint8 [H,W,3] in place."""
    side = image.shape[0]
    cos, sin = math.cos(pose.angle), math.sin(pose.angle)
    turned = outline @ np.array([[cos, sin], [-sin, cos]])
    placed = (turned * pose.radius + np.array([pose.x, pose.y])) * side
    blend(image, coverage([placed], side) * pose.opacity, colour)


def _background(side: int, rng: np.random.Generator) -> np.ndarray:
    """Draw a quiet background of medium grey with a slight tint, far from all COLOURS: uint8 [H,W,3]."""
    import cv2

    base = rng.uniform(104, 156) + rng.uniform(-9, 9, 3)
    other = base + (1.0 if rng.random() < 0.5 else -1.0) * rng.uniform(14, 26)
    kind = pick(("plain", "gradient", "stripes", "checks", "noise"), rng)
    x = np.arange(side, dtype=np.float32)[None, :] / side
    y = x.T
    angle = rng.uniform(0, 2 * math.pi)
    along = x * math.cos(angle) + y * math.sin(angle)
    share: np.ndarray
    if kind == "plain":
        share = np.zeros((side, side), np.float32)
    elif kind == "gradient":
        share = (along - along.min()) / (along.max() - along.min())
    elif kind == "stripes":
        share = 0.5 + 0.5 * np.clip(3 * np.sin(2 * math.pi * rng.uniform(3, 7) * along), -1, 1)
    elif kind == "checks":
        cells = int(rng.integers(4, 9))
        share = np.mod(np.floor(x * cells) + np.floor(y * cells), 2)
    else:
        white = rng.standard_normal((side, side), dtype=np.float32)
        grain = cv2.GaussianBlur(white, (0, 0), side * rng.uniform(0.02, 0.06))
        share = np.clip(0.5 + grain / (4 * float(grain.std())), 0, 1)
    ground = base.astype(np.float32) + (other - base).astype(np.float32) * share[..., None]
    return np.round(ground).astype(np.uint8)
