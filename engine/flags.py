"""Checks for the flags of all commands: numbers, and places to write to. Imports only the standard library."""

import argparse
import math
import tempfile
from pathlib import Path

PICTURES = (".png", ".pdf", ".svg")  # extensions that matplotlib writes


def finite_float(text: str) -> float:
    """Parse a number for argparse; refuses NaN and infinity, which no setting needs."""
    value = float(text)
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"{text} is not a finite number")
    return value


def check_folder(flag: str, path: Path) -> None:
    """Raise ValueError if files cannot be written into a folder, which need not exist yet; leaves no trace.

    Reasons: a part of the path is a file, or the system refuses to write there.
    """
    there = path
    while not there.exists() and there != there.parent:
        there = there.parent
    if not there.is_dir():
        raise ValueError(f"{flag} {path}: {there} is a file and not a folder; name another place")
    try:
        with tempfile.TemporaryFile(dir=there):
            pass
    except OSError as error:
        raise ValueError(f"{flag} {path}: cannot be written to ({error.strerror}); name another place") from error


def _any_of(names: tuple[str, ...]) -> str:
    return " or ".join(part for part in (", ".join(names[:-1]), names[-1]) if part)


def check_file(flag: str, path: Path, endings: tuple[str, ...] = ()) -> None:
    """Raise ValueError if a file cannot be written or replaced; leaves no trace.

    Reasons: it is a folder, its name has none of the `endings`, or its folder fails `check_folder`.
    """
    if path.is_dir():
        raise ValueError(f"{flag} {path}: is a folder; name a file")
    if endings and path.suffix not in endings:
        raise ValueError(f"{flag} {path} could not be written: give a name that ends in {_any_of(endings)}")
    if not path.exists():
        check_folder(flag, path.parent)
        return
    try:
        with open(path, "r+b"):  # changes nothing
            pass
    except OSError as error:
        raise ValueError(f"{flag} {path}: cannot be written to ({error.strerror}); name another file") from error
