"""The stories of the made world: things, motions, and the sentences that describe them."""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

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

# Outlines are in takes.py.
SHAPES = ("disc", "square", "triangle", "star", "cross", "heart", "moon")
# A turn of a shape shows only if nothing less than a full turn repeats its outline.
TURNING_SHAPES = ("triangle", "heart", "moon")

# Each motion with the motion that it becomes when the clip is played backwards. The first of a pair is the direction
# that is staged.
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
STAGED = frozenset(pair[0] for pair in _PAIRS)
# Events look the same backwards: only their order tells a clip from its reversal.
EVENTS = ("hop", "blink", "pulse")
SPEEDS = ("", "fast", "slow")

# One content in HELD_OUT_EVERY is kept for the test split, for every seed, so that train, test and stills agree.
HELD_OUT_EVERY = 4

# Phrases of a motion and of its reversal have the same order, so that the same draw gives the mirrored sentence.
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
    """A coloured shape: a key of COLOURS and one of SHAPES."""

    colour: str
    shape: str

    def __str__(self) -> str:
        return f"{self.colour} {self.shape}"


@dataclass(frozen=True)
class Story:
    """What a clip shows: a thing with a motion, the same beside a resting thing, or two events one after the other.

    `motions[i]` is what `things[i]` does. With two things, `motions` is (a motion, "rest"), or both are EVENTS and the
    first happens first. A thing alone may also do one of the EVENTS or rest, which looks the same backwards
    (actions.py). `speed` is "", "fast" or "slow"; the caption states it unless it is "".
    """

    things: tuple[Thing, ...]
    motions: tuple[str, ...]
    speed: str = ""

    @property
    def is_order(self) -> bool:
        """True if the story is about which of two events comes first."""
        return len(self.things) == 2 and self.motions[0] in EVENTS

    @property
    def family(self) -> str:
        """The kind of motion: a value of FAMILIES, "order", an event or "rest"; a story and its reversal share it."""
        return "order" if self.is_order else FAMILIES.get(self.motions[0], self.motions[0])

    @property
    def content(self) -> str:
        """Things and kind of motion, without direction, order or speed. Train and test must not share a content."""
        if self.is_order:
            parts = sorted(f"{thing} {motion}" for thing, motion in zip(self.things, self.motions, strict=True))
        else:
            parts = [f"{self.things[0]} {self.family}", *(str(thing) for thing in self.things[1:])]
        return ", ".join(parts)

    @property
    def held_out(self) -> bool:
        """True if the content belongs to the test split. The content alone decides, so no seed can leak it."""
        return zlib.crc32(self.content.encode()) % HELD_OUT_EVERY == 0

    @property
    def plays_backwards(self) -> bool:
        """True if this story is the staged take played backwards."""
        if self.is_order:
            return self.things[0] > self.things[1]
        return self.motions[0] in REVERSED and self.motions[0] not in STAGED

    def reversed(self) -> "Story":
        """Return the story of the clip played backwards."""
        if self.is_order:
            return replace(self, things=self.things[::-1], motions=self.motions[::-1])
        return replace(self, motions=(REVERSED.get(self.motions[0], self.motions[0]), *self.motions[1:]))


def phrase(motion: str) -> str:
    """Return the first way to say what a thing does: "moves from left to right"."""
    return _PHRASES[motion][0]


def pick(options: Sequence[str], rng: np.random.Generator) -> str:
    """Draw one of the options."""
    # Not rng.choice, which builds an array of its argument each time and so takes longer than drawing a shape.
    return options[int(rng.integers(len(options)))]


def draw_thing(rng: np.random.Generator, shapes: Sequence[str] = SHAPES) -> Thing:
    """Draw a thing of one of the given shapes."""
    return Thing(pick(list(COLOURS), rng), pick(list(shapes), rng))


def draw_story(
    rng: np.random.Generator, held_out: bool, shares: tuple[float, float, float] = (0.5, 0.25, 0.25)
) -> Story:
    """Draw a story whose content is `held_out` for the test split, or is not.

    `shares`: how often one thing moves, one moves while another rests, and one event precedes another.
    """
    while True:
        kind = rng.choice(["one", "rest", "order"], p=shares)
        if kind == "order":
            first, second = draw_thing(rng), draw_thing(rng)
            events = (pick(EVENTS, rng), pick(EVENTS, rng))
            story = Story((first, second), events)
        else:
            motion = pick(list(REVERSED), rng)
            first = draw_thing(rng, TURNING_SHAPES if FAMILIES[motion] == "spinning" else SHAPES)
            second = draw_thing(rng)
            if kind == "rest":
                story = Story((first, second), (motion, "rest"))
            else:
                story = Story((first,), (motion,), pick(SPEEDS, rng))
        if story.held_out == held_out and (kind == "one" or first != second):
            return story


def caption(story: Story, rng: np.random.Generator) -> str:
    """Draw one sentence for a story, in lower case and without a full stop.

    With generators in the same state, the sentences of a story and its reversal differ in the direction alone.
    """
    article = pick(["a", "the"], rng)
    subjects = [f"{'an' if article == 'a' and thing.colour == 'orange' else article} {thing}" for thing in story.things]
    if story.is_order:
        # One style for both verbs, so that the reversed story's sentence only swaps them.
        style = rng.integers(len(_PHRASES[EVENTS[0]]))
        verbs = [_PHRASES[motion][style] for motion in story.motions]
    else:
        verbs = [pick(_PHRASES[motion], rng) for motion in story.motions]
    if len(story.things) == 2:
        frame = pick(_FRAMES_ORDER if story.is_order else _FRAMES_REST, rng)
        return frame.format(a=subjects[0], m=verbs[0], b=subjects[1], n=verbs[1])
    verb = verbs[0]
    if story.speed:
        adverb = pick(_ADVERBS[story.speed], rng)
        before = rng.random() < 0.3 and adverb.endswith("ly")
        verb = f"{adverb} {verb}" if before else f"{verb} {adverb}"
    return pick(_FRAMES_ONE, rng).format(a=subjects[0], m=verb)


def paraphrases(story: Story, n: int, rng: np.random.Generator) -> list[str]:
    """Draw `n` different sentences for a story; ValueError if the grammar has fewer."""
    found: dict[str, None] = {}
    for _ in range(100 * n):
        found[caption(story, rng)] = None
        if len(found) == n:
            return list(found)
    raise ValueError(f"The caption grammar has fewer than {n} sentences for '{story.content}'; ask for fewer.")
