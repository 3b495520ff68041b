"""Kinetics-600 (Carreira et al., 2018, arXiv 1808.01340).

Read by `dataloaders.kinetics`, which says what csv files and lists --data_path, --train_csv, --val_csv and
--features_path may name.
"""

from functools import partial

from dataloaders import kinetics
from dataloaders.kinetics import NEEDED_FLAGS, SPLITS

__all__ = ["EXPECTED", "NEEDED_FLAGS", "SPLITS", "TEMPLATES", "read_classes", "read_split"]

EXPECTED = {"test": {1: 30_000}}  # 50 a class in validation (Carreira et al., table 1); many are gone
TEMPLATES = ("{}",)

read_classes = partial(kinetics.read_classes, "kinetics600")
read_split = partial(kinetics.read_split, "kinetics600", 600, EXPECTED)
