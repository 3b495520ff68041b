"""The classes of a data set for action recognition: keys, names, and which classes mirroring or reversal exchange.

Names are compared by `normalised`, never by position. Files that list classes (--labels_csv) may be

    csv    with the columns `id` and `name`
    json   {"name": 0, ...} or {"0": "name", ...}
    txt    one name a line, the first of which has id 0
    yaml   `classes:` with a list of names, the first of which has id 0 (`dataloaders.class_clauses`)

Shapes: N samples, K classes.
"""

import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from dataloaders.annotations import columns_of, is_text, is_texts, read_csv, read_json_object, read_text
from dataloaders.quoting import quoted, some
from dataloaders.samples import Sample

# Between the words of a CamelCase name: "ApplyEye", and "TVShow" before its last capital.
WORD_STARTS = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")
YAML = (".yaml", ".yml")


@dataclass(frozen=True)
class Classes:
    """The K classes of a data set, in the order of their ids 0 to K - 1.

    `keys` are the classes as folders and lists write them ("kick_ball"); `Sample.label` is one of them. `names` are
    what a text calls them ("kick ball"). `mirrored` maps a key to the class that its videos show after a horizontal
    flip, `reversed` to the class that they show when played backwards; a class in neither stays itself, as far as is
    known. Both are their own inverse. `base` are the keys of the published base half, where one is known; the others
    are novel.
    """

    keys: tuple[str, ...]
    names: tuple[str, ...]
    mirrored: Mapping[str, str] = field(default_factory=dict)
    reversed: Mapping[str, str] = field(default_factory=dict)
    base: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.keys)

    def ids(self, samples: Sequence[Sample]) -> np.ndarray:
        """Return the class ids of samples, int64 `[N]`; KeyError for a label that is no key."""
        id_of = {key: number for number, key in enumerate(self.keys)}
        return np.array([id_of[sample.label] for sample in samples], dtype=np.int64)


# ---- names ----------------------------------------------------------------------------------------------------------


@lru_cache(maxsize=4096)  # the folders of a list are few
def normalised(name: str) -> str:
    """Return what stays equal when a name is written as a folder, in CamelCase or with blanks: its letters and digits,
    without case."""
    return "".join(filter(str.isalnum, name.casefold()))


def spaced(key: str) -> str:
    """Return the words of a key: "brush_hair" -> "brush hair", "ApplyEyeMakeup" -> "apply eye makeup". A key with
    blanks stays as it is."""
    if " " in key:
        return key
    if "_" in key:
        return " ".join(key.replace("_", " ").split())
    return " ".join(WORD_STARTS.split(key)).lower()


def by_name(keys: Iterable[str], listed_in: str) -> dict[str, str]:
    """Return {normalised: key}; ValueError, naming the list, if two keys would be one class or a key has no letter."""
    found: dict[str, str] = {}
    for key in keys:
        plain = normalised(key)
        if not plain:
            raise ValueError(
                f"{listed_in} has the class {quoted(key)}, which has no letter or digit: correct the name."
            )
        if found.setdefault(plain, key) != key:
            raise ValueError(
                f"{listed_in} has the classes {quoted(found[plain])} and {quoted(key)}, which differ only in case or "
                "punctuation: rename one of them."
            )
    return found


def renamed(classes: Classes, class_names: str) -> Classes:
    """Return the classes with the texts that --class_names asks for.

    "split" writes the words of a key apart, "raw" takes keys as they are. Otherwise it is a csv file: with the columns
    `key` and `name`, any texts by key; with `id` and `name`, or as json or yaml, names that must match the keys.

    Raises FileNotFoundError for a missing file; ValueError if it lacks a class, has an unknown one, or numbers the
    classes in another order.
    """
    if class_names == "split":
        return replace(classes, names=tuple(map(spaced, classes.keys)))
    if class_names == "raw":
        return replace(classes, names=classes.keys)
    path, flag = Path(class_names), "--class_names"
    if not os.path.isfile(class_names):  # False also for a text too long to be a name
        raise FileNotFoundError(
            f"{flag} {quoted(class_names)} is not a file: pass split, raw or a csv file with a name for each class."
        )
    is_csv = path.suffix.lower() not in (".json", *YAML)
    header, rows = read_csv(read_text(path, flag), f"{flag} {path}") if is_csv else ([], iter(()))
    if "key" in header and "name" in header:
        texts: dict[str, str] = {}
        known = by_name(classes.keys, "The data set")
        for line, row in rows:
            key = known.get(normalised(row["key"]))
            if key is None or not row["name"] or key in texts:
                wrong = (
                    "no class of this data set" if key is None else "named twice" if key in texts else "without a name"
                )
                raise ValueError(f"{flag} {path}, line {line}: {quoted(row['key'])} is {wrong}; correct the line.")
            texts[key] = row["name"]
    else:
        names = read_labels(path, flag)
        texts = dict(zip(match_keys(names, classes.keys, path, flag), names, strict=True))
        check_order(tuple(texts), classes.keys, path, flag)
    if lacking := [key for key in classes.keys if key not in texts]:
        raise ValueError(f"{flag} {path} has no name for {some(lacking)}: add {'it' if len(lacking) == 1 else 'them'}.")
    return replace(classes, names=tuple(texts[key] for key in classes.keys))


# ---- files of labels ------------------------------------------------------------------------------------------------


def given(path: Path | None) -> bool:
    """Return whether a flag was passed: the settings hold "" without it, which is the path "."."""
    return path is not None and path != Path()


def read_labels(path: Path, flag: str = "--labels_csv") -> tuple[str, ...]:
    """Return the names of K classes in the order of their ids, whatever the order of the lines.

    Raises FileNotFoundError; ValueError for another layout, for two classes of one name, and unless the ids are 0 to
    K - 1, each once.
    """
    where = f"{flag} {path}"
    if path.suffix.lower() == ".json":
        pairs = list(_json_pairs(read_json_object(path, flag), where))
    elif path.suffix.lower() == ".txt":
        lines = [line.strip() for line in read_text(path, flag).split("\n") if line.strip()]
        pairs = [(str(number), name) for number, name in enumerate(lines)]
    elif path.suffix.lower() in YAML:
        from dataloaders.yaml_files import read_yaml  # imports PyYAML, which most runs do not need

        content = read_yaml(path, flag)
        names = content.get("classes", "") if isinstance(content, dict) else ""
        if not is_texts(names):
            raise ValueError(f"{where} has no `classes:` with a list of names: add it.")
        pairs = [(str(number), name) for number, name in enumerate(names)]
    else:
        header, rows = read_csv(read_text(path, flag), where)
        if not {"id", "name"} <= set(header):
            raise ValueError(
                f"{where} has no columns `id` and `name` (its columns: {columns_of(header) or 'none'}): pass the csv "
                "file of the classes."
            )
        pairs = [(row["id"], row["name"]) for _, row in rows]
    if not pairs:
        raise ValueError(f"{where} names no class: add one a line.")
    name_of: dict[int, str] = {}
    for number, name in pairs:
        if not re.fullmatch(r"[0-9]{1,9}", number) or not name.strip():
            raise ValueError(f"{where} has the id {quoted(number)} for {quoted(name)}: write 0,first class.")
        if int(number) in name_of:
            raise ValueError(f"{where} has the id {int(number)} twice: number the classes from 0.")
        name_of[int(number)] = name.strip()
    if max(name_of) != len(name_of) - 1:
        raise ValueError(
            f"{where} numbers its {len(name_of)} classes from {min(name_of)} to {max(name_of)}: number them from 0 to "
            f"{len(name_of) - 1}."
        )
    names = tuple(name_of[number] for number in range(len(name_of)))
    by_name(names, where)
    if len(set(names)) < len(names):
        raise ValueError(f"{where} has the class {quoted(_twice(names))} twice: leave one of them out.")
    return names


def _twice(names: Sequence[str]) -> str:
    return next(name for place, name in enumerate(names) if name in names[:place])


def _json_pairs(content: Mapping[str, Any], where: str) -> Iterable[tuple[str, str]]:
    for key, value in content.items():
        if isinstance(value, int) and not isinstance(value, bool):
            yield str(value), key  # name -> index
        elif is_text(value) and value.strip().isdecimal() and not key.strip().isdecimal():
            yield value.strip(), key  # name -> "index", as Something-Something V2 has it
        elif is_text(value) and key.strip().isdecimal():
            yield key.strip(), value  # index -> name
        else:
            raise ValueError(
                f'{where} has {quoted(key)}: {quoted(value)}: write {{"name": 0, ...}} or {{"0": "name", ...}}.'
            )


def match_keys(names: Sequence[str], keys: Sequence[str], path: Path, flag: str = "--labels_csv") -> tuple[str, ...]:
    """Return the key of each name of a file of labels; ValueError for a name that matches none."""
    known = by_name(keys, "The data set")
    unknown = [name for name in names if normalised(name) not in known]
    if unknown:
        raise ValueError(
            f"{flag} {path} names {some(unknown)}, which {'is' if len(unknown) == 1 else 'are'} no class of this data "
            f"set ({some(keys, 3)}): pass the file that belongs to it."
        )
    return tuple(known[normalised(name)] for name in names)


def check_order(keys: Sequence[str], official: Sequence[str], path: Path, flag: str = "--labels_csv") -> None:
    """Raise ValueError if a file that names all classes numbers them in another order than the data set does."""
    if len(keys) == len(official):
        for number, (key, own) in enumerate(zip(keys, official, strict=True)):
            if key != own:
                raise ValueError(
                    f"{flag} {path} gives the id {number} to {quoted(key)}, but in this data set {quoted(own)} has it "
                    f"({sum(a != b for a, b in zip(keys, official, strict=True))} classes are out of order): correct "
                    "the ids, or leave out the flag."
                )


# ---- parts of a data set --------------------------------------------------------------------------------------------


def subset(classes: Classes, keys: Sequence[str]) -> Classes:
    """Return some of the classes, in the order of `keys`, with ids from 0.

    `mirrored` keeps every entry of a class that stays, even if it names a class that is gone: a mirrored video of it
    shows none of these classes. ValueError for a key that is no class or comes twice, and if there is none.
    """
    place = {key: number for number, key in enumerate(classes.keys)}
    if wrong := [key for key, count in Counter(keys).items() if key not in place or count > 1]:
        raise ValueError(
            f"{some(wrong)} cannot be chosen among the {len(place)} classes of this data set: name each once."
        )
    if not keys:
        raise ValueError("No class is chosen: name at least one.")
    return Classes(
        keys=tuple(keys),
        names=tuple(classes.names[place[key]] for key in keys),
        mirrored={key: other for key, other in classes.mirrored.items() if key in keys},
        reversed={key: other for key, other in classes.reversed.items() if {key, other} <= set(keys)},
        base=tuple(key for key in classes.base if key in keys),
    )
