"""Data sets as lists of samples, and all that turns a video file into a batch of uint8 frames.

A data set is one file of this folder and one line in `READERS`, whose keys are the values of --datatype. Its file has

    read_split(split, *, data_path, features_path, train_csv, val_csv) -> list[Sample]
    SPLITS         the splits that it has: "train", "test", and "val" if validation videos are published
    NEEDED_FLAGS   the flags that name its files: those of every split, and those that only "train" needs
    EXPECTED       the published number of videos by split, to report in the log when a list has another number

A data set for action recognition is a line in `ACTION_READERS`. Its samples have a `label`, and its file also has

    read_split(split, *, ..., labels_csv, fold) -> list[Sample]
    read_classes(*, data_path, features_path, train_csv, val_csv, labels_csv) -> Classes
    EXPECTED       by split and fold
    TEMPLATES      texts of a class, with {} for its name
"""

from collections.abc import Callable
from types import ModuleType

from dataloaders import (
    activitynet,
    custom,
    custom_actions,
    didemo,
    hmdb51,
    kinetics400,
    kinetics600,
    lsmdc,
    msrvtt,
    msrvtt_full,
    msvd,
    ssv2,
    ucf101,
    vatex,
)
from dataloaders.samples import Sample

READERS: dict[str, ModuleType] = {
    "msrvtt": msrvtt,
    "msrvtt_full": msrvtt_full,
    "msvd": msvd,
    "vatex": vatex,
    "didemo": didemo,
    "activitynet": activitynet,
    "lsmdc": lsmdc,
    "custom": custom,
}

DATASETS: dict[str, Callable[..., list[Sample]]] = {name: reader.read_split for name, reader in READERS.items()}
SPLITS: dict[str, tuple[str, ...]] = {name: reader.SPLITS for name, reader in READERS.items()}
NEEDED_FLAGS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    name: reader.NEEDED_FLAGS for name, reader in READERS.items()
}

ACTION_READERS: dict[str, ModuleType] = {
    "hmdb51": hmdb51,
    "ucf101": ucf101,
    "ssv2": ssv2,
    "kinetics400": kinetics400,
    "kinetics600": kinetics600,
    "custom": custom_actions,
}

ACTION_DATASETS: dict[str, Callable[..., list[Sample]]] = {
    name: reader.read_split for name, reader in ACTION_READERS.items()
}
ACTION_SPLITS: dict[str, tuple[str, ...]] = {name: reader.SPLITS for name, reader in ACTION_READERS.items()}
ACTION_NEEDED_FLAGS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    name: reader.NEEDED_FLAGS for name, reader in ACTION_READERS.items()
}
