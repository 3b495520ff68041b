"""Kinetics-400 (Kay et al., 2017, arXiv 1705.06950).

Read by `dataloaders.kinetics`, which says what csv files and lists --data_path, --train_csv, --val_csv and
--features_path may name.
"""

from functools import partial

from dataloaders import kinetics
from dataloaders.kinetics import NEEDED_FLAGS, SPLITS

__all__ = ["EXPECTED", "NEEDED_FLAGS", "SPLITS", "TEMPLATES", "read_classes", "read_split"]

EXPECTED = {"test": {1: 19_906}}  # videos of the validation csv; that of training has shrunk in many ways
TEMPLATES = ("a video of a person {}.",)

read_classes = partial(kinetics.read_classes, "kinetics400")
read_split = partial(kinetics.read_split, "kinetics400", 400, EXPECTED)
