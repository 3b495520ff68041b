"""JSON that other people wrote: read without losing an entry, and checked for its layout down to the last value."""

import json
import math
from typing import Any

from dataloaders.quoting import quoted


def parse_json(text: str) -> Any:
    """What a JSON text holds.

    NaN and Infinity are read, as Python writes them; `number` refuses them where they are used.

    Raises:
        ValueError: "not valid JSON (why)"; also if it is nested too deeply, and if an object has two different values
            under one key, of which one would be lost.
    """
    try:
        return json.loads(text, object_pairs_hook=_object)
    except RecursionError as error:
        raise ValueError("not valid JSON (it is nested too deeply)") from error
    except ValueError as error:  # also of a number with thousands of digits
        raise ValueError(f"not valid JSON ({error})") from error


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        for key, value in pairs:
            if found[key] != value:
                raise ValueError(f"two different entries {quoted(key)} in one object")
    return found


def is_text(value: Any) -> bool:
    """Whether a value is a string that can be tokenised and written down again: no NUL and no half of a surrogate pair,
    which JSON's escapes allow."""
    if not isinstance(value, str):
        return False
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return "\0" not in value


def is_texts(value: Any) -> bool:
    """Whether a value is a list of such strings."""
    return isinstance(value, list) and all(map(is_text, value))


def as_id(value: Any) -> str | None:
    """The id of a video, a string or a whole number, without surrounding space; None if it is neither, or empty."""
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    return value.strip() or None if is_text(value) else None


def number(value: Any) -> float | None:
    """A finite number, None for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        found = float(value)
    except OverflowError:
        return None
    return found if math.isfinite(found) else None


def pairs_of(entries: Any, id_name: str, text_name: str, fault: str, wanted: str) -> list[tuple[str, str]]:
    """(id, text) of every object in a list.

    Raises ValueError, "`fault` (but what is there): `wanted`.", unless it is a list of objects with a string or a whole
    number under `id_name` and a string under `text_name`.
    """

    def wrong(found: Any) -> ValueError:
        return ValueError(f"{fault} (but {quoted(found)}): {wanted}.")

    if not isinstance(entries, list):
        raise wrong(entries)
    pairs = []
    for entry in entries:
        video_id = as_id(entry.get(id_name)) if isinstance(entry, dict) else None
        if video_id is None or not is_text(entry.get(text_name)):
            raise wrong(entry)
        pairs.append((video_id, entry[text_name]))
    return pairs
