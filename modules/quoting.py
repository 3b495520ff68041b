"""Quoting parts of weights files and settings in messages: one line, however long or odd they are."""

from collections.abc import Sequence


def shorten(text: str, most: int = 80) -> str:
    """Return a text in one line: whole, or its first `most` characters and its length. What cannot be printed is
    escaped."""
    shown = text[:most]
    if not shown.isprintable():
        shown = repr(shown)[1:-1][:most]
    return shown if len(text) <= most else f"{shown}... ({len(text):,} characters)"


def some(names: Sequence[str], most: int = 10) -> str:
    """Return the first `most` names, separated by commas, and how many more there are."""
    more = f" and {len(names) - most:,} more" if len(names) > most else ""
    return ", ".join(shorten(str(name), 200) for name in names[:most]) + more
