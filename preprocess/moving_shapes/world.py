"""The embedded world: coloured shapes whose motion carries the meaning, with captions, drawn from a seed.

A *story* says which things are there and what they do; *staging* it draws places, sizes and speeds; a *take* can be
drawn at any moment. A story and its reversal are staged alike and played in opposite directions, so a clip's frames
in backwards order are exactly the clip of the reversed story, and a set of unordered frames says nothing about which
of the two it was. Clips carry no signs. Stills may: a small sign beside the shape stands for the motion, so that a
model trained on stills alone can know the motion words without ever having seen a motion.

Shapes: T frames, H = W image side in pixels, N points of an outline. Places and radii are fractions of the image side,
times fractions of the clip (0 first frame, 1 last frame), angles radians, images uint8 RGB [H,W,3].
"""

import math
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import cv2
import numpy as np

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (222, 24, 36),
    "orange": (255, 136, 0),
    "yellow": (252, 232, 40),
    "green": (22, 160, 52),
    "blue": (32, 64, 232),
    "purple": (150, 40, 190),
    "white": (255, 255, 255),
    "black": (8, 8, 8),
}

# Each motion with the one it becomes when the clip is played backwards; the first of a pair is the staged direction.
_PAIRS = (
    ("right", "left"),
    ("up", "down"),
    ("circle_clockwise", "circle_anticlockwise"),
    ("spin_clockwise", "spin_anticlockwise"),
    ("grow", "shrink"),
    ("appear", "vanish"),
)
FAMILIES: dict[str, str] = {
    **dict.fromkeys(_PAIRS[0], "horizontal"),
    **dict.fromkeys(_PAIRS[1], "vertical"),
    **dict.fromkeys(_PAIRS[2], "circling"),
    **dict.fromkeys(_PAIRS[3], "spinning"),
    **dict.fromkeys(_PAIRS[4], "size"),
    **dict.fromkeys(_PAIRS[5], "presence"),
}
REVERSED: dict[str, str] = {a: b for pair in _PAIRS for a, b in (pair, pair[::-1])}
_STAGED = frozenset(pair[0] for pair in _PAIRS)
# Events that look the same backwards: only their order tells a clip from its reversal.
EVENTS = ("hop", "blink", "pulse")
SPEEDS = ("", "fast", "slow")

# One content in HELD_OUT_EVERY is kept for the test split, whatever the seed, so that train, test and stills agree.
HELD_OUT_EVERY = 4

# Phrases of a motion and of its reversal stand in the same order: the same draw gives the mirrored sentence.
_PHRASES: dict[str, tuple[str, ...]] = {
    "right": (
        "moves from left to right",
        "goes left to right",
        "slides to the right",
        "crosses the frame to the right",
        "travels rightwards",
    ),
    "left": (
        "moves from right to left",
        "goes right to left",
        "slides to the left",
        "crosses the frame to the left",
        "travels leftwards",
    ),
    "up": ("rises", "moves up", "goes from the bottom to the top", "climbs", "travels upwards"),
    "down": ("falls", "moves down", "goes from the top to the bottom", "sinks", "travels downwards"),
    "circle_clockwise": (
        "circles clockwise",
        "goes round the middle clockwise",
        "travels in a circle clockwise",
        "orbits the middle clockwise",
    ),
    "circle_anticlockwise": (
        "circles anticlockwise",
        "goes round the middle anticlockwise",
        "travels in a circle anticlockwise",
        "orbits the middle anticlockwise",
    ),
    "spin_clockwise": ("turns clockwise", "spins clockwise", "rotates clockwise", "turns on the spot clockwise"),
    "spin_anticlockwise": (
        "turns anticlockwise",
        "spins anticlockwise",
        "rotates anticlockwise",
        "turns on the spot anticlockwise",
    ),
    "grow": ("grows", "gets bigger", "becomes larger", "expands"),
    "shrink": ("shrinks", "gets smaller", "becomes smaller", "contracts"),
    "appear": ("appears", "fades in", "comes into view", "becomes visible"),
    "vanish": ("vanishes", "fades out", "goes out of view", "becomes invisible"),
    "hop": ("hops", "jumps"),
    "blink": ("blinks", "flickers"),
    "pulse": ("pulses", "throbs"),
    "rest": ("rests", "stays still", "stands still", "does not move"),
}
_ADVERBS: dict[str, tuple[str, ...]] = {
    "fast": ("quickly", "rapidly", "swiftly", "in no time"),
    "slow": ("slowly", "gradually", "gently", "little by little"),
}
_FRAMES_ONE = ("{a} {m}", "here {a} {m}", "we see that {a} {m}", "look how {a} {m}")
_FRAMES_REST = (
    "{a} {m} while {b} {n}",
    "{b} {n} while {a} {m}",
    "{a} {m} and {b} {n}",
    "while {b} {n} {a} {m}",
)
_FRAMES_ORDER = (
    "{a} {m} before {b} {n}",
    "{a} {m}, then {b} {n}",
    "first {a} {m}, then {b} {n}",
    "{b} {n} after {a} {m}",
    "before {b} {n}, {a} {m}",
    "after {a} {m}, {b} {n}",
)


@dataclass(frozen=True, order=True)
class Thing:
    """A coloured shape: a key of COLOURS and a key of SHAPES."""

    colour: str
    shape: str

    def __str__(self) -> str:
        return f"{self.colour} {self.shape}"


@dataclass(frozen=True)
class Story:
    """What is seen: one thing with a motion; the same beside a resting thing; or two events one after the other.

    `motions[i]` is what `things[i]` does. With two things `motions` is (a motion, "rest"), or both are EVENTS and the
    first happens first. `speed` is "", "fast" or "slow" and is stated in the caption where it is not "".
    """

    things: tuple[Thing, ...]
    motions: tuple[str, ...]
    speed: str = ""

    @property
    def is_order(self) -> bool:
        """Whether the story is about which of two events comes first."""
        return self.motions[0] in EVENTS

    @property
    def family(self) -> str:
        """The kind of motion, the same for a story and its reversal (a value of FAMILIES, or "order")."""
        return "order" if self.is_order else FAMILIES[self.motions[0]]

    @property
    def content(self) -> str:
        """Things and kind of motion without direction, order or speed: what train and test must not share."""
        if self.is_order:
            parts = sorted(f"{thing} {motion}" for thing, motion in zip(self.things, self.motions, strict=True))
        else:
            parts = [f"{self.things[0]} {self.family}", *(str(thing) for thing in self.things[1:])]
        return ", ".join(parts)

    @property
    def held_out(self) -> bool:
        """Whether the content belongs to the test split: fixed by the content alone, so no seed can leak it."""
        return zlib.crc32(self.content.encode()) % HELD_OUT_EVERY == 0

    @property
    def plays_backwards(self) -> bool:
        """Whether the staged take is played backwards to tell this story."""
        return self.things[0] > self.things[1] if self.is_order else self.motions[0] not in _STAGED

    def reversed(self) -> "Story":
        """The story of the clip played backwards."""
        if self.is_order:
            return replace(self, things=self.things[::-1], motions=self.motions[::-1])
        return replace(self, motions=(REVERSED[self.motions[0]], *self.motions[1:]))


def _pick(options: Sequence[str], rng: np.random.Generator) -> str:
    # rng.choice builds an array of its argument each time, which costs more than drawing a shape.
    return options[int(rng.integers(len(options)))]


# ---- outlines -------------------------------------------------------------------------------------------------------


def _arc(start: float, end: float, points: int, radius: float = 1.0) -> np.ndarray:
    angles = np.linspace(start, end, points)
    return radius * np.stack([np.cos(angles), np.sin(angles)], axis=1)


def _star() -> np.ndarray:
    radii = np.where(np.arange(10) % 2 == 0, 1.08, 0.44)[:, None]
    return _arc(-math.pi / 2, 1.5 * math.pi, 11)[:-1] * radii


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
    outer = _arc(0.28 * math.pi, 1.72 * math.pi, 40)
    tip = outer[-1]
    centre = np.array([0.58, 0.0])
    radius = float(np.hypot(*(tip - centre)))
    angle = math.atan2(tip[1] - centre[1], tip[0] - centre[0])
    inner = centre + _arc(angle, -angle - 2 * math.pi, 30, radius)
    return np.concatenate([outer, inner]) * 1.05 + np.array([0.15, 0.0])


# Outlines [N,2] about the origin, x to the right and y down, of radius about 1.
SHAPES: dict[str, np.ndarray] = {
    "disc": _arc(0, 2 * math.pi, 49)[:-1] * 0.95,
    "square": np.array([[-0.84, -0.84], [0.84, -0.84], [0.84, 0.84], [-0.84, 0.84]]),
    "triangle": np.array([[0.0, -1.1], [0.82, 0.85], [-0.82, 0.85]]),
    "star": _star(),
    "cross": _cross(),
    "heart": _heart(),
    "moon": _moon(),
}
# A turn about itself shows only where the outline repeats after nothing less than a full turn.
TURNING_SHAPES = ("triangle", "heart", "moon")


# ---- staging --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Pose:
    """How a thing looks at one moment: centre and radius as fractions of the image side, angle, opacity 0 to 1."""

    x: float
    y: float
    radius: float
    angle: float = 0.0
    opacity: float = 1.0


Course = Callable[[float], Pose]


@dataclass(frozen=True)
class Take:
    """A staged story: `poses[i](time)` is the pose of `things[i]` at a staged time in 0..1; `background` uint8 [H,W,3].

    `backwards` says that the story runs against the staged time.
    """

    story: Story
    things: tuple[Thing, ...]
    poses: tuple[Course, ...]
    background: np.ndarray
    backwards: bool

    def look(self, time: float) -> list[tuple[Thing, Pose]]:
        """The things in the story's own order, each with its pose at `time` (0 first frame, 1 last frame)."""
        staged = 1.0 - time if self.backwards else time
        seen = {thing: pose(staged) for thing, pose in zip(self.things, self.poses, strict=True)}
        return [(thing, seen[thing]) for thing in self.story.things]

    def draw(self, time: float) -> np.ndarray:
        """The frame at `time`: uint8 [H,W,3]."""
        image = self.background.copy()
        for thing, pose in self.look(time):
            _paint(image, SHAPES[thing.shape], COLOURS[thing.colour], pose)
        return image

    def frames(self, n_frames: int) -> np.ndarray:
        """The clip: uint8 [T,H,W,3], frames evenly spread from time 0 to time 1."""
        # Drawn in staged order and then turned round: 1 - i/n is not always (n-i)/n in floating point.
        staged = replace(self, backwards=False)
        clip = np.stack([staged.draw(i / max(n_frames - 1, 1)) for i in range(n_frames)])
        return np.ascontiguousarray(clip[::-1]) if self.backwards else clip


def _progress(time: float, start: float, end: float) -> float:
    return min(max((time - start) / (end - start), 0.0), 1.0)


def _window(speed: str, rng: np.random.Generator) -> tuple[float, float]:
    """Start and end of the motion within the clip; fast ones lie in the middle, so they are fast backwards too."""
    length = {"fast": rng.uniform(0.28, 0.36), "slow": rng.uniform(0.96, 1.0), "": rng.uniform(0.60, 0.82)}[speed]
    centre = 0.5 + rng.uniform(-0.5, 0.5) * min(1.0 - length, 0.18)
    return centre - length / 2, centre + length / 2


def _motion(motion: str, radius: float, window: tuple[float, float], rng: np.random.Generator) -> Course:
    """Draw a path for one of the staged motions and return time -> Pose."""
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
        # Fast, it is over within two steps of eight frames: a longer arc could as well be a turn the other way round.
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
    """Draw a place for a thing that hops, blinks, pulses or rests and return time -> Pose."""
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
    """The smallest and the largest radius of a moving thing, alone or beside a resting one."""
    if motion == "spin_clockwise":  # which way it turns shows at its outline only
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
        return (_motion(motion, rng.uniform(*_radii(motion, alone=True)), _window(story.speed, rng), rng),)
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


def _coverage(outlines: Sequence[np.ndarray], side: int) -> np.ndarray:
    """How much of each pixel the outlines [N,2] (in pixels) cover, antialiased: float32 [H,W] in 0..1."""
    mask = np.zeros((side, side), np.uint8)
    for outline in outlines:
        points = np.round((outline - 0.5) * 2**_SUBPIXEL_BITS).astype(np.int32)
        cv2.fillPoly(mask, [points], 255, cv2.LINE_AA, _SUBPIXEL_BITS)
    return mask.astype(np.float32) / 255.0


def _blend(image: np.ndarray, coverage: np.ndarray, colour: tuple[int, int, int]) -> None:
    """Lay a colour over `image` uint8 [H,W,3] in place."""
    rows, columns = np.flatnonzero(coverage.any(axis=1)), np.flatnonzero(coverage.any(axis=0))
    if rows.size == 0:
        return
    box = np.s_[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    share = coverage[box][..., None]
    below = image[box].astype(np.float32)
    image[box] = np.round(below + (np.asarray(colour, np.float32) - below) * share).astype(np.uint8)


def _paint(image: np.ndarray, outline: np.ndarray, colour: tuple[int, int, int], pose: Pose) -> None:
    side = image.shape[0]
    cos, sin = math.cos(pose.angle), math.sin(pose.angle)
    turned = outline @ np.array([[cos, sin], [-sin, cos]])
    placed = (turned * pose.radius + np.array([pose.x, pose.y])) * side
    _blend(image, _coverage([placed], side) * pose.opacity, colour)


def _background(side: int, rng: np.random.Generator) -> np.ndarray:
    """A quiet ground of middling grey with a breath of tint, far from all of COLOURS: uint8 [H,W,3]."""
    base = rng.uniform(104, 156) + rng.uniform(-9, 9, 3)
    other = base + (1.0 if rng.random() < 0.5 else -1.0) * rng.uniform(14, 26)
    kind = _pick(("plain", "gradient", "stripes", "checks", "noise"), rng)
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


# ---- captions -------------------------------------------------------------------------------------------------------


def caption(story: Story, rng: np.random.Generator) -> str:
    """One sentence for a story, in lower case and without a full stop.

    With generators in the same state, a story and its reversal get the same sentence but for the direction.
    """
    article = _pick(["a", "the"], rng)
    subjects = [f"{'an' if article == 'a' and thing.colour == 'orange' else article} {thing}" for thing in story.things]
    if story.is_order:
        # One style for both verbs, so that the reversed story's sentence swaps the two and changes nothing else.
        style = rng.integers(len(_PHRASES[EVENTS[0]]))
        verbs = [_PHRASES[motion][style] for motion in story.motions]
    else:
        verbs = [_pick(_PHRASES[motion], rng) for motion in story.motions]
    if len(story.things) == 2:
        frame = _pick(_FRAMES_ORDER if story.is_order else _FRAMES_REST, rng)
        return frame.format(a=subjects[0], m=verbs[0], b=subjects[1], n=verbs[1])
    verb = verbs[0]
    if story.speed:
        adverb = _pick(_ADVERBS[story.speed], rng)
        before = rng.random() < 0.3 and adverb.endswith("ly")
        verb = f"{adverb} {verb}" if before else f"{verb} {adverb}"
    return _pick(_FRAMES_ONE, rng).format(a=subjects[0], m=verb)


def paraphrases(story: Story, n: int, rng: np.random.Generator) -> list[str]:
    """`n` different sentences for a story; ValueError where the grammar has not so many."""
    found: dict[str, None] = {}
    for _ in range(100 * n):
        found[caption(story, rng)] = None
        if len(found) == n:
            return list(found)
    raise ValueError(f"The caption grammar has fewer than {n} sentences for '{story.content}'; ask for fewer.")


# ---- drawing stories ------------------------------------------------------------------------------------------------


def draw_thing(rng: np.random.Generator, shapes: Sequence[str] = tuple(SHAPES)) -> Thing:
    """A random thing, of one of the given shapes."""
    return Thing(_pick(list(COLOURS), rng), _pick(list(shapes), rng))


def draw_story(
    rng: np.random.Generator, held_out: bool, shares: tuple[float, float, float] = (0.5, 0.25, 0.25)
) -> Story:
    """A random story whose content is held out for the test split, or is not.

    `shares`: how often one thing moves, one moves while another rests, and one event comes before another.
    """
    while True:
        kind = rng.choice(["one", "rest", "order"], p=shares)
        if kind == "order":
            first, second = draw_thing(rng), draw_thing(rng)
            events = (_pick(EVENTS, rng), _pick(EVENTS, rng))
            story = Story((first, second), events)
        else:
            motion = _pick(list(REVERSED), rng)
            first = draw_thing(rng, TURNING_SHAPES if FAMILIES[motion] == "spinning" else tuple(SHAPES))
            second = draw_thing(rng)
            if kind == "rest":
                story = Story((first, second), (motion, "rest"))
            else:
                story = Story((first,), (motion,), _pick(SPEEDS, rng))
        if story.held_out == held_out and (kind == "one" or first != second):
            return story


# ---- stills ---------------------------------------------------------------------------------------------------------

# Colours of no thing. A sign's drawing says which kind of motion; drawing and colour together say which way, or which
# of two events is first: signs that differ in a small arrow head alone take a small model far longer to learn.
_SIGN_COLOURS = ((0, 225, 235), (255, 96, 190))
_SIGN_EDGE = (30, 30, 50)


@dataclass(frozen=True)
class Still:
    """One image uint8 [H,W,3] with its caption; `signed` where a sign stands for the motion of `story`."""

    image: np.ndarray
    caption: str
    story: Story
    signed: bool


def _stroke(points: np.ndarray, width: float) -> list[np.ndarray]:
    """Outlines of a line of that width along `points` [N,2], its ends square."""
    pieces = []
    for start, end in pairwise(points):
        step = (end - start) / max(float(np.hypot(*(end - start))), 1e-9) * width / 2
        side = np.array([-step[1], step[0]])
        # Each piece runs a little into the next, so that no seam is left between them.
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
    ring = _arc(-0.9 * math.pi, 0.45 * math.pi, 20, 0.68)
    step = (ring[-1] - ring[-2]) / np.hypot(*(ring[-1] - ring[-2]))
    side = np.array([-step[1], step[0]])
    barb = np.array([ring[-1] + 0.66 * step, ring[-1] + 0.46 * side, ring[-1] - 0.46 * side])
    pieces = [*_stroke(ring, 0.22), barb]
    return pieces if clockwise else [piece * np.array([-1.0, 1.0]) for piece in pieces]


def _frame_outline(half: float, width: float) -> list[np.ndarray]:
    corners = np.array([[-half, -half], [half, -half], [half, half], [-half, half], [-half, -half]])
    return _stroke(corners, width)


def _dot(x: float, y: float, radius: float) -> np.ndarray:
    return _arc(0, 2 * math.pi, 17)[:-1] * radius + np.array([x, y])


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
    "hop": _stroke(_arc(math.pi, 2 * math.pi, 16, 0.8) + np.array([0.0, 0.4]), 0.24),
    "blink": [
        piece
        for x, y in (*_DIAGONALS, (1, 0), (-1, 0), (0, 1), (0, -1))
        for piece in _stroke(np.array([[0.35 * x, 0.35 * y], [0.95 * x, 0.95 * y]]), 0.18)
    ],
    "pulse": _stroke(_arc(0, 2 * math.pi, 28, 0.8), 0.18) + _stroke(_arc(0, 2 * math.pi, 20, 0.38), 0.18),
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
    """Draw the sign for the thing at `around`, its board centred at (x, y), with a strip where `strip` is not ""."""
    side = image.shape[0]
    pieces = [(piece * _SIGN_HALF + (x, y - (_STRIP_HALF if strip else 0.0))) * side for piece in _SIGNS[sign]]
    if strip:
        pieces += [(piece * _SIGN_HALF + (x, y + _SIGN_HALF)) * side for piece in _STRIPS[strip]]
    if strip in ("first", "second"):
        # Two things, two signs: a ring says which belongs to which.
        ring = _arc(0, 2 * math.pi, 41, _RING * around.radius) + np.array([around.x, around.y])
        pieces += [piece * side for piece in _stroke(ring, 0.022)]
    coverage = _coverage(pieces, side)
    colour = _SIGN_COLOURS[strip == "second" or (sign in REVERSED and sign not in _STAGED)]
    edge = cv2.dilate(coverage, cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (3, 3)))
    _blend(image, edge, _SIGN_EDGE)
    _blend(image, coverage, colour)


def _sign_place(
    pose: Pose, reach: float, half_height: float, taken: list[tuple[float, float, float]], rng: np.random.Generator
) -> tuple[float, float] | None:
    """A free place for a board `reach` radii beside a thing; `taken` holds circles (x, y, radius) to keep clear of."""
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
    """A moment of a story with a sign beside each thing that says what it does, and the story's own caption.

    With generators in the same state, a story and its reversal get stills that differ in nothing but the signs.
    """
    strips = ("first", "second") if story.is_order else (story.speed, "")
    reach = _RING + 0.08 if story.is_order else 1.05
    while True:
        take = stage(story, rng, image_size)
        # Staged time, not the story's: the moment must not tell a story from its reversal.
        staged = float(rng.uniform())
        seen = take.look(1.0 - staged if take.backwards else staged)
        seen = [(thing, replace(pose, opacity=max(pose.opacity, 0.6))) for thing, pose in seen]
        taken: list[tuple[float, float, float]] = []
        places = []
        order = sorted(range(len(seen)), key=lambda i: seen[i][0])
        for i in order:
            half_height = _SIGN_HALF + (_STRIP_HALF if strips[i] else 0.0)
            # Farther from the other thing than from its own, or it could be taken for the other's.
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
        _paint(image, SHAPES[thing.shape], COLOURS[thing.colour], pose)
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
    """A moment of a story without any sign; the caption names size, colour, shape and place, and no motion."""
    take = stage(story, rng, image_size)
    seen = [(thing, replace(pose, opacity=max(pose.opacity, 0.6))) for thing, pose in take.look(float(rng.uniform()))]
    image = take.background.copy()
    for thing, pose in seen:
        _paint(image, SHAPES[thing.shape], COLOURS[thing.colour], pose)
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
    """The same story of things of the same colours, with shapes exchanged or one of them another."""
    shapes = [thing.shape for thing in story.things]
    colours = {thing.colour for thing in story.things}
    if len(set(shapes)) == len(colours) == 2 and story.family != "spinning" and rng.random() < 0.5:
        shapes.reverse()
    else:
        changed = int(rng.integers(len(shapes)))
        choices = TURNING_SHAPES if story.family == "spinning" and changed == 0 else tuple(SHAPES)
        shapes[changed] = _pick([shape for shape in choices if shape != shapes[changed]], rng)
    things = tuple(replace(thing, shape=shape) for thing, shape in zip(story.things, shapes, strict=True))
    return replace(story, things=things)


def draw_stills(
    rng: np.random.Generator,
    image_size: int = 112,
    signed_share: float = 0.65,
    held_out: bool = False,
) -> Iterator[Still]:
    """An endless stream of stills, of contents that are held out for the test split or of those that are not.

    `signed_share` of them bear signs. They come by twos that differ little: a
    signed story and its reversal, or a story and the same one with other shapes. In a contrastive batch each is then
    the wrong answer hardest to tell apart from the right one; without those, colours alone tell most stills of a batch
    from each other.
    """
    while True:
        # Orders, which are the hardest to learn, oftener than in the clips.
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
