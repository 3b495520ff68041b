"""Pairs of clips that show the same frames in opposite order: a model that ignores order cannot tell them apart.

In the test split they measure exactly that. In the training split, two twins in one batch are each other's hardest
negatives.

Shapes: V videos of a split.
"""

from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np

from dataloaders.annotations import columns_of, read_csv, read_text
from dataloaders.quoting import shorten
from dataloaders.samples import Sample


def read_twins(
    path: Path, samples: Sequence[Sample], split: str = "test", left_out: Collection[str] = ()
) -> np.ndarray:
    """Return each video's twin as its index in `samples`, int64 `[V]`, -1 for a video without one.

    `split`, "train" or "test", is for the messages. The csv has the columns `video_id` and `twin_id` and one row for
    each pair. A pair does not count if one of its ids was `left_out` of the samples. Raises FileNotFoundError for a
    missing file, and ValueError for wrong content, for ids that are not in the split, and for a video with two twins.
    """
    flag = {"train": "--train_twins_csv", "test": "--twins_csv"}[split]
    rows = {sample.video_id: row for row, sample in enumerate(samples)}
    twin_of = np.full(len(samples), -1, dtype=np.int64)
    header, pairs = read_csv(read_text(path, flag), f"{flag} {path}")
    if not {"video_id", "twin_id"} <= set(header):
        raise ValueError(
            f"{flag} {path} has no columns `video_id` and `twin_id` (its columns: {columns_of(header) or 'none'}): "
            "pass the file of the pairs."
        )
    gone = set(left_out)
    for line, pair in pairs:
        ids = pair["video_id"], pair["twin_id"]
        if not gone.isdisjoint(ids):
            continue
        for video_id in ids:
            if video_id not in rows:
                raise ValueError(
                    f"{flag} {path} names {shorten(video_id)}, not in the {split} split: pass the file of this split."
                )
        one, other = (rows[video_id] for video_id in ids)
        if one == other or not {int(twin_of[one]), int(twin_of[other])} <= {-1, one, other}:
            raise ValueError(
                f"{flag} {path}, line {line}: {shorten(ids[0])} and {shorten(ids[1])} are not a pair, because a clip "
                "has exactly one twin, which is another clip; correct the line."
            )
        twin_of[one], twin_of[other] = other, one
    return twin_of
