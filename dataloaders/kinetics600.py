"""Kinetics-600 (Carreira et al., 2018, arXiv 1808.01340).

Read by `dataloaders.kinetics`, which says what csv files and lists --data_path, --train_csv, --val_csv and
--features_path may name.
"""

from pathlib import Path

from dataloaders import kinetics
from dataloaders.classes import Classes
from dataloaders.kinetics import NEEDED_FLAGS, SPLITS
from dataloaders.samples import Sample

__all__ = ["EXPECTED", "NEEDED_FLAGS", "SPLITS", "TEMPLATES", "read_classes", "read_split"]

EXPECTED = {"test": {1: 30_000}}  # 50 a class in validation (Carreira et al., table 1); many are gone
TEMPLATES = ("{}",)


def read_classes(
    *,
    data_path: Path | None = None,
    train_csv: Path | None = None,
    val_csv: Path | None = None,
    labels_csv: Path | None = None,
    **other_flags: Path | None,
) -> Classes:
    """Return the classes that the lists name, or those of --labels_csv."""
    return kinetics.read_classes("kinetics600", data_path, train_csv, val_csv, labels_csv)


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
    """Return the samples of "train" or "test", the official validation split, in the order of the list."""
    expected = EXPECTED.get(split, {})
    return kinetics.read_split(
        "kinetics600", 600, expected, split, features_path, data_path, train_csv, val_csv, labels_csv, fold
    )
