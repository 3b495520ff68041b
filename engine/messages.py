"""Prints an error as one sentence on stderr."""

import sys

MOST = 2000  # characters


def print_error(error: Exception | str) -> None:
    """Print an error. Shortens a library's long message in the middle, because its last words say what to do."""
    print(f"error: {keep_ends(str(error))}", file=sys.stderr)


def keep_ends(text: str, most: int = MOST) -> str:
    """Return the text, without its middle if it has more than `most` characters."""
    if len(text) <= most:
        return text
    return f"{text[: most // 2]} [... {len(text) - most:,} characters ...] {text[-(most // 2) :]}"
