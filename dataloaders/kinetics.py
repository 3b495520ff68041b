"""Kinetics (Kay et al., 2017, arXiv 1705.06950; Carreira et al., 2018, arXiv 1808.01340): ten seconds of a web video,
in 400 or 600 classes. `kinetics400` and `kinetics600` are the two data sets; this file reads both.

--train_csv and --val_csv are the official csv files (`label,youtube_id,time_start,time_end,split`), or lists of
mmaction2 (`dataloaders.action_lists`); without them, `train.csv` and `val.csv` (or `validate.csv`) in --data_path, or
in its folder `annotations`. "test" is the validation split. --features_path is the folder with the videos,
`<youtube_id>_000010_000020.mp4`, in a folder for each class or without.

Ids are those of the classes in alphabetical order, unless --labels_csv numbers them. It may name some of the classes,
such as the 160 of a zero-shot split of Kinetics-600; the lists must then name no other.
"""

from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from dataloaders.action_classes import (
    Numbering,
    check_fold,
    classes_of,
    first_there,
    list_of,
    named_lists,
    needs,
    numbering,
    numbering_of_lists,
    report_classes,
    report_videos,
)
from dataloaders.action_lists import Entry, label_entries, read_list, samples_of
from dataloaders.annotations import check_split, log, number, read_csv, read_text
from dataloaders.classes import Classes, by_name, given, subset
from dataloaders.quoting import quoted, some
from dataloaders.samples import Sample

SPLITS = ("train", "test")
NEEDED_FLAGS = (("features_path",), ())
FILES = {"train": ("train.csv",), "test": ("val.csv", "validate.csv")}
COLUMNS = ("label", "youtube_id", "time_start", "time_end")


class Official(NamedTuple):
    """The rows of an official csv file, and the label of each."""

    entries: tuple[Entry, ...]
    labels: tuple[str, ...]


def read_classes(
    data_set: str,
    *,
    data_path: Path | None = None,
    train_csv: Path | None = None,
    val_csv: Path | None = None,
    labels_csv: Path | None = None,
    **other_flags: Path | None,
) -> Classes:
    """Return the classes of the csv files or folders that the lists name, or of --labels_csv.

    Raises FileNotFoundError and ValueError.
    """
    found = _numbering(data_set, data_path, train_csv, val_csv, labels_csv)
    return subset(classes_of(found.known, data_set), found.keys)


def read_split(
    data_set: str,
    n_classes: int,
    expected: Mapping[str, Mapping[int, int]],
    split: str,
    *,
    features_path: Path,
    data_path: Path | None = None,
    train_csv: Path | None = None,
    val_csv: Path | None = None,
    labels_csv: Path | None = None,
    fold: int = 1,
) -> list[Sample]:
    """Return the samples of "train" or "test", the official validation split, in the order of the list.

    `expected` has the published number of videos by split and fold. The log tells if there is another number, or other
    than `n_classes` classes. Raises ValueError for a file with wrong content and
    FileNotFoundError for a missing file; missing videos are not an error here.
    """
    check_split(data_set, split, SPLITS)
    check_fold(data_set, fold, (1,))
    found = _numbering(data_set, data_path, train_csv, val_csv, labels_csv)
    listed_in, flag = _list(data_set, split, data_path, train_csv, val_csv)
    where = f"{flag} {listed_in}"
    official = _read_official(listed_in, flag)
    if official:
        entries, labels = official.entries, _known_labels(official, found, where)
    else:
        entries = read_list(listed_in, flag)
        labels = label_entries(entries, found.known, where, numbered=found.keys, numbered_by=found.by)
    report_classes(data_set, found, n_classes)
    report_videos(listed_in, len(entries), expected.get(split, {}), fold, found.known, n_classes)
    return samples_of(entries, labels, features_path, listed_in)


def _list(
    data_set: str, split: str, data_path: Path | None, train_csv: Path | None, val_csv: Path | None
) -> tuple[Path, str]:
    """Return the list of a split and the flag that leads to it."""
    listed_in, flag = list_of(split, train_csv, val_csv)
    if listed_in:
        return listed_in, flag
    folder = needs(data_set, data_path, "train.csv and val.csv", split)
    return first_there(folder, (*FILES[split], *(f"annotations/{name}" for name in FILES[split]))), "--data_path"


def _numbering(
    data_set: str, data_path: Path | None, train_csv: Path | None, val_csv: Path | None, labels_csv: Path | None
) -> Numbering:
    lists = named_lists(train_csv, val_csv)
    if data_path is not None and given(data_path):
        both = [_list(data_set, split, data_path, train_csv, val_csv) for split in SPLITS]
        lists = [(path, flag) for path, flag in both if path.is_file() or flag != "--data_path"]
        if not lists:
            raise FileNotFoundError(f"--data_path {data_path} has no train.csv or val.csv: pass the folder with them.")
    found = [official.labels for path, flag in lists if (official := _read_official(path, flag))]
    if not found:
        return numbering_of_lists(data_set, "train.csv and val.csv", labels_csv, train_csv, val_csv)
    keys = sorted({label for labels in found for label in labels})
    by_name(keys, " and ".join(f"{flag} {path}" for path, flag in lists))
    return numbering(keys, labels_csv, is_ordered=False)


def _known_labels(official: Official, found: Numbering, where: str) -> list[str]:
    """Return the key of each row; ValueError if --labels_csv left out a class that has videos."""
    if lacking := sorted(set(official.labels) - set(found.keys)):
        raise ValueError(
            f"{where} has videos of {some(lacking)}, which {found.by} lacks: pass --classes with a file of the classes "
            "to use, or a list that has no others."
        )
    return list(official.labels)


def _read_official(path: Path, flag: str) -> Official | None:
    """Return the rows of an official csv file; None if it is another kind of list."""
    text = read_text(path, flag)
    header, _ = read_csv(text.partition("\n")[0], f"{flag} {path}")
    return _parsed(text, f"{flag} {path}") if {"label", "youtube_id"} <= set(header) else None


@lru_cache(maxsize=4)  # the classes and both splits are read from the same files
def _parsed(text: str, where: str) -> Official:
    header, rows = read_csv(text, where)
    if lacking := [column for column in COLUMNS if column not in header]:
        raise ValueError(f"{where} has no column {some(lacking)}: pass the official csv file.")
    entries: dict[str, Entry] = {}
    label_of: dict[str, str] = {}
    n_rows = 0
    for line, row in rows:
        start, end = (_seconds(row[column]) for column in ("time_start", "time_end"))
        if not row["label"] or not row["youtube_id"] or start is None or end is None:
            raise ValueError(
                f"{where}, line {line}: label, youtube_id and two whole numbers of seconds are needed, not "
                f"{quoted([row[column] for column in COLUMNS])}; complete the line."
            )
        name = f"{row['youtube_id']}_{start:06d}_{end:06d}.mp4"
        first = entries.setdefault(name, Entry(name, None, None, line))
        if label_of.setdefault(name, row["label"]) != row["label"]:
            raise ValueError(
                f"{where}, line {line}: {name} has the label {quoted(row['label'])}, in line {first.line} it has "
                f"{quoted(label_of[name])}; keep one of them."
            )
        n_rows += 1
    if not entries:
        raise ValueError(f"{where} lists no video: download it again.")
    if repeated := n_rows - len(entries):
        log.info("attention: %s repeats %d of its videos, which count once", where, repeated)
    return Official(tuple(entries.values()), tuple(label_of.values()))


def _seconds(text: str) -> int | None:
    """Return whole seconds from 0, None if it is something else."""
    try:
        found = number(float(text))
    except ValueError:
        return None
    return int(found) if found is not None and found >= 0 else None
