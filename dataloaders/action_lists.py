"""Lists of labelled videos, as mmaction2 and the official files write them, and the class of each line.

A line is `path label`, or `folder n_frames label` for videos stored as folders of frames; blanks, tabs or commas stand
between. Which of these a file is, its lines decide together. A test list may have no labels (UCF101's). Paths may have
blanks and any punctuation. Folders of frames themselves are not read; a video of the folder's name beside it is.

The class of a video is told by its folder or, where a data set's file names state the class, by its name. A number in
the list never decides against that: if the two disagree, the list or the label file is refused. Only where no path
tells a class do numbers count, as ids of --labels_csv or of the data set's own order.
"""

import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import NamedTuple

from dataloaders.annotations import log, read_text
from dataloaders.classes import by_name, normalised
from dataloaders.listed_videos import find_clips, split_extension
from dataloaders.quoting import quoted, shorten, some
from dataloaders.samples import Sample


class Entry(NamedTuple):
    """A line of a list: the path as written, the class's number (None if there is none), the number of frames of a
    folder, and the line's number in the file."""

    path: str
    number: int | None
    n_frames: int | None
    line: int


# ---- the file -------------------------------------------------------------------------------------------------------


def read_list(path: Path, flag: str) -> tuple[Entry, ...]:
    """Return the lines of a list, each video once.

    Raises FileNotFoundError; ValueError for a line of another form than the others, for a list without a video, and
    for a video with two labels.
    """
    return _parsed(read_text(path, flag), f"{flag} {path}")


@lru_cache(maxsize=4)  # the classes and both splits are read from the same lists
def _parsed(text: str, where: str) -> tuple[Entry, ...]:
    lines = [(number, line.strip()) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    if lines and re.fullmatch(r"path\s*,\s*label", lines[0][1], re.IGNORECASE):
        lines = lines[1:]
    if not lines:
        raise ValueError(f"{where} lists no video: download it again.")
    fields = _fields([line for _, line in lines])
    entries: dict[str, Entry] = {}
    for (number, line), found in zip(lines, fields, strict=True):
        if found is None:
            raise ValueError(
                f"{where}, line {number}, is not like the others: write `path label`, the label as a number from 0, "
                f"not {quoted(line)}."
            )
        path, label, n_frames = found
        entry = Entry(path, None if label is None else int(label), None if n_frames is None else int(n_frames), number)
        first = entries.setdefault(path, entry)
        if first.number != entry.number:
            raise ValueError(
                f"{where}, line {number}: {shorten(path)} has the label {entry.number}, in line {first.line} it has "
                f"{first.number}; keep one of them."
            )
    if repeated := len(lines) - len(entries):
        log.info("attention: %s repeats %d of its videos, which count once", where, repeated)
    return tuple(entries.values())


Fields = tuple[str, str | None, str | None]  # path, label, number of frames


def _fields(lines: Sequence[str]) -> list[Fields | None]:
    """Return the fields of each line in the form that fits most of them; None for a line that has another."""
    candidates: list[list[Fields | None]] = [[form(line) for line in lines] for form in FORMS]
    # The first of the best: a list of folders also has the form `path label`.
    return max(candidates, key=lambda found: len(found) - found.count(None))


def _folder_and_count(line: str, separator: str | None) -> Fields | None:
    path, *numbers = line.rsplit(separator, 2)
    if len(numbers) != 2 or not all(map(_is_number, numbers)) or split_extension(path.strip())[1]:
        return None  # "my video.mp4 3 5" is no folder of frames
    return path.strip(), numbers[1].strip(), numbers[0].strip()


def _path_and_label(line: str, separator: str | None) -> Fields | None:
    path, *numbers = line.rsplit(separator, 1)
    return (path.strip(), numbers[0].strip(), None) if numbers and path.strip() and _is_number(numbers[0]) else None


def _path_alone(line: str) -> Fields | None:
    return (line, None, None) if split_extension(line)[1] else None


def _is_number(text: str) -> bool:
    text = text.strip()
    return text.isascii() and text.isdecimal() and len(text) < 10


FORMS: tuple[Callable[[str], Fields | None], ...] = (
    partial(_folder_and_count, separator=","),
    partial(_path_and_label, separator=","),
    partial(_folder_and_count, separator=None),  # blanks or tabs
    partial(_path_and_label, separator=None),
    _path_alone,
)


# ---- the class of each line -----------------------------------------------------------------------------------------

NamedIn = Callable[[str, Mapping[str, str]], str | None]  # (file name, {normalised: key}) -> the key that it states


def not_in_the_name(name: str, known: Mapping[str, str]) -> str | None:
    """Return None: the file names of this data set do not state the class."""
    return None


def folder_name(path: str) -> str:
    """Return the name of the folder that a listed video lies in, "" without one."""
    return path.rpartition("/")[0].rpartition("/")[2]


def label_entries(
    entries: Sequence[Entry],
    keys: Iterable[str],
    where: str,
    named_in: NamedIn = not_in_the_name,
    numbered: Sequence[str] = (),
    numbered_by: str = "",
    first: Collection[int] = (0,),
) -> list[str]:
    """Return the key of the class of each line of a list.

    Args:
        entries: the lines of the list `where`.
        keys: all classes.
        named_in: what a file's name says about its class.
        numbered: the keys in the order of ids, for lists whose paths tell no class.
        numbered_by: the flag and the file from which `numbered` is, "" for the data set's own order, which a list
            whose paths tell the classes need not follow.
        first: the numbers that the first class may have in a list whose paths tell the classes.

    Raises ValueError if the paths of only some lines tell a class, if none does and there are no numbers, or
    `numbered` has no such id, if the numbers disagree with the paths or with `numbered_by`, and if that leaves out a
    class of the list.
    """
    known = by_name(keys, "The data set")
    told = [known.get(normalised(folder_name(entry.path))) or named_in(_stem(entry.path), known) for entry in entries]
    found = [key for key in told if key is not None]
    if len(found) == len(entries):
        numbers = _numbers_of(entries, found, where)
        if numbered_by:
            _check_against(numbers, found, numbered, numbered_by, where, first)
        return found
    if found:
        entry = next(entry for entry, key in zip(entries, told, strict=True) if key is None)
        raise ValueError(
            f"{where}, line {entry.line}: {shorten(entry.path)} lies in no folder of a class, as other videos of the "
            f"list do (the classes are {some(list(known.values()))}): correct the line."
        )
    for entry in entries:
        if entry.number is None or not numbered:
            raise ValueError(
                f"{where}, line {entry.line}: neither a folder nor a label tells the class of {shorten(entry.path)}: "
                "write Class/file, or pass --labels_csv with the names of the list's numbers."
            )
        if entry.number >= len(numbered):
            raise ValueError(
                f"{where}, line {entry.line}, has the label {entry.number}, but {len(numbered)} classes have the ids 0 "
                f"to {len(numbered) - 1}: pass the list and --labels_csv that belong together."
            )
    by = numbered_by or "the data set's own order"
    log.info("attention: no path of %s tells a class, so nothing checks that its numbers are those of %s", where, by)
    return [numbered[entry.number] for entry in entries if entry.number is not None]


def _numbers_of(entries: Sequence[Entry], told: Sequence[str], where: str) -> dict[int, str]:
    """Return {number: key} of a list whose paths tell the keys; ValueError unless each number stands for one class and
    each class for one number."""
    key_of: dict[int, str] = {}
    number_of: dict[str, int] = {}
    for entry, key in zip(entries, told, strict=True):
        if (number := entry.number) is None:
            continue
        if key_of.setdefault(number, key) != key or number_of.setdefault(key, number) != number:
            other = f"{key_of[number]} has it too" if key_of[number] != key else f"{key} also has {number_of[key]}"
            raise ValueError(
                f"{where}, line {entry.line}: the class {shorten(key)} of {shorten(entry.path)} has the label "
                f"{number}, but {other}: correct the list."
            )
    return key_of


def _check_against(
    numbers: Mapping[int, str],
    told: Sequence[str],
    numbered: Sequence[str],
    numbered_by: str,
    where: str,
    first: Collection[int],
) -> None:
    """Raise ValueError unless `numbered` has each class of a list, and with the list's number, counted from `first`."""
    if lacking := sorted(set(told) - set(numbered)):
        raise ValueError(f"{where} has videos of {some(lacking)}, which {numbered_by} lacks: add them to it.")
    id_of = {key: number for number, key in enumerate(numbered)}
    if any(all(id_of[key] + start == number for number, key in numbers.items()) for start in first):
        return
    wrong = {number: key for number, key in numbers.items() if number >= len(numbered) or numbered[number] != key}
    number = min(wrong)
    named = quoted(numbered[number]) if number < len(numbered) else "nothing"
    count = sum(key in wrong.values() for key in told)
    raise ValueError(
        f"{numbered_by} calls class {number} {named}, but the videos with that number in {where} are of "
        f"{quoted(wrong[number])} ({len(wrong)} classes with {count} videos disagree): correct the ids of the labels."
    )


def keys_by_folder(entries: Sequence[Entry], where: str) -> tuple[str, ...]:
    """Return the classes of lists whose videos lie in a folder for each class: in the order of the lists' numbers if
    these are 0 to K - 1, else by name. ValueError if the folders are no classes."""
    folders = [folder_name(entry.path) for entry in entries]
    if not all(folders):
        raise ValueError(
            f"{where} has videos outside of a class's folder: pass --labels_csv with the names of its numbers."
        )
    by_name(folders, where)
    try:
        _numbers_of(entries, folders, where)
    except ValueError as error:
        raise ValueError(f"{str(error).rstrip('.')}, or pass --labels_csv with the names of its numbers.") from error
    number_of = {folder: entry.number for folder, entry in zip(folders, entries, strict=True)}
    if set(number_of.values()) == set(range(len(number_of))):
        return tuple(sorted(number_of, key=lambda folder: number_of[folder] or 0))
    return tuple(sorted(number_of))


# ---- the videos -----------------------------------------------------------------------------------------------------


def samples_of(
    entries: Sequence[Entry],
    labels: Sequence[str],
    features_path: Path,
    listed_in: Path,
    group_of: Callable[[str, str], str] = lambda stem, key: "",
) -> list[Sample]:
    """Return a sample for each line. Its id is the file's name without extension, or the whole path if the list has
    that name twice. `group_of(stem, key)` gives its group.

    Raises FileNotFoundError and ValueError as `find_clips` does.
    """
    paths = find_clips([entry.path for entry in entries], features_path, listed_in)
    stems = [_stem(entry.path) for entry in entries]
    ids = stems if len(set(stems)) == len(stems) else [split_extension(entry.path)[0] for entry in entries]
    return [
        Sample(video_id, path, (), listed_in=listed_in, label=key, group=group_of(stem, key))
        for video_id, stem, path, key in zip(ids, stems, paths, labels, strict=True)
    ]


def _stem(path: str) -> str:
    return split_extension(path.rpartition("/")[2])[0]
