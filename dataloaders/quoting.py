"""Quotations of file contents and flags in messages: one line each, however long or odd the original is."""

import reprlib
from collections.abc import Sequence
from itertools import takewhile
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


def where_they_differ(one: str, other: str) -> tuple[str, str]:
    """Return two texts without the words that both start and end with, if one of them is too long for a message.

    Two lines about a CLIP may differ in their last words alone, where `quoted` has cut both.
    """
    if max(len(one), len(other)) <= MOST:
        return one, other
    a, b = one.split(" "), other.split(" ")
    starts = _shared(a, b)
    ends = _shared(a[starts:][::-1], b[starts:][::-1])
    start = max(0, starts - 2)  # two words of what they share say what the rest is about

    def part(words: list[str]) -> str:
        cut = " ".join(words[start : len(words) - ends])
        return f"{'... ' if start else ''}{cut}{' ...' if ends else ''}"

    return part(a), part(b)


def _shared(one: Sequence[str], other: Sequence[str]) -> int:
    """Return how many words both start with."""
    return len(list(takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False))))
