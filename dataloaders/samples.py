"""`Sample`, one video with its captions (every data set's reader returns a list of them), and the videos that two such
lists share."""

import os
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path

from dataloaders.file_part import FilePart
from dataloaders.frame_parts import FrameParts

Window = tuple[float, float]  # of time, in seconds


@dataclass(frozen=True)
class Sample:
    """One video of a data set, with all its captions or with the key of its class (`dataloaders.classes`).

    `start` and `end`, in seconds, are set if only a part of the file belongs to the video; None means the file's start
    or its end. `listed_in` is the file that names the video, for messages. Videos of one `group` are takes of one scene
    or cuts of one recording, if the data set says so: they belong on one side of a split.
    """

    video_id: str
    path: Path
    captions: tuple[str, ...]
    start: float | None = None
    end: float | None = None
    listed_in: Path | None = field(default=None, compare=False)
    label: str = ""
    group: str = ""


@dataclass(frozen=True)
class PackedSample:
    """One video that is not a file of its own, with its captions; the attributes are those of `Sample`."""

    video_id: str
    path: FilePart | FrameParts
    captions: tuple[str, ...]
    start: float | None = None
    end: float | None = None


def shared_videos(training: Sequence[Sample], test: Sequence[Sample]) -> list[Sample]:
    """Return the test videos that share a part with a training video, so that a test would measure what was trained on.

    Two videos share a part if they are windows of one file that overlap; windows that only touch share nothing. Files
    are told apart by where their paths lead, whether or not they exist.
    """
    windows: defaultdict[str, list[Window]] = defaultdict(list)
    for sample in training:
        windows[_file(sample)].append(_window(sample))
    by_start = {file: sorted(found) for file, found in windows.items()}
    # For each window the latest end of it and of those before it. The windows that begin before a test video ends
    # overlap with it if one of them ends after it begins.
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
