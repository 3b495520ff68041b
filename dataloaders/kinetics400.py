"""Kinetics-400 (Kay et al., 2017, arXiv 1705.06950).

Read by `dataloaders.kinetics`, which says what csv files and lists --data_path, --train_csv, --val_csv and
--features_path may name.
"""

from pathlib import Path

from dataloaders import kinetics
from dataloaders.classes import Classes
from dataloaders.kinetics import NEEDED_FLAGS, SPLITS
from dataloaders.samples import Sample

__all__ = ["EXPECTED", "NEEDED_FLAGS", "SPLITS", "TEMPLATES", "read_classes", "read_split"]

EXPECTED = {"test": {1: 19_906}}  # videos of the validation csv; that of training has shrunk in many ways
TEMPLATES = ("a video of a person {}.",)


def read_classes(
    *,
    data_path: Path | None = None,
    train_csv: Path | None = None,
    val_csv: Path | None = None,
    labels_csv: Path | None = None,
    **other_flags: Path | None,
) -> Classes:
    """Return the classes that the lists name, or those of --labels_csv."""
    return kinetics.read_classes("kinetics400", data_path, train_csv, val_csv, labels_csv)


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
        "kinetics400", 400, expected, split, features_path, data_path, train_csv, val_csv, labels_csv, fold
    )
