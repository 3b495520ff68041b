"""The text features of a data set's classes, from a file (--text_features): which row is which class.

Shapes: K classes, M prompts of a class, E joint embedding.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from dataloaders.classes import Classes, by_name, normalised
from dataloaders.quoting import shorten, some
from engine.identity import DIGITS
from engine.logger import log
from modules.bag import Bag, BagMean, first_occurrences, make_bag
from modules.clip import CLIP
from modules.seal import content_sha256
from modules.text_features import TextFeatures, read_text_features

FLAG = "--text_features"


@dataclass(frozen=True)
class ClassFeatures:
    """The rows of a file of text features that belong to the classes of a data set, by the key of a class."""

    path: Path
    texts: TextFeatures
    row_of: Mapping[str, int]

    @classmethod
    def read(cls, setting: str, clip: CLIP, classes: Classes, mean: BagMean) -> "ClassFeatures":
        """Read the file that `setting` names for all classes of a data set.

        Rows with names are joined to classes by name, whatever their order. Rows without names are taken by position.
        There no text says which prompts are repeats, so a masked mean counts only the first of equal ones.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: `read_text_features` refuses the file; a name is no class or comes twice; or there are no names
                and not as many rows as classes.
        """
        if not setting:
            raise ValueError(
                f"--classifier bag needs {FLAG}, the file of the prompts' embeddings; preprocess/text_features.py "
                "writes it"
            )
        path = Path(setting)
        texts = read_text_features(path, clip)
        if texts.names is None:
            row_of = _by_position(path, texts, classes)
            if mean == "masked":
                texts = replace(texts, mask=first_occurrences(texts.features))
        else:
            row_of = _by_name(path, texts.names, classes)
        repeats = int((~texts.mask).sum())
        log.info(
            "%s %s: %d prompts of each of %d classes, %d of all are repeats that %s", FLAG, path,
            texts.features.shape[1], len(texts), repeats, "do not count" if mean == "masked" else "count as well",
        )  # fmt: skip
        return cls(path, texts, row_of)

    def rows(self, classes: Classes) -> Tensor:
        """Return the rows of some classes, int64 `[K]`, in their order; ValueError if the file lacks one of them."""
        if lacking := [key for key in classes.keys if key not in self.row_of]:
            raise ValueError(
                f"{FLAG} {self.path} has no prompts for {len(lacking)} of these {len(classes)} classes "
                f"({some(lacking, 3)}): pass a file that was made for all of them"
            )
        return torch.tensor([self.row_of[key] for key in classes.keys])

    def bag(self, classes: Classes) -> Bag:
        """Return the bag of some classes, in their order."""
        rows = self.rows(classes)
        return make_bag(self.texts.features[rows], self.texts.mask[rows])

    def digest(self, classes: Classes) -> str:
        """Return the shape and a hash of what makes the bag of some classes."""
        rows = self.rows(classes)
        content = {"features": self.texts.features[rows], "mask": self.texts.mask[rows]}
        return f"{list(content['features'].shape)}, sha256 {content_sha256(content, {})[:DIGITS]}"


def _by_position(path: Path, texts: TextFeatures, classes: Classes) -> dict[str, int]:
    if len(texts) != len(classes):
        raise ValueError(
            f"{FLAG} {path} has {len(texts)} rows without names, and this data set has {len(classes)} classes: pass "
            "the file of all its classes, from which --classes takes some"
        )
    last = len(classes) - 1
    log.info(
        "%s %s: row 0 is taken as %s, row %d as %s", FLAG, path, shorten(classes.keys[0]), last,
        shorten(classes.keys[last]),
    )  # fmt: skip
    return {key: row for row, key in enumerate(classes.keys)}


def _by_name(path: Path, names: tuple[str, ...], classes: Classes) -> dict[str, int]:
    """Return the row of each class that a file names, by the class's key or by what texts call it."""
    called = {normalised(name): key for name, key in zip(classes.names, classes.keys, strict=True)}
    known = called | by_name(classes.keys, "The data set")
    if unknown := [name for name in names if normalised(name) not in known]:
        raise ValueError(
            f"{FLAG} {path} names {some(unknown, 3)}, which {'is' if len(unknown) == 1 else 'are'} no class of this "
            f"data set ({some(classes.keys, 3)}): make the file of its classes with preprocess/text_features.py"
        )
    row_of: dict[str, int] = {}
    for row, name in enumerate(names):
        key = known[normalised(name)]
        if row_of.setdefault(key, row) != row:
            raise ValueError(
                f"{FLAG} {path} has two rows of the class {shorten(key)}, {shorten(names[row_of[key]])} and "
                f"{shorten(name)}: make the file again with one"
            )
    return row_of


def description(setting: str, mean: BagMean) -> str:
    """Return what a result row says about the bag of a file: `bag ucf101.safetensors (xmix, padded mean)`."""
    path, mode = Path(setting), "by position"
    if path.suffix == ".safetensors":
        try:
            with safe_open(path, framework="pt") as file:
                mode = json.loads((file.metadata() or {}).get("mode", '""')) or "unknown"
        except (OSError, SafetensorError, ValueError):
            mode = "unknown"  # reading the file itself tells what is wrong with it
    return f"bag {path.name} ({shorten(str(mode))}, {mean} mean)"
