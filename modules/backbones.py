"""The facts of a CLIP that its weights do not show: sizes, activation, pixels, words and similarity, in one object.

Two files with tensors of the same names and shapes may be different networks. The activation, the number of heads, and
how pictures were resized and normalised leave no trace in a state dict, and a wrong choice costs accuracy without an
error. A `Backbone` holds all of it; `modules.clip_weights.load_clip` builds it, and the CLIP carries it.
"""

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from hashlib import sha256
from typing import Any

import torch.nn.functional as F
from torch import Tensor

# f and s of f(s z) / s. OpenAI's CLIP weights were trained with quick_gelu, z · sigmoid(1.702 z).
ACTIVATIONS: dict[str, tuple[Callable[[Tensor], Tensor], float]] = {
    "quick_gelu": (F.silu, 1.702),
    "gelu": (F.gelu, 1.0),
}
HEAD_WIDTH = 64  # of every CLIP that OpenAI published
# Up to this width every published CLIP has heads of HEAD_WIDTH; open_clip's ViT-H-14, g-14 and bigG-14, which are
# wider, have wider heads.
WIDEST_WITH_KNOWN_HEADS = 1024

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

    def __post_init__(self) -> None:
        if self.activation not in ACTIVATIONS:
            raise ValueError(f"CLIP's activation must be one of {', '.join(ACTIVATIONS)}, not '{self.activation}'.")
        if self.image_size % self.patch_size:
            raise ValueError(
                f"CLIP's image size {self.image_size} is not a multiple of its patch size {self.patch_size}."
            )
        for width, heads in ((self.vision_width, self.vision_heads), (self.text_width, self.text_heads)):
            if width % heads:
                raise ValueError(f"CLIP's width {width} does not divide into {heads} attention heads.")

    @property
    def grid(self) -> int:
        """Patches along one side of the image; P = grid²."""
        return self.image_size // self.patch_size


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

    `encoding` names the vocabulary, `cleaning` the steps before encoding, and `end` the token that represents the text.
    """

    encoding: str = "CLIP's byte pairs"
    cleaning: str = "lower"  # ftfy, HTML entities, white space, lower case
    end: str = "largest id"


@dataclass(frozen=True)
class Backbone:
    """All facts of a CLIP beside its weights.

    `similarity` is what the weights were trained with: "softmax", cosines times the learned exp(logit_scale), or
    "sigmoid", which adds a learned bias (SigLIP). So far every loader gives the first.
    """

    architecture: CLIPArchitecture
    preprocessing: Preprocessing = Preprocessing()
    tokens: Tokens = Tokens()
    similarity: str = "softmax"

    def facts(self) -> dict[str, Any]:
        """Return all of it as plain strings, numbers, lists and dictionaries, for JSON."""
        facts: dict[str, Any] = json.loads(json.dumps(asdict(self)))
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
            f"heads; text {a.context_length} of {a.vocab_size} tokens ({self.tokens.encoding}), {a.text_layers} x "
            f"{a.text_width} wide, {a.text_heads} heads; joint {a.embed_dim}; {a.activation}; pixels "
            f"{resize}, {p.interpolation}, mean {_rounded(p.mean)}, deviation {_rounded(p.std)}; {self.similarity}"
        )


@dataclass(frozen=True)
class StatedFacts:
    """Facts that a file, a registry or a user states about a CLIP; None where nothing is stated.

    `architecture` is set if the source states all of it, `image_size` if it states that alone.
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


def _flat(facts: Mapping[str, Any], start: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in facts.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{start}{name} ")
        else:
            flat[f"{start}{name}"] = value
    return {name.removeprefix("architecture ").removeprefix("preprocessing "): value for name, value in flat.items()}


def _short(value: Any) -> str:
    return _rounded(value) if isinstance(value, list | tuple) else str(value)


def _rounded(values: Any) -> str:
    return " ".join(f"{value:.4g}" for value in values)
