"""What the readers of action recognition share: the numbers of classes, the files beside their lists, and counts."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from dataloaders.action_lists import keys_by_folder, read_list
from dataloaders.annotations import columns_of, log, read_csv, read_text, report_count
from dataloaders.classes import Classes, by_name, check_order, given, match_keys, normalised, read_labels, spaced
from dataloaders.quoting import quoted, some

# <data set>_base.txt: the base half of the classes for base-to-novel (ViFi-CLIP, Rasheed et al., CVPR 2023; lists from
# github.com/muzairkhattak/ViFi-CLIP, labels/). They are the classes with most videos in the first training list; of
# equally many, the later ones in the order of ids.
CLASS_LISTS = Path(__file__).parent / "class_lists"


@dataclass(frozen=True)
class Numbering:
    """All classes that folders may name, the classes by id, and the flag and file that numbered them, if a user did."""

    known: tuple[str, ...]
    keys: tuple[str, ...]
    by: str = ""


def numbering(official: Sequence[str], labels_csv: Path | None, is_ordered: bool = True) -> Numbering:
    """Return the numbers of the classes: those of --labels_csv, or the data set's own without it.

    `official` are all keys of the data set, () if only --labels_csv can say; `is_ordered` says that their order is that
    of published ids. Raises FileNotFoundError; ValueError if the file names an unknown class, or numbers all classes in
    another order.
    """
    if labels_csv is None or not given(labels_csv):
        return Numbering(tuple(official), tuple(official))
    names = read_labels(labels_csv)
    if not official:
        return Numbering(names, names, f"--labels_csv {labels_csv}")
    keys = match_keys(names, official, labels_csv)
    if is_ordered:
        check_order(keys, official, labels_csv)
    return Numbering(tuple(official), keys, f"--labels_csv {labels_csv}")


def classes_of(
    keys: Sequence[str],
    data_set: str = "",
    mirrored: Mapping[str, str] | None = None,
    reversed_: Mapping[str, str] | None = None,
    base: Sequence[str] = (),
) -> Classes:
    """Return the classes with names for texts. `data_set` is the one whose published base half counts."""
    keys = tuple(keys)
    listed = CLASS_LISTS / f"{data_set}_base.txt"
    if not base and data_set and listed.is_file():
        known = by_name(keys, data_set)
        base = [known[plain] for name in read_class_lines(listed, "The list") if (plain := normalised(name)) in known]
    return Classes(keys, tuple(map(spaced, keys)), dict(mirrored or {}), dict(reversed_ or {}), tuple(base))


def classes_with_files(keys: Sequence[str], data_set: str, folders: Sequence[Path]) -> Classes:
    """Return `classes_of` with what three files say, if they lie in one of the folders: `flip_map.csv`
    (`class,mirrored`) and `twins.csv` (`class,reversed`) with a row for each pair, and `base_classes.txt`, one class a
    line. Raises ValueError for wrong content."""
    flips, twins, halves = (
        next((folder / name for folder in folders if (folder / name).is_file()), None)
        for name in ("flip_map.csv", "twins.csv", "base_classes.txt")
    )
    return classes_of(
        keys,
        data_set,
        read_pairs(flips, "mirrored", keys) if flips else {},
        read_pairs(twins, "reversed", keys) if twins else {},
        read_keys(halves, keys, "--data_path") if halves else (),
    )


def first_there(folder: Path, names: Iterable[str]) -> Path:
    """Return the first of these paths below a folder that exists, else the first one."""
    paths = [folder / name for name in names]
    return next((path for path in paths if path.exists()), paths[0])


def list_of(split: str, train_csv: Path | None, val_csv: Path | None) -> tuple[Path | None, str]:
    """Return the list that a flag names for a split, None without it, and the flag."""
    path, flag = (train_csv, "--train_csv") if split == "train" else (val_csv, "--val_csv")
    return (path if given(path) else None), flag


def named_lists(train_csv: Path | None, val_csv: Path | None) -> list[tuple[Path, str]]:
    """Return the lists that flags name, with their flags."""
    both = [list_of(split, train_csv, val_csv) for split in ("train", "test")]
    return [(path, flag) for path, flag in both if path]


def numbering_of_lists(
    data_set: str, files: str, labels_csv: Path | None, train_csv: Path | None, val_csv: Path | None
) -> Numbering:
    """Return the numbers of the classes where no --data_path tells them: those of --labels_csv, or else the folders
    that the lists name. ValueError without any of these."""
    if given(labels_csv):
        return numbering((), labels_csv)
    lists = named_lists(train_csv, val_csv)
    if not lists:
        raise ValueError(f"{data_set} needs --data_path, the folder with {files}, or --labels_csv: pass one.")
    entries = [entry for path, flag in lists for entry in read_list(path, flag)]
    return numbering(keys_by_folder(entries, " and ".join(f"{flag} {path}" for path, flag in lists)), None)


def needs(data_set: str, data_path: Path | None, files: str, split: str) -> Path:
    """Return --data_path; ValueError if it was not passed, and no list for this split was."""
    if data_path is None or not given(data_path):
        flag = "--train_csv" if split == "train" else "--val_csv"
        raise ValueError(
            f"{data_set} needs --data_path, the folder with {files}, or {flag} for its {split} split: pass one."
        )
    return data_path


def check_fold(data_set: str, fold: int, folds: Collection[int]) -> None:
    """Raise ValueError for a split number that the data set does not have."""
    if fold not in folds:
        has = "has one split: leave out --split" if len(folds) == 1 else f"has no split {fold}: pass 1 to {max(folds)}"
        raise ValueError(f"{data_set} {has}.")


def read_pairs(path: Path, column: str, keys: Sequence[str]) -> dict[str, str]:
    """Return which classes a csv file exchanges, in both directions: columns `class` and `column`, a row for each pair.

    A class may be paired with itself, which says nothing. Raises ValueError for another layout, for a name that is no
    class, and for a class in two pairs.
    """
    where, known, pairs = f"--data_path {path}", by_name(keys, "The data set"), dict[str, str]()
    header, rows = read_csv(read_text(path, "--data_path"), where)
    if not {"class", column} <= set(header):
        raise ValueError(
            f"{where} has no columns `class` and `{column}` (its columns: {columns_of(header) or 'none'}): correct its "
            "first line."
        )
    for line, row in rows:
        found = [known.get(normalised(row[name])) for name in ("class", column)]
        one, other = found
        if one is None or other is None:
            raise ValueError(
                f"{where}, line {line}: {quoted(row['class'] if one is None else row[column])} is no class of the data "
                "set; correct the line."
            )
        if pairs.setdefault(one, other) != other or pairs.setdefault(other, one) != one:
            raise ValueError(
                f"{where}, line {line}: a class has one partner, and {quoted(one)} or its has two; correct it."
            )
    return {key: other for key, other in pairs.items() if key != other}


def read_class_lines(path: Path, flag: str) -> list[str]:
    """Return the lines of a file of classes without surrounding space and empty ones; ValueError if there are none."""
    lines = [line.strip() for line in read_text(path, flag).split("\n") if line.strip()]
    if not lines:
        raise ValueError(f"{flag} {path} names no class: write one a line.")
    return lines


def read_keys(path: Path, keys: Sequence[str], flag: str) -> tuple[str, ...]:
    """Return the classes that a file names, in the data set's order: a text file with one key or name a line, or a csv
    or json file of labels, whose ids do not count. ValueError for others."""
    is_labels = path.suffix.lower() in (".csv", ".json")
    known, names = by_name(keys, "The data set"), read_labels(path, flag) if is_labels else read_class_lines(path, flag)
    if unknown := [name for name in names if normalised(name) not in known]:
        raise ValueError(f"{flag} {path} names {some(unknown)}, not among the {len(keys)} classes: correct the lines.")
    wanted = {known[normalised(name)] for name in names}
    return tuple(key for key in keys if key in wanted)


def report_classes(data_set: str, found: Numbering, n_classes: int) -> None:
    """Note in the log if files or lists, and not a user's file of classes, name another number than the published one.

    Call it where the videos are read, because the classes are read several times in a run.
    """
    if len(found.known) != n_classes and not found.by:
        log.info("attention: the lists name %d classes, %s has %d", len(found.known), data_set, n_classes)


def report_videos(
    listed_in: Path, n_videos: int, expected: Mapping[int, int], fold: int, keys: Sequence[str], n_classes: int
) -> None:
    """Note in the log if a split has another number of videos than the published one of this fold. Data with another
    number of classes is other data in the same format."""
    if len(keys) == n_classes:
        report_count(listed_in, n_videos, expected.get(fold))
