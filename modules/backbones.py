"""The facts of a CLIP that its weights do not show: sizes, activation, pixels, words and similarity, in one object.

Two files with tensors of the same names and shapes may be different networks. The activation, the number of heads, and
how pictures were resized and normalised leave no trace in a state dict, and a wrong choice costs accuracy without an
error. A `Backbone` holds all of it; `modules.clip_weights.load_clip` builds it, and the CLIP carries it.
"""

import json
import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from functools import partial
from hashlib import sha256
from typing import Any

import torch.nn.functional as F
from torch import Tensor

# f and s of f(s z) / s. OpenAI's CLIP weights were trained with quick_gelu, z · sigmoid(1.702 z).
ACTIVATIONS: dict[str, tuple[Callable[[Tensor], Tensor], float]] = {
    "quick_gelu": (F.silu, 1.702),
    "gelu": (F.gelu, 1.0),
    "gelu_tanh": (partial(F.gelu, approximate="tanh"), 1.0),  # SigLIP 2's
}
HEAD_WIDTH = 64  # of every CLIP that OpenAI published
# Up to this width every published CLIP has heads of HEAD_WIDTH; open_clip's ViT-H-14, g-14 and bigG-14, which are
# wider, have wider heads.
WIDEST_WITH_KNOWN_HEADS = 1024

LARGEST, DEEPEST = 10**6, 1000  # a size and a number of blocks that no CLIP reaches, and that a mistake exceeds

Triple = tuple[float, float, float]

# Mean and standard deviation of the pixels (RGB, on the scale 0..1) that published weights were trained with.
STATISTICS: dict[str, tuple[Triple, Triple]] = {
    "clip": ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
    "half": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "none": ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
}
# shortest: the short side to the image size, then the middle square; squash: both sides, whatever the shape.
RESIZE_MODES = ("shortest", "squash")
INTERPOLATIONS = ("bicubic", "bilinear")


POOLS = ("class token", "attention")
ENDS = ("largest id", "last", "id N")
CLIPS_BYTE_PAIRS = "CLIP's byte pairs"
OWN_FILES = "files beside the weights"  # the encoding of a folder that names no repository of a tokenizer
# Steps before encoding, by open_clip's names; each begins with ftfy and HTML entities.
CLEANINGS = ("lower", "canonicalize", "whitespace")


@dataclass(frozen=True)
class VisionParts:
    """What a vision tower is made of; the defaults are CLIP's.

    `rotary` turns queries and keys of patches by their place (`modules.rotary`). `pool` "attention" has a learned
    latent of `pool_heads` heads that reads all tokens (`modules.attention_pool`). `projection` is the last step: a
    "matrix", "linear" (with a bias), or "none". An empty `activation` is the architecture's.
    """

    class_token: bool = True
    patch_bias: bool = False
    pre_norm: bool = True  # a LayerNorm before the first block
    rotary: bool = False
    pool: str = "class token"
    pool_heads: int = 0
    projection: str = "matrix"
    activation: str = ""
    norm_eps: float = 1e-5
    hidden: int = 0  # inside an MLP; 0: four times the width


@dataclass(frozen=True)
class TextParts:
    """What a text tower is made of; the defaults are CLIP's.

    `end` says which token stands for a text: the one with the "largest id", END in CLIP's vocabulary; the first with
    "id N", END in others; or the "last" of a row, which is padding in a short text.
    """

    causal: bool = True
    end: str = "largest id"
    projection_bias: bool = False
    activation: str = ""
    norm_eps: float = 1e-5
    hidden: int = 0

    @property
    def end_id(self) -> int | None:
        """The id of END where `end` states one."""
        number = self.end.removeprefix("id ")
        return int(number) if number != self.end and number.isdecimal() else None


# What a method may need of the towers, for messages.
NEEDS = {
    "class token": "a class token among the tokens of an image",
    "class pool": "a vision tower that is read by its class token",
    "unturned tokens": "attention without rotary positions",
    "END": "a causal text tower that is read at END",
    "CLIP's words": "the vocabulary of CLIP's own tokenizer",
    "equal depth": "towers of equal depth",
}


@dataclass(frozen=True)
class CLIPArchitecture:
    """All sizes of a CLIP with a vision transformer; raises ValueError for sizes that cannot be built."""

    embed_dim: int
    image_size: int  # pixels, the side of the square input
    patch_size: int  # pixels
    vision_width: int
    vision_layers: int
    vision_heads: int
    context_length: int  # longest text, in tokens
    vocab_size: int
    text_width: int
    text_layers: int
    text_heads: int
    activation: str = "quick_gelu"
    vision: VisionParts = VisionParts()
    text: TextParts = TextParts()

    def __post_init__(self) -> None:
        for activation in (self.activation, self.vision.activation, self.text.activation):
            if activation not in {*ACTIVATIONS, ""} or not self.activation:
                raise ValueError(f"CLIP's activation must be one of {', '.join(ACTIVATIONS)}, not '{activation}'.")
        for item in fields(self):
            value, deep = getattr(self, item.name), item.name.endswith("_layers")
            if item.type is int and (type(value) is not int or not 1 - deep <= value <= (DEEPEST if deep else LARGEST)):
                raise ValueError(f"its {item.name} is {value}, which no CLIP can have.")
        for parts in (self.vision, self.text):
            if type(parts.norm_eps) is not float or not 0 < parts.norm_eps < 1 or not 0 <= parts.hidden <= LARGEST:
                raise ValueError(f"a tower's norm_eps {parts.norm_eps} or hidden {parts.hidden} is of no CLIP.")
        end = self.text.end if self.text.end_id is None else "id N"
        for value, choices in ((self.vision.pool, POOLS), (end, ENDS)):
            if value not in choices:
                raise ValueError(f"a tower reads one of {', '.join(choices)}, not '{value}'.")
        if self.text.end_id is not None and self.text.end_id >= self.vocab_size:
            raise ValueError(f"END, {self.text.end}, is not in a vocabulary of {self.vocab_size} tokens.")
        if self.vision.pool == "class token" and not self.vision.class_token:
            raise ValueError("a tower without a class token cannot be read by it; pool by attention.")
        if self.vision.pool == "attention" and (
            not self.vision.pool_heads or self.vision_width % self.vision.pool_heads
        ):
            raise ValueError(f"CLIP's width {self.vision_width} does not divide into {self.vision.pool_heads} heads.")
        if self.image_size < self.patch_size:
            raise ValueError(f"CLIP's image size {self.image_size} is less than its patch size {self.patch_size}.")
        for width, heads in ((self.vision_width, self.vision_heads), (self.text_width, self.text_heads)):
            if width % heads:
                raise ValueError(f"CLIP's width {width} does not divide into {heads} attention heads.")

    @property
    def grid(self) -> int:
        """Whole patches along one side of the image; P = grid²."""
        return self.image_size // self.patch_size

    def lacks(self, needs: Iterable[str]) -> list[str]:
        """Return which of a method's needs, keys of `NEEDS`, these towers do not meet."""
        met = {
            "class token": self.vision.class_token,
            "class pool": self.vision.pool == "class token",
            "unturned tokens": not self.vision.rotary,
            "END": self.text.causal and self.text.end != "last",
            "CLIP's words": self.text.end == "largest id",
            "equal depth": self.vision_layers == self.text_layers,
        }
        assert met.keys() == NEEDS.keys()
        return [need for need in needs if not met[need]]

    def row_length(self, max_words: int) -> int:
        """Return how many tokens a caption's row has: `max_words`, or all that are read if the last stands for it."""
        return self.context_length if self.text.end == "last" else max_words

    @property
    def is_plain(self) -> bool:
        """Whether both towers are made as CLIP's, so that the weights show their sizes."""
        return self.vision == VisionParts() and self.text == TextParts()

    @property
    def class_tokens(self) -> int:
        """Tokens before the patches: 1, or 0 without a class token."""
        return int(self.vision.class_token)


ARCHITECTURES = {  # joint; image, patch; vision width, layers, heads; words, vocabulary; text width, layers, heads
    "ViT-B/32": CLIPArchitecture(512, 224, 32, 768, 12, 12, 77, 49408, 512, 12, 8),
    "ViT-B/16": CLIPArchitecture(512, 224, 16, 768, 12, 12, 77, 49408, 512, 12, 8),
    "ViT-L/14": CLIPArchitecture(768, 224, 14, 1024, 24, 16, 77, 49408, 768, 12, 12),
    "ViT-L/14@336px": CLIPArchitecture(768, 336, 14, 1024, 24, 16, 77, 49408, 768, 12, 12),
}


@dataclass(frozen=True)
class Preprocessing:
    """How a frame becomes the pixels of the vision tower; the architecture has the image size.

    `mean` and `std` are of the RGB channels on the scale 0..1. Raises ValueError for an unknown mode, for a number that
    is not finite, and for a deviation that is not positive.
    """

    mean: Triple = STATISTICS["clip"][0]
    std: Triple = STATISTICS["clip"][1]
    resize_mode: str = "shortest"
    interpolation: str = "bicubic"

    def __post_init__(self) -> None:
        for name, value, choices in (
            ("resize mode", self.resize_mode, RESIZE_MODES),
            ("interpolation", self.interpolation, INTERPOLATIONS),
        ):
            if value not in choices:
                raise ValueError(f"CLIP's {name} must be one of {', '.join(choices)}, not '{value}'.")
        numbers = [*self.mean, *self.std]
        if len(self.mean) != 3 or len(self.std) != 3 or not all(map(math.isfinite, numbers)) or min(self.std) <= 0:
            raise ValueError(
                f"CLIP's mean {list(self.mean)} and deviation {list(self.std)} must be three finite numbers each, the "
                "deviation above 0."
            )


@dataclass(frozen=True)
class Tokens:
    """How captions become token ids; the architecture has the size of the vocabulary and the longest text.

    `encoding` names the vocabulary: CLIP's, a repository of the Hugging Face Hub, or `OWN_FILES`.
    `cleaning` is one of `CLEANINGS`, and `end` is that of the text tower. `sha256` is of the tokenizer's files, once
    they are found (`modules.tokenizer.find_tokenizer`). `places` are folders to look in, which say nothing of the
    tokens themselves.
    """

    encoding: str = CLIPS_BYTE_PAIRS
    cleaning: str = "lower"
    end: str = "largest id"
    sha256: str = ""
    places: tuple[str, ...] = field(default=(), compare=False)

    def __post_init__(self) -> None:
        if self.cleaning not in CLEANINGS:
            raise ValueError(f"the cleaning of texts must be one of {', '.join(CLEANINGS)}, not '{self.cleaning}'.")

    def __str__(self) -> str:
        if self.encoding == CLIPS_BYTE_PAIRS and self.cleaning == "lower":
            return self.encoding
        files = f", sha256 {self.sha256[:12]}" if self.sha256 else ""
        return f"{self.encoding}, {self.cleaning}{files}"


@dataclass(frozen=True)
class Backbone:
    """All facts of a CLIP beside its weights.

    `similarity` is what the weights were trained with: "softmax", cosines times the learned exp(logit_scale), or
    "sigmoid", which adds a learned bias (SigLIP).
    """

    architecture: CLIPArchitecture
    preprocessing: Preprocessing = Preprocessing()
    tokens: Tokens = Tokens()
    similarity: str = "softmax"

    def facts(self) -> dict[str, Any]:
        """Return all of it as plain strings, numbers, lists and dictionaries, for JSON."""
        facts: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        # CLIP's parts are not stated, so that its facts and their hash are those of versions that knew no others.
        for tower, own in (("vision", VisionParts()), ("text", TextParts())):
            if facts["architecture"][tower] == asdict(own):
                del facts["architecture"][tower]
        del facts["tokens"]["places"]
        if not self.tokens.sha256:
            del facts["tokens"]["sha256"]
        return facts

    def sha256(self) -> str:
        """Return the hex digest of `facts`, which is equal for equal backbones from different files."""
        return sha256(json.dumps(self.facts(), sort_keys=True).encode()).hexdigest()

    def differences(self, facts: Mapping[str, Any]) -> list[str]:
        """Return the differences to `facts` of another backbone, such as "vision_heads is 16 there and 20 here".

        A fact that only one side has does not count, because a later version may have more facts.
        """
        here, there = _flat(self.facts()), _flat(facts)
        return [
            f"{name} is {_short(there[name])} there and {_short(here[name])} here"
            for name in here
            if name in there and there[name] != here[name]
        ]

    def __str__(self) -> str:
        """Return one line for a log."""
        a, p = self.architecture, self.preprocessing
        resize = {"shortest": "short side and middle square", "squash": "squashed"}[p.resize_mode]
        return (
            f"vision {a.image_size}/{a.patch_size} pixels, {a.vision_layers} x {a.vision_width} wide, {a.vision_heads} "
            f"heads; text {a.context_length} of {a.vocab_size} tokens ({self.tokens}), {a.text_layers} x "
            f"{a.text_width} wide, {a.text_heads} heads; joint {a.embed_dim}; {a.activation}; pixels "
            f"{resize}, {p.interpolation}, mean {_rounded(p.mean)}, deviation {_rounded(p.std)}; {self.similarity}"
            f"{_unlike_clip(a)}"
        )


@dataclass(frozen=True)
class StatedFacts:
    """Facts that a file, a registry or a user states about a CLIP; None where nothing is stated.

    `architecture` is set if the source states all of it, `image_size` or `text` if it states that alone.
    """

    activation: str | None = None
    vision_heads: int | None = None
    text_heads: int | None = None
    mean: Triple | None = None
    std: Triple | None = None
    resize_mode: str | None = None
    interpolation: str | None = None
    image_size: int | None = None
    architecture: CLIPArchitecture | None = None
    text: TextParts | None = None
    tokens: Tokens | None = None
    similarity: str | None = None

    def joined_with(self, asked: "StatedFacts") -> "StatedFacts":
        """Return these facts, completed by those that a user asks for; ValueError if the two contradict each other."""
        values = {}
        for name in (item.name for item in fields(self)):
            own, wanted = getattr(self, name), getattr(asked, name)
            if own is not None and wanted is not None and own != wanted:
                raise ValueError(
                    f"it states that its {name.replace('_', ' ')} is {_short(own)}, and {_short(wanted)} was asked for."
                )
            values[name] = wanted if own is None else own
        return StatedFacts(**values)

    def preprocessing(self) -> Preprocessing:
        """Return the preprocessing, CLIP's own where nothing is stated."""
        names = (item.name for item in fields(Preprocessing))
        said = {name: getattr(self, name) for name in names}
        return Preprocessing(**{name: value for name, value in said.items() if value is not None})

    def backbone(self, architecture: CLIPArchitecture) -> Backbone:
        """Return the backbone of these facts, CLIP's own where nothing is stated."""
        tokens, similarity = self.tokens or Tokens(), self.similarity or "softmax"
        return Backbone(architecture, self.preprocessing(), tokens, similarity)


def _unlike_clip(architecture: CLIPArchitecture) -> str:
    """Return what the towers have that CLIP's have not, to follow a backbone's line; empty for CLIP's parts."""
    vision, text = architecture.vision, architecture.text
    parts = [
        "" if vision.class_token else "no class token",
        "rotary positions" if vision.rotary else "",
        f"attention pool of {vision.pool_heads} heads" if vision.pool == "attention" else "",
        "patches with bias" if vision.patch_bias else "",
        "" if vision.pre_norm else "no norm before the blocks",
        {"none": "no projection", "linear": "projection with bias"}.get(vision.projection, ""),
    ]
    of_text = [
        "" if text.causal else "no causal mask",
        "" if text.end == TextParts().end else "read at " + ("the last token" if text.end == "last" else text.end),
        "projection with bias" if text.projection_bias else "",
    ]
    both: tuple[tuple[str, VisionParts | TextParts, list[str]], ...] = (
        ("vision", vision, parts),
        ("text", text, of_text),
    )
    told = []
    for name, tower, own in both:
        own += [
            "" if tower.activation in ("", architecture.activation) else tower.activation,
            f"MLPs {tower.hidden} wide" if tower.hidden else "",
            "" if tower.norm_eps == TextParts().norm_eps else f"eps {tower.norm_eps:g}",
        ]
        if any(own):
            told.append(f"{name} with {', '.join(filter(None, own))}")
    return f"; unlike CLIP: {'; '.join(told)}" if told else ""


def _flat(facts: Mapping[str, Any], start: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in facts.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{start}{name} ")
        else:
            flat[f"{start}{name}"] = value
    return {name.removeprefix("architecture ").removeprefix("preprocessing "): value for name, value in flat.items()}


def _short(value: Any) -> str:
    if isinstance(value, str) and re.fullmatch("[0-9a-f]{64}", value):  # a hash
        return value[:12]
    return _rounded(value) if isinstance(value, list | tuple) else str(value)


def _rounded(values: Any) -> str:
    return " ".join(f"{value:.4g}" for value in values)
