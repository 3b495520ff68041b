"""UCF101 (Soomro et al., 2012, arXiv 1212.0402): 13,320 clips of 101 actions, in three splits.

--data_path is the folder `ucfTrainTestlist` or the one above it: `classInd.txt` with `1 ApplyEyeMakeup` a line,
`trainlist01.txt` with `Class/file.avi 1` and `testlist01.txt` with `Class/file.avi`; the fold chooses 01, 02 or 03.
--features_path is the folder with the videos, in a folder for each class or without. Instead of the official lists,
--train_csv and --val_csv may name lists of mmaction2 (`dataloaders.action_lists`), whose numbers count from 0.

Three files may lie in --data_path or beside `classInd.txt`: `flip_map.csv` (`class,mirrored`) and `twins.csv`
(`class,reversed`) with a row for each pair, and `base_classes.txt`, one class a line. UCF101 itself has none of them.

The 25 groups of a class are 25 recordings; clips of a group are near copies of each other.
"""

import re
from collections.abc import Mapping
from pathlib import Path

from dataloaders.action_classes import (
    Numbering,
    check_fold,
    classes_of,
    classes_with_files,
    first_there,
    list_of,
    needs,
    numbering,
    numbering_of_lists,
    read_class_lines,
    report_videos,
)
from dataloaders.action_lists import Entry, label_entries, read_list, samples_of
from dataloaders.annotations import check_split
from dataloaders.classes import Classes, by_name, given, normalised, subset
from dataloaders.quoting import quoted
from dataloaders.samples import Sample

SPLITS = ("train", "test")
NEEDED_FLAGS = (("features_path",), ())
EXPECTED = {  # videos by split and fold
    "train": {1: 9537, 2: 9586, 3: 9624},
    "test": {1: 3783, 2: 3734, 3: 3696},
}
N_CLASSES = 101
TEMPLATES = ("a video of a person {}.",)
FOLDERS = ("", "ucfTrainTestlist/")
NAME = re.compile(r"v_(.+)_g(\d+)_c\d+", re.IGNORECASE)


def read_classes(
    *,
    data_path: Path | None = None,
    train_csv: Path | None = None,
    val_csv: Path | None = None,
    labels_csv: Path | None = None,
    **other_flags: Path | None,
) -> Classes:
    """Return the classes of classInd.txt, or of --labels_csv, which may leave some out.

    Without --data_path the classes are those of --labels_csv, or else the folders that the lists name. Raises
    FileNotFoundError and ValueError.
    """
    found = _numbering(data_path, labels_csv, train_csv, val_csv)
    if data_path is None or not given(data_path):
        return classes_of(found.keys, "ucf101")
    folders = (data_path, _class_file(data_path).parent)
    return subset(classes_with_files(found.known, "ucf101", folders), found.keys)


def read_split(
    split: str,
    *,
    features_path: Path,
    data_path: Path | None = None,
    train_csv: Path | None = None,
    val_csv: Path | None = None,
    labels_csv: Path | None = None,
    fold: int = 1,
) -> list[Sample]:
    """Return the samples of "train" or "test" of a fold, 1 to 3, in the order of the list.

    Raises ValueError for a file with wrong content and FileNotFoundError for a missing file; missing videos are not an
    error here.
    """
    check_split("UCF101", split, SPLITS)
    check_fold("UCF101", fold, EXPECTED[split])
    found = _numbering(data_path, labels_csv, train_csv, val_csv)
    listed_in, flag = list_of(split, train_csv, val_csv)
    if listed_in:
        entries = read_list(listed_in, flag)
        labels = label_entries(
            entries, found.known, f"{flag} {listed_in}", named_in, found.keys, found.by, first=(0, 1)
        )
    else:
        folder = _class_file(needs("ucf101", data_path, "classInd.txt", split)).parent
        listed_in = folder / f"{split}list{fold:02}.txt"
        where, official = f"--data_path {listed_in}", _class_file(folder)
        entries = tuple(_from_zero(entry, where) for entry in read_list(listed_in, "--data_path"))
        labels = label_entries(entries, found.known, where, named_in, found.known, f"--data_path {official}")
    report_videos(listed_in, len(entries), EXPECTED[split], fold, found.known, N_CLASSES)
    return samples_of(entries, labels, features_path, listed_in, group_of)


def named_in(stem: str, known: Mapping[str, str]) -> str | None:
    """Return the class that a file's name states. UCF101 itself writes HandStandPushups in the folder
    HandstandPushups."""
    match = NAME.fullmatch(stem)
    return known.get(normalised(match[1])) if match else None


def group_of(stem: str, key: str) -> str:
    """Return the class and the recording of a clip, "" if its name does not tell."""
    match = NAME.fullmatch(stem)
    return f"{key} g{match[2]}" if match else ""


def _numbering(
    data_path: Path | None, labels_csv: Path | None, train_csv: Path | None, val_csv: Path | None
) -> Numbering:
    if data_path is not None and given(data_path):
        return numbering(_read_class_file(_class_file(data_path)), labels_csv)
    return numbering_of_lists("ucf101", "classInd.txt", labels_csv, train_csv, val_csv)


def _class_file(data_path: Path) -> Path:
    return first_there(data_path, (f"{folder}classInd.txt" for folder in FOLDERS))


def _read_class_file(path: Path) -> tuple[str, ...]:
    """Return the keys of classInd.txt, whose ids count from 1."""
    keys: list[str] = []
    for line in read_class_lines(path, "--data_path"):
        match = re.fullmatch(r"([0-9]{1,6})\s+(.+)", line)
        if not match or int(match[1]) != len(keys) + 1:
            raise ValueError(
                f"--data_path {path} has the line {quoted(line)} where class {len(keys) + 1} should be: write the id "
                "and the name of a class in each line, with ids from 1."
            )
        keys.append(match[2])
    if len(by_name(keys, f"--data_path {path}")) < len(keys):
        raise ValueError(f"--data_path {path} names a class twice: leave one of them out.")
    return tuple(keys)


def _from_zero(entry: Entry, where: str) -> Entry:
    """Return a line of trainlist0k.txt with its class's number counted from 0."""
    if entry.number == 0:
        raise ValueError(
            f"{where}, line {entry.line}, has the label 0, but labels of this file count from 1: correct it."
        )
    return entry if entry.number is None else entry._replace(number=entry.number - 1)
