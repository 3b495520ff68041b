"""Prints errors as one sentence on stderr, and results on stdout."""

import os
import sys

MOST = 2000  # characters


def print_error(error: Exception | str) -> None:
    """Print an error. Shortens a library's long message in the middle, because its last words say what to do."""
    print(f"error: {keep_ends(str(error))}", file=sys.stderr)


def print_result(text: object) -> None:
    """Print what a command was asked for. A reader that has seen enough, such as head, is no error."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        close_stdout()


def close_stdout() -> None:
    """Drop what is still printed, so that Python does not try to write it as the process ends."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def keep_ends(text: str, most: int = MOST) -> str:
    """Return the text, without its middle if it has more than `most` characters."""
    if len(text) <= most:
        return text
    return f"{text[: most // 2]} [... {len(text) - most:,} characters ...] {text[-(most // 2) :]}"
