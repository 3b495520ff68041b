"""What a message quotes of a file or a command line: one line, however long or odd it is there."""

import reprlib
from collections.abc import Sequence
from typing import Any

MOST = 80  # characters of one quotation

_values = reprlib.Repr()
_values.maxlevel, _values.maxstring, _values.maxother, _values.maxlong = 3, MOST, MOST, MOST
_values.maxdict = _values.maxlist = _values.maxtuple = _values.maxset = 4


def shorten(text: str, most: int = MOST) -> str:
    """A text in one line: as it is, or its first `most` characters and its length; what cannot be printed is
    escaped."""
    shown = text[:most]
    if not shown.isprintable():
        shown = repr(shown)[1:-1][:most]
    return shown if len(text) <= most else f"{shown}... ({len(text):,} characters)"


def quoted(value: Any, most: int = MOST) -> str:
    """The repr of a value that was read from a file, without the inside of what is long or deeply nested."""
    return shorten(_values.repr(value), most)


def some(names: Sequence[str], most: int = 5) -> str:
    """The first `most` names with commas between them, and how many more there are."""
    more = f" and {len(names) - most:,} more" if len(names) > most else ""
    return ", ".join(shorten(name, 40) for name in names[:most]) + more
