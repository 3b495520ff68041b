"""Data sets as lists of samples, and everything between a video file and a batch of uint8 frames.

A data set is a function `read_split(split, *, data_path, features_path, train_csv, val_csv) -> list[Sample]` in a
file of its own and a line in `DATASETS`, whose keys are the values of --datatype, and in `NEEDED_FLAGS`.
"""

from collections.abc import Callable

from dataloaders import activitynet, custom, didemo, lsmdc, msrvtt, msrvtt_full, msvd, vatex
from dataloaders.samples import Sample

DATASETS: dict[str, Callable[..., list[Sample]]] = {
    "msrvtt": msrvtt.read_split,
    "msrvtt_full": msrvtt_full.read_split,
    "msvd": msvd.read_split,
    "vatex": vatex.read_split,
    "didemo": didemo.read_split,
    "activitynet": activitynet.read_split,
    "lsmdc": lsmdc.read_split,
    "custom": custom.read_split,
}

# The flags that say where a data set's files are: those that the test split needs, and those that training needs too.
NEEDED_FLAGS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "msrvtt": (("val_csv", "features_path"), ("train_csv", "data_path")),
    "msrvtt_full": (("data_path", "features_path"), ()),
    "msvd": (("data_path", "features_path"), ()),
    "vatex": (("data_path", "features_path"), ()),
    "didemo": (("data_path", "features_path"), ()),
    "activitynet": (("data_path", "features_path"), ()),
    "lsmdc": (("data_path", "features_path"), ()),
    "custom": (("val_csv", "features_path"), ("train_csv",)),
}
