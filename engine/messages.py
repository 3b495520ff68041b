"""How a command says that something is wrong: one sentence on stderr."""

import sys

MOST = 2000  # characters


def print_error(error: Exception | str) -> None:
    """Print a mistake; of a message that libraries made too long, both ends, for the last words say what to do."""
    print(f"error: {keep_ends(str(error))}", file=sys.stderr)


def keep_ends(text: str, most: int = MOST) -> str:
    """A text, without its middle where it has more than `most` characters."""
    if len(text) <= most:
        return text
    return f"{text[: most // 2]} [... {len(text) - most:,} characters ...] {text[-(most // 2) :]}"
