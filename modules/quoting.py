"""What a message quotes of a weights file or of a setting: one line, however long or odd it is there."""

from collections.abc import Sequence


def shorten(text: str, most: int = 80) -> str:
    """A text in one line: as it is, or its first `most` characters and its length; what cannot be printed is
    escaped."""
    shown = text[:most]
    if not shown.isprintable():
        shown = repr(shown)[1:-1][:most]
    return shown if len(text) <= most else f"{shown}... ({len(text):,} characters)"


def some(names: Sequence[str], most: int = 10) -> str:
    """The first `most` names with commas between them, and how many more there are."""
    more = f" and {len(names) - most:,} more" if len(names) > most else ""
    return ", ".join(shorten(str(name), 200) for name in names[:most]) + more
