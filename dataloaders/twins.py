"""Pairs of clips that show the same frames in opposite order: a model that ignores order cannot tell them apart.

In the test split they measure that; in the training split, met in the same batch, they are each other's hardest
negatives.

Shapes: V videos of a split.
"""

import csv
from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np

from dataloaders.samples import Sample


def read_twins(
    path: Path, samples: Sequence[Sample], split: str = "test", left_out: Collection[str] = ()
) -> np.ndarray:
    """Each video's twin as its number among `samples`, int64 `[V]`, -1 for a video without one.

    `split`, "train" or "test", is for the messages. The csv has the columns `video_id` and `twin_id`, a row for each
    pair; a pair with one of the ids that were `left_out` of the samples does not count. Raises FileNotFoundError for a
    missing file and ValueError for another content or for ids that are not in the split.
    """
    flag = {"train": "--train_twins_csv", "test": "--twins_csv"}[split]
    if not path.is_file():
        raise FileNotFoundError(f"{flag} {path} is not a file: correct the path.")
    rows = {sample.video_id: row for row, sample in enumerate(samples)}
    twin_of = np.full(len(samples), -1, dtype=np.int64)
    with open(path, newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file)
        if not {"video_id", "twin_id"} <= set(reader.fieldnames or ()):
            raise ValueError(f"{flag} {path} has no columns `video_id` and `twin_id`: pass the file of the pairs.")
        for pair in reader:
            if pair["video_id"] in left_out or pair["twin_id"] in left_out:
                continue
            for video_id in (pair["video_id"], pair["twin_id"]):
                if video_id not in rows:
                    raise ValueError(f"{flag} {path} names {video_id}, not in the {split} split: pass its own file.")
            one, other = rows[pair["video_id"]], rows[pair["twin_id"]]
            twin_of[one], twin_of[other] = other, one
    return twin_of
