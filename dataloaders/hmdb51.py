"""HMDB51 (Kuehne et al., ICCV 2011): 6,766 clips of 51 actions from films and the web, in three splits.

--data_path is the folder with the official files, `<class>_test_split1.txt` to 3 for each class, or the one above it.
Their lines are `<file>.avi 1` for training, 2 for test and 0 for unused; the fold chooses the files. --features_path is
the folder with the videos, in a folder for each class or without. Instead of the official files, --train_csv and
--val_csv may name lists of mmaction2 (`dataloaders.action_lists`).

Ids are those of the classes in alphabetical order. Several published label files exchange kick and kick ball, and sword
and sword exercise; such a file is refused.
"""

import re
from collections.abc import Mapping
from pathlib import Path

from dataloaders.action_classes import (
    Numbering,
    check_fold,
    classes_of,
    first_there,
    list_of,
    needs,
    numbering,
    numbering_of_lists,
    report_classes,
    report_videos,
)
from dataloaders.action_lists import Entry, label_entries, read_list, samples_of
from dataloaders.annotations import check_split, read_lines
from dataloaders.classes import Classes, given, normalised, subset
from dataloaders.quoting import quoted
from dataloaders.samples import Sample

SPLITS = ("train", "test")
NEEDED_FLAGS = (("features_path",), ())
EXPECTED = {"train": dict.fromkeys((1, 2, 3), 3570), "test": dict.fromkeys((1, 2, 3), 1530)}  # videos by split and fold
N_CLASSES = 51
TEMPLATES = ("a video of a person {}.",)
FILES = "<class>_test_split1.txt"
FOLDERS = (".", "testTrainMulti_7030_splits", "test_train_splits", "splits")
CODES = {"train": "1", "test": "2"}
# <source>_<class>_<visible body>_<camera motion>_np<people>_<view>_<quality>_<number>
NAME = re.compile(r"(.+)_[a-z]_(?:cm|nm)_np\d+_(?:ba|le|ri|fr)_(?:goo|med|bad)_\d+")


def read_classes(
    *,
    data_path: Path | None = None,
    train_csv: Path | None = None,
    val_csv: Path | None = None,
    labels_csv: Path | None = None,
    **other_flags: Path | None,
) -> Classes:
    """Return the classes of the official files in alphabetical order, or those of --labels_csv, which may leave some
    out.

    Without --data_path the classes are those of --labels_csv, or else the folders that the lists name. Raises
    FileNotFoundError and ValueError.
    """
    found = _numbering(data_path, labels_csv, train_csv, val_csv)
    return subset(classes_of(found.known, "hmdb51"), found.keys)


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
    """Return the samples of "train" or "test" of a fold, 1 to 3, class by class or in the order of the list.

    Raises ValueError for a file with wrong content and FileNotFoundError for a missing file; missing videos are not an
    error here.
    """
    check_split("HMDB51", split, SPLITS)
    check_fold("HMDB51", fold, EXPECTED[split])
    found = _numbering(data_path, labels_csv, train_csv, val_csv)
    listed_in, flag = list_of(split, train_csv, val_csv)
    if listed_in:
        entries = read_list(listed_in, flag)
    else:
        listed_in, flag = _folder(needs("hmdb51", data_path, FILES, split)), "--data_path"
        files = [listed_in / f"{key}_test_split{fold}.txt" for key in found.keys]
        entries = tuple(entry for path in files for entry in _read_file(path, fold, CODES[split]))
    labels = label_entries(entries, found.known, f"{flag} {listed_in}", named_in, found.keys, found.by)
    report_classes("HMDB51", found, N_CLASSES)
    report_videos(listed_in, len(entries), EXPECTED[split], fold, found.known, N_CLASSES)
    return samples_of(entries, labels, features_path, listed_in, group_of)


def named_in(stem: str, known: Mapping[str, str]) -> str | None:
    """Return the class that a file's name states: the longest one that fits, "draw_sword" and not "sword"."""
    match = NAME.fullmatch(stem)
    words = match[1].split("_") if match else []
    ends = ("".join(words[place:]) for place in range(len(words)))
    return next((known[plain] for plain in map(normalised, ends) if plain in known), None)


def group_of(stem: str, key: str) -> str:
    """Return the class and the film that a clip is cut from, "" if its name does not tell. The official splits keep
    such groups on one side."""
    match = NAME.fullmatch(stem)
    source = match[1].removesuffix(f"_{key}") if match else ""
    return f"{key} {source}" if match and source != match[1] else ""


def _numbering(
    data_path: Path | None, labels_csv: Path | None, train_csv: Path | None, val_csv: Path | None
) -> Numbering:
    if data_path is None or not given(data_path):
        return numbering_of_lists("hmdb51", FILES, labels_csv, train_csv, val_csv)
    folder = _folder(data_path)
    keys = {path.name.partition("_test_split")[0] for path in folder.glob("*_test_split*.txt")}
    if not keys:
        raise FileNotFoundError(f"--data_path {data_path} has no files {FILES}: pass the folder with HMDB51's splits.")
    return numbering(tuple(sorted(keys)), labels_csv)


def _folder(data_path: Path) -> Path:
    return first_there(data_path, FOLDERS[1:]) if not any(data_path.glob("*_test_split*.txt")) else data_path


def _read_file(path: Path, fold: int, code: str) -> list[Entry]:
    """Return the lines of a class's file that have this code."""
    key, entries = path.name.removesuffix(f"_test_split{fold}.txt"), []
    for number, line in enumerate(read_lines(path, "--data_path"), 1):
        name, _, found = line.rpartition(" ")
        if not name or found not in ("0", "1", "2"):
            raise ValueError(
                f"--data_path {path} has the line {quoted(line)}: write `<file>.avi CODE`, 1 for training, 2 for test, "
                "0 for neither."
            )
        if found == code:
            entries.append(Entry(f"{key}/{name.strip()}", None, None, number))
    return entries
