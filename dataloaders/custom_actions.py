"""Your own labelled videos: a list of `path`, `label`, and optionally `start`, `end` and `split`; or a folder for each
class.

--train_csv lists the training videos, --val_csv the test videos: csv files with a header, or `.jsonl` files with one
object a line. The fields are those of `dataloaders.custom`, with the name of a class in the place of a caption; `path`
is a file within --features_path. `split` lets both flags name the same file.

Without lists, the videos of a split lie in a folder for each class: `train/<class>/`, `test/<class>/` and, for
validation, `val/<class>/` in --features_path. --train_csv and --val_csv may also name folders of classes, anywhere.

Three files in --data_path, if it is given, say more about the classes: `flip_map.csv` (`class,mirrored`) which ones a
horizontal flip exchanges, `twins.csv` (`class,reversed`) which ones are each other played backwards, both with a row
for each pair; `base_classes.txt` which ones are the base half, one a line.

Ids are those of the classes by name, unless --labels_csv numbers them. A list may then give numbers as labels.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from dataloaders.action_classes import (
    Numbering,
    check_fold,
    classes_of,
    classes_with_files,
    list_of,
    named_lists,
    numbering,
)
from dataloaders.annotations import check_split
from dataloaders.classes import Classes, by_name, given, normalised
from dataloaders.custom import clip_id, read_clips
from dataloaders.listed_videos import VIDEO_EXTENSIONS, find_listed_files, walk_files
from dataloaders.quoting import shorten, some
from dataloaders.samples import Sample

SPLITS = ("train", "val", "test")
NEEDED_FLAGS = (("features_path",), ())
EXPECTED: dict[str, dict[int, int]] = {}  # your own videos have no published number
TEMPLATES = ("a video of a person {}.",)
FIELDS = ("path", "label", "start", "end", "split")


def read_classes(
    *,
    features_path: Path,
    data_path: Path | None = None,
    train_csv: Path | None = None,
    val_csv: Path | None = None,
    labels_csv: Path | None = None,
) -> Classes:
    """Return the classes of all lists or folders by name, or those of --labels_csv.

    Raises FileNotFoundError and ValueError, also if there is neither a list nor a folder.
    """
    keys = _numbering(features_path, train_csv, val_csv, labels_csv).keys
    if data_path is None or not given(data_path):
        return classes_of(keys)
    if not data_path.is_dir():
        raise FileNotFoundError(
            f"--data_path {data_path} is not a directory: pass the one with flip_map.csv, or leave out the flag."
        )
    return classes_with_files(keys, "", [data_path])


def read_split(
    split: str,
    *,
    features_path: Path,
    train_csv: Path | None = None,
    val_csv: Path | None = None,
    labels_csv: Path | None = None,
    fold: int = 1,
    **other_flags: Path | None,
) -> list[Sample]:
    """Return the samples of "train", "val" or "test", in the order of the list or of the names of files.

    Raises ValueError for a list with wrong content and FileNotFoundError for a missing file; missing videos are not an
    error here.
    """
    check_split("custom", split, SPLITS)
    check_fold("custom", fold, (1,))
    found = _numbering(features_path, train_csv, val_csv, labels_csv)
    path, flag = list_of(split, train_csv, val_csv)
    if path and not path.is_dir():
        samples = _read_list(path, flag, split, features_path)
    elif path and split == "val":
        raise ValueError(f"{flag} {path} is a folder of test videos: pass a list with the field split for validation.")
    else:
        folder = path or features_path / split
        if not folder.is_dir():
            raise FileNotFoundError(
                f"{folder} is not a directory with a folder for each class: correct --features_path, or pass {flag} "
                "with a csv or jsonl list."
            )
        samples = _read_folder(folder, flag if path else "--features_path")
    keys = _keys_of([sample.label for sample in samples], found, str(path or features_path / split))
    return [replace(sample, label=key) for sample, key in zip(samples, keys, strict=True)]


def _read_list(path: Path, flag: str, split: str, features_path: Path) -> list[Sample]:
    """Return the clips of a list with their labels as written."""
    labels = read_clips(path, flag, split, FIELDS)
    for (name, start, end), texts in labels.items():
        if len(set(texts)) > 1:
            raise ValueError(
                f"{flag} {path} gives {shorten(clip_id(name, start, end))} the labels {some(texts)}: a video has one "
                "class, so keep one of them."
            )
    names = list(dict.fromkeys(name for name, _, _ in labels))
    paths = dict(zip(names, find_listed_files(names, features_path, path), strict=True))
    return [
        Sample(clip_id(name, start, end), paths[name], (), start, end, path, label=texts[0])
        for (name, start, end), texts in labels.items()
    ]


def _read_folder(folder: Path, flag: str) -> list[Sample]:
    """Return the videos of a folder with a folder for each class."""
    samples = []
    for of_class in _class_folders(folder, flag):
        files = [path for path in walk_files(of_class) if path.suffix.lower() in VIDEO_EXTENSIONS]
        if not files:
            raise ValueError(
                f"{flag} {folder}: the folder {shorten(of_class.name)} holds no video; add some, or remove it."
            )
        for path in files:
            video_id = path.relative_to(folder).as_posix()
            samples.append(Sample(video_id, path, (), listed_in=folder, label=of_class.name))
    return samples


def _class_folders(folder: Path, flag: str) -> list[Path]:
    found = sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    if not found:
        raise ValueError(f"{flag} {folder} has no folder of a class: put the videos of each class into one.")
    return found


def _numbering(features_path: Path, train_csv: Path | None, val_csv: Path | None, labels_csv: Path | None) -> Numbering:
    """Return the classes of --labels_csv, or else those of all lists that flags name, or of all folders of splits."""
    if given(labels_csv):
        return numbering((), labels_csv)
    lists = named_lists(train_csv, val_csv)
    if not lists:
        lists = [(features_path / split, "--features_path") for split in SPLITS if (features_path / split).is_dir()]
    if not lists:
        raise ValueError(
            f"custom needs --train_csv and --val_csv, or folders train and test in --features_path {features_path}: "
            "add them."
        )
    labels: set[str] = set()
    for path, flag in lists:
        if path.is_dir():
            labels |= {of_class.name for of_class in _class_folders(path, flag)}
        else:
            labels |= {text for texts in read_clips(path, flag, "", FIELDS).values() for text in texts}
    by_name(sorted(labels), " and ".join(f"{flag} {path}" for path, flag in lists))
    return numbering(sorted(labels), None)


def _keys_of(labels: Sequence[str], found: Numbering, where: str) -> list[str]:
    """Return the key of each label: the class of that name or, if no label is a name, of that number."""
    known = by_name(found.keys, found.by)
    if any(normalised(label) in known for label in labels):
        named = [known.get(normalised(label)) for label in labels]
    else:
        named = [found.keys[int(label)] if label.isdecimal() and int(label) < len(known) else None for label in labels]
    if unknown := list(dict.fromkeys(label for label, key in zip(labels, named, strict=True) if key is None)):
        raise ValueError(f"{where} has the labels {some(unknown)}, which {found.by} lacks: add them.")
    return [key for key in named if key is not None]
