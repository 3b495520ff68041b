"""Your own videos: a list of `path`, `caption`, and optionally `start`, `end` and `split`.

--train_csv lists the training videos, --val_csv the test videos. Both are csv files with a header, or `.jsonl` files
with one object a line. `path` is a file within --features_path; a re-encoded file may have another extension. `start`
and `end`, in seconds, say that only this part of the file is the video; they default to the file's start and end.

`split` is train, val or test. With it both flags may name the same file: "train" takes the lines of --train_csv that
say train or nothing, "test" those of --val_csv that say test or nothing, and "val" those of --val_csv that say val.

Training refuses lists that share a video, or overlapping parts of one, unless --allow_overlap is passed. Lines with the
same path, start and end are several captions of one video. Quote a caption that has a comma in a csv file; write a
caption that has a line break in a jsonl file.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from dataloaders.annotations import check_split, columns_of, is_text, log, number, parse_json, read_csv, read_text
from dataloaders.listed_videos import find_listed_files
from dataloaders.quoting import quoted, some
from dataloaders.samples import Sample

SPLITS = ("train", "val", "test")  # also the values of the field `split`
NEEDED_FLAGS = (("val_csv", "features_path"), ("train_csv",))
EXPECTED: dict[str, int] = {}  # your own videos have no published number
FIELDS = ("path", "caption", "start", "end", "split")


def read_split(split: str, *, features_path: Path, train_csv: Path, val_csv: Path, **other_flags: Path) -> list[Sample]:
    """Return the samples of "train", "val" or "test", in the order of the list, one for each video or part of one.

    Raises ValueError for a list with wrong content and FileNotFoundError for a missing file; missing videos are not an
    error here.
    """
    check_split("custom", split, SPLITS)
    path, flag = (train_csv, "--train_csv") if split == "train" else (val_csv, "--val_csv")
    captions = read_clips(path, flag, split, FIELDS)
    names = list(dict.fromkeys(name for name, _, _ in captions))
    paths = dict(zip(names, find_listed_files(names, features_path, path), strict=True))
    return [
        Sample(clip_id(name, start, end), paths[name], tuple(texts), start, end, path)
        for (name, start, end), texts in captions.items()
    ]


Clip = tuple[str, float | None, float | None]  # path as listed, start, end


def read_clips(path: Path, flag: str, split: str, fields: Sequence[str]) -> dict[Clip, list[str]]:
    """Return the texts of each clip of a split, or of all with "", in the order of a csv or jsonl list.

    `fields` are the names that count: path, the one of the text, and the others of `FIELDS`. ValueError as `read_split`
    says.
    """
    of_text = fields[1]
    rows = _jsonl_rows if path.suffix == ".jsonl" else _csv_rows
    texts: dict[Clip, list[str]] = {}
    others: dict[str, None] = {}  # names of no field, in order
    for line, row in rows(f"{flag} {path}", read_text(path, flag), of_text):
        others |= dict.fromkeys(name for name in row if name not in fields)
        try:
            named = _split(row) if row.get("split") not in (None, "") else ""
            if split and named != split and (named or split == "val"):
                continue
            clip = _text(row, "path"), *_window(row)
            texts.setdefault(clip, []).append(_text(row, of_text))
        except ValueError as error:
            raise ValueError(f"{flag} {path}, line {line}: {error}; correct the line.") from error
    _note_others(list(others), f"{flag} {path}", fields)
    if not texts:
        of_split = f" of the split {split!r}" if split else ""
        raise ValueError(f"{flag} {path} lists no video{of_split}: add some, or pass another file.")
    return texts


def _note_others(names: Sequence[str], where: str, fields: Sequence[str]) -> None:
    """Log which names are not used; ValueError for a name that is probably meant as a field, such as `Start`."""
    for name in names:
        if (field := name.strip().lower()) in fields:
            raise ValueError(f"{where} has {quoted(name)}, which would not be used: write it as {field!r}.")
    if used_for_nothing := [name for name in names if name]:
        log.info(
            "attention: %s has %s, which is not used; the fields are %s",
            where,
            some(used_for_nothing),
            ", ".join(fields),
        )


def _csv_rows(name: str, text: str, of_text: str) -> Iterator[tuple[int, Mapping[str, Any]]]:
    header, rows = read_csv(text, name)
    if not {"path", of_text} <= set(header):
        found = columns_of(header) or "nothing"
        raise ValueError(f"{name} has no header with `path` and `{of_text}` (its first line: {found}): add it.")
    yield from rows


def _jsonl_rows(name: str, text: str, of_text: str) -> Iterator[tuple[int, Mapping[str, Any]]]:
    for count, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        where = f"{name}, line {count}:"
        try:
            row = parse_json(line)
        except ValueError as error:
            raise ValueError(f"{where} {error}; correct the line.") from error
        if not isinstance(row, dict):
            raise ValueError(
                f'{where} not a JSON object; write {{"path": "a.mp4", "{of_text}": "a dog runs"}} in a line.'
            )
        yield count, row


def _text(row: Mapping[str, Any], name: str) -> str:
    text = row.get(name)
    if text is not None and not is_text(text):
        raise ValueError(f"{name!r} is {quoted(text)}, not a text")
    if not text or not text.strip():
        raise ValueError(f"{name!r} is missing or empty")
    return text.strip()


def _split(row: Mapping[str, Any]) -> str:
    if _text(row, "split") not in SPLITS:
        raise ValueError(f"'split' is {quoted(row['split'])}, not one of {', '.join(SPLITS)}")
    return _text(row, "split")


def _window(row: Mapping[str, Any]) -> tuple[float | None, float | None]:
    start, end = _seconds(row, "start"), _seconds(row, "end")
    if end is not None and end <= (start or 0):
        raise ValueError(f"'end' is {end:g}, not after the start")
    return start or None, end  # a file starts at 0: with and without it, it is the same video


def _seconds(row: Mapping[str, Any], name: str) -> float | None:
    value = row.get(name)
    if value is None or value == "":
        return None
    try:
        seconds = number(float(value) if isinstance(value, str) else value)
    except ValueError:
        seconds = None
    if seconds is None or seconds < 0:
        raise ValueError(f"{name!r} is {quoted(value)}, not a number of seconds")
    return seconds


def clip_id(name: str, start: float | None, end: float | None) -> str:
    """Return the id of a file, or of a part of it."""
    if start is None and end is None:
        return name
    return f"{name} [{start or 0:.10g} s, {'end' if end is None else f'{end:.10g} s'}]"
