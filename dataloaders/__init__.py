"""Data sets as lists of samples, and all that turns a video file into a batch of uint8 frames.

A data set is one file of this folder and one line in `READERS`, whose keys are the values of --datatype. Its file has

    read_split(split, *, data_path, features_path, train_csv, val_csv) -> list[Sample]
    SPLITS         the splits that it has: "train", "test", and "val" if validation videos are published
    NEEDED_FLAGS   the flags that name its files: those of every split, and those that only "train" needs
    EXPECTED       the published number of videos by split, to report in the log when a list has another number
"""

from collections.abc import Callable
from types import ModuleType

from dataloaders import activitynet, custom, didemo, lsmdc, msrvtt, msrvtt_full, msvd, vatex
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
