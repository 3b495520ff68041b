"""Reading a whole `Backbone` from the JSON that `Backbone.facts` gives: the metadata `backbone` of a .safetensors file.

Weights of a tower that is not CLIP's do not show what it is made of. A file that says so itself needs no configuration
beside it. What it says is not trusted: an unknown fact, or one of another kind, is refused.
"""

import json
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from typing import Any, get_origin, get_type_hints

from modules.backbones import Backbone, StatedFacts
from modules.quoting import shorten, some

BACKBONE = "backbone"  # the entry in the metadata
SIMILARITIES = ("softmax", "sigmoid")


def facts_of_metadata(metadata: Mapping[str, str]) -> StatedFacts | None:
    """Return the facts in the entry `backbone` of a file's metadata; None if there is no such entry.

    Raises ValueError if it is not such an object, has an unknown fact, lacks a size, or contradicts itself or another
    entry of the metadata.
    """
    if BACKBONE not in metadata:
        return None
    try:
        facts = json.loads(metadata[BACKBONE], object_pairs_hook=_once)
    except RecursionError as error:
        raise ValueError("its metadata backbone is nested too deeply.") from error
    except ValueError as error:
        raise ValueError(f"its metadata backbone is not JSON ({shorten(str(error))}).") from error
    backbone = _read(Backbone, facts, BACKBONE)
    architecture = backbone.architecture
    if backbone.similarity not in SIMILARITIES:
        raise ValueError(
            f"its metadata states the similarity {shorten(backbone.similarity)}; there is {' and '.join(SIMILARITIES)}."
        )
    if backbone.tokens.end != architecture.text.end:
        raise ValueError(
            f"its metadata contradicts itself: texts are read at the token {backbone.tokens.end} by its tokens and "
            f"{architecture.text.end} by its text tower."
        )
    for name, said in (
        ("activation", architecture.activation),
        ("vision_heads", str(architecture.vision_heads)),
        ("text_heads", str(architecture.text_heads)),
    ):
        if metadata.get(name, said) != said:
            raise ValueError(
                f"its metadata contradicts itself: {name} is {shorten(metadata[name])} there and {said} in the "
                "backbone."
            )
    pixels = backbone.preprocessing
    return StatedFacts(
        architecture.activation,
        architecture.vision_heads,
        architecture.text_heads,
        pixels.mean,
        pixels.std,
        pixels.resize_mode,
        pixels.interpolation,
        architecture.image_size,
        architecture,
        tokens=backbone.tokens,
        similarity=backbone.similarity,
    )


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return an object of JSON; ValueError for a name that stands in it twice, of which JSON would keep the last."""
    names = [name for name, _ in pairs]
    if twice := [name for name in dict.fromkeys(names) if names.count(name) > 1]:
        raise ValueError(f"{some(twice, 3)} is in it twice")
    return dict(pairs)


def _read(kind: Any, value: Any, name: str) -> Any:
    """Return `value`, plain JSON, as the type `kind`; ValueError if it is none of that."""
    if is_dataclass(kind):
        return _read_object(kind, value, name)
    if get_origin(kind) is tuple:
        if isinstance(value, list) and len(value) == 3:
            return tuple(_read(float, item, name) for item in value)
    elif type(value) is kind:
        return value
    elif kind is float and type(value) is int:
        return float(value)
    raise ValueError(f"its metadata backbone states {name} {shorten(json.dumps(value))}, which is of the wrong kind.")


def _read_object(kind: Any, value: Any, name: str) -> Any:
    if not isinstance(value, Mapping):
        raise ValueError(f"its metadata {name} is {shorten(json.dumps(value))} and not an object of facts.")
    kinds = get_type_hints(kind)
    if unknown := [key for key in value if key not in kinds]:
        raise ValueError(
            f"its metadata {name} states {some(unknown, 3)}, which this version does not know: it cannot be run as it "
            "was trained."
        )
    needed = [field.name for field in fields(kind) if field.default is MISSING]
    if missing := [key for key in needed if key not in value]:
        raise ValueError(f"its metadata {name} lacks {some(missing, 3)}.")
    return kind(**{key: _read(kinds[key], item, key) for key, item in value.items()})
