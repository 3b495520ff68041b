"""Data sets as lists of samples, and everything between a video file and a batch of uint8 frames.

A data set is a function `read_split(split, *, data_path, features_path, train_csv, val_csv) -> list[Sample]` in a
file of its own and a line in `DATASETS`, whose keys are the values of --datatype.
"""

from collections.abc import Callable

from dataloaders import msrvtt
from dataloaders.samples import Sample

DATASETS: dict[str, Callable[..., list[Sample]]] = {"msrvtt": msrvtt.read_split}
