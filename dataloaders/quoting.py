"""Quotations of file contents and flags in messages: one line each, however long or odd the original is."""

import reprlib
from collections.abc import Sequence
from typing import Any

MOST = 80  # characters of one quotation

_values = reprlib.Repr()
_values.maxlevel, _values.maxstring, _values.maxother, _values.maxlong = 3, MOST, MOST, MOST
_values.maxdict = _values.maxlist = _values.maxtuple = _values.maxset = 4


def shorten(text: str, most: int = MOST) -> str:
    """Return a text as one line: unchanged, or its first `most` characters and its length; unprintable characters are
    escaped."""
    shown = text[:most]
    if not shown.isprintable():
        shown = repr(shown)[1:-1][:most]
    return shown if len(text) <= most else f"{shown}... ({len(text):,} characters)"


def quoted(value: Any, most: int = MOST) -> str:
    """Return the repr of a value read from a file, without the inside of what is long or deeply nested."""
    return shorten(_values.repr(value), most)


def counted(number: int, noun: str) -> str:
    """Return "1 shard", "1,000 shards", for a noun with a plural in s."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def some(names: Sequence[str], most: int = 5) -> str:
    """Return the first `most` names, separated by commas, and how many more there are."""
    more = f" and {len(names) - most:,} more" if len(names) > most else ""
    return ", ".join(shorten(name, 40) for name in names[:most]) + more
