"""Your own videos: a list of `path`, `caption`, and where wanted `start`, `end` and `split`.

--train_csv and --val_csv name the lists for training and for the test, csv files with a header or `.jsonl` files with
an object a line. `path` is a file within --features_path; a re-encoded one may have another extension. `start` and
`end`, in seconds, say that only this part of the file is the video; left out they are the file's own start and end.
`split` is train, val or test: with it both flags may name the same file, since each takes the lines of its split and
those that name none; lines of val are not used. Training refuses lists that share a video, or parts of one that
overlap, unless --allow_overlap is passed. Lines with the same path, start and end are several captions of one video. A
caption with a comma in it is quoted in a csv file; one with a line break in it fits into a jsonl file alone.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from dataloaders.csv_lists import columns_of, read_csv
from dataloaders.files import check_split, find_listed_files, log, read_text
from dataloaders.json_files import is_text, number, parse_json
from dataloaders.quoting import quoted, some
from dataloaders.samples import Sample

FIELDS = ("path", "caption", "start", "end", "split")
SPLITS = ("train", "val", "test")  # what the field `split` may say


def read_split(split: str, *, features_path: Path, train_csv: Path, val_csv: Path, **other_flags: Path) -> list[Sample]:
    """The samples of "train" or "test", in the order of the list, one for each video or part of one.

    Raises ValueError for a list with the wrong content and FileNotFoundError for a missing file, the videos aside.
    """
    check_split("custom", split, ("train", "test"))
    path, flag = (train_csv, "--train_csv") if split == "train" else (val_csv, "--val_csv")
    rows = _jsonl_rows if path.suffix == ".jsonl" else _csv_rows
    captions: dict[tuple[str, float | None, float | None], list[str]] = {}
    others: dict[str, None] = {}  # names that are no field's, in order
    for line, row in rows(f"{flag} {path}", read_text(path, flag)):
        others |= dict.fromkeys(name for name in row if name not in FIELDS)
        try:
            if row.get("split") not in (None, "") and _split(row) != split:
                continue
            clip = _text(row, "path"), *_window(row)
            captions.setdefault(clip, []).append(_text(row, "caption"))
        except ValueError as error:
            raise ValueError(f"{flag} {path}, line {line}: {error}; correct the line.") from error
    _note_others(list(others), f"{flag} {path}")
    if not captions:
        raise ValueError(f"{flag} {path} lists no video of the split {split!r}: add some, or pass another file.")
    names = list(dict.fromkeys(name for name, _, _ in captions))
    paths = dict(zip(names, find_listed_files(names, features_path, path), strict=True))
    return [
        Sample(_video_id(name, start, end), paths[name], tuple(texts), start, end, path)
        for (name, start, end), texts in captions.items()
    ]


def _note_others(names: Sequence[str], where: str) -> None:
    """Say which names are not used; ValueError for one that seems to be meant for a field, such as `Start`."""
    for name in names:
        if (field := name.strip().lower()) in FIELDS:
            raise ValueError(f"{where} has {quoted(name)}, which would not be used: write it as {field!r}.")
    if used_for_nothing := [name for name in names if name]:
        log.info("attention: %s has %s, not used; the fields are %s", where, some(used_for_nothing), ", ".join(FIELDS))


def _csv_rows(name: str, text: str) -> Iterator[tuple[int, Mapping[str, Any]]]:
    header, rows = read_csv(text, name)
    if not {"path", "caption"} <= set(header):
        found = columns_of(header) or "nothing"
        raise ValueError(f"{name} has no header with `path` and `caption` (its first line: {found}): add it.")
    yield from rows


def _jsonl_rows(name: str, text: str) -> Iterator[tuple[int, Mapping[str, Any]]]:
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
                f'{where} not a JSON object; write {{"path": "a.mp4", "caption": "a dog runs"}} in a line.'
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
    return start or None, end  # 0 is where a file starts anyway: with and without it, it is one video


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


def _video_id(name: str, start: float | None, end: float | None) -> str:
    if start is None and end is None:
        return name
    return f"{name} [{start or 0:.10g} s, {'end' if end is None else f'{end:.10g} s'}]"
