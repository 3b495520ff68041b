"""Videos that are in the training split and in the test split, so that a test would measure what was trained on."""

import os
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Sequence
from itertools import accumulate

from dataloaders.samples import Sample

Window = tuple[float, float]  # of time, in seconds


def shared_videos(training: Sequence[Sample], test: Sequence[Sample]) -> list[Sample]:
    """The test videos of which some part is in a training video: those of one file whose windows of time overlap.

    Files are told apart by where their paths lead, whether or not they are there. Two parts of a file that only meet
    share nothing.
    """
    windows: defaultdict[str, list[Window]] = defaultdict(list)
    for sample in training:
        windows[_file(sample)].append(_window(sample))
    by_start = {file: sorted(found) for file, found in windows.items()}
    # The latest end of a window and of those before it: the first that begin before a test video ends overlap with it
    # if one of them ends after it begins.
    latest = {file: list(accumulate((end for _, end in found), max)) for file, found in by_start.items()}
    shared = []
    for sample in test:
        file, (start, end) = _file(sample), _window(sample)
        begun = bisect_left(by_start.get(file, []), (end,))
        if begun and latest[file][begun - 1] > start:
            shared.append(sample)
    return shared


def _file(sample: Sample) -> str:
    return os.path.realpath(sample.path)


def _window(sample: Sample) -> Window:
    return sample.start or 0.0, float("inf") if sample.end is None else sample.end
