"""The kind of video files that a split has: size, frame rate and codec, from the headers of a few.

Re-encoding videos to few small frames, as CLIP4Clip recommends, changes what a model sees: a model trained on such
files meets other pictures in the raw files. A checkpoint notes the kind it was trained on, and an evaluation on another
kind says so.

A data set from the web has videos of many sizes and rates, so no two samples of it have the same median. Two splits
differ in kind only if the middle halves of their values lie apart and the medians clearly differ.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import av
import numpy as np

from dataloaders.samples import Sample
from dataloaders.video_file import open_container, stated_rate

SAMPLE = 16  # files that we look at, evenly spread over the split
CLEARLY = 1.25  # ratio of two medians above which they clearly differ


class Quartiles(NamedTuple):
    """Quartiles of one number of each file: a quarter of the files lie below `low`, a quarter above `high`."""

    low: float
    median: float
    high: float

    def apart_from(self, other: "Quartiles") -> bool:
        """Return whether the two ranges clearly differ; False if a median is 0, because the files do not state it."""
        overlap = self.low <= other.high and other.low <= self.high
        smaller, larger = sorted((self.median, other.median))
        return not overlap and larger > CLEARLY * smaller > 0


UNKNOWN = Quartiles(0.0, 0.0, 0.0)


@dataclass(frozen=True)
class FileKind:
    """The kind of `files` video files: the most frequent codec, the short side in pixels, frames a second, and the
    seconds of their clips, which checkpoints of earlier versions do not state."""

    files: int
    codec: str
    short_side: Quartiles
    fps: Quartiles
    seconds: Quartiles = UNKNOWN

    def __str__(self) -> str:
        return f"{self.codec}, short side {self.short_side.median:g}, {self.fps.median:.3g} fps"

    @property
    def facts(self) -> dict[str, Any]:
        """Return the same as plain numbers and lists, for JSON."""
        return {**asdict(self), **{name: list(getattr(self, name)) for name in ("short_side", "fps", "seconds")}}

    @classmethod
    def from_facts(cls, facts: Mapping[str, Any]) -> "FileKind | None":
        """Return the inverse of `facts`; None for facts of another layout, or none."""
        try:
            sides, rates = (Quartiles(*map(float, facts[name])) for name in ("short_side", "fps"))
            seconds = Quartiles(*map(float, facts.get("seconds", UNKNOWN)))
            return cls(int(facts["files"]), str(facts["codec"]), sides, rates, seconds)
        except (KeyError, TypeError, ValueError):
            return None

    def differs_from(self, other: "FileKind") -> bool:
        """Return whether sizes or rates differ; another codec alone changes little."""
        return self.short_side.apart_from(other.short_side) or self.fps.apart_from(other.fps)


def file_kind(samples: Sequence[Sample]) -> FileKind | None:
    """Return the kind of files that a split has, from the headers of at most SAMPLE of them. Unreadable files are
    skipped, whatever is wrong with them; None if none can be read."""
    rows = sorted({row * len(samples) // SAMPLE for row in range(SAMPLE)}) if samples else []
    headers = [header for row in rows if (header := _header(samples[row]))]
    if not headers:
        return None
    codecs, *numbers = zip(*headers, strict=True)
    return FileKind(len(headers), Counter(codecs).most_common(1)[0][0], *map(_quartiles, numbers))


def _header(sample: Sample) -> tuple[str, int, float, float] | None:
    """Return codec, short side, frames a second and seconds of the clip (0 where the file states none)."""
    try:
        with open_container(sample.path) as container:
            stream = container.streams.best("video")
            if not isinstance(stream, av.VideoStream) or stream.codec_context is None or not stream.width:
                return None
            length = (container.duration or 0) / av.time_base
            seconds = max(0.0, (length if sample.end is None else sample.end) - (sample.start or 0.0))
            return stream.codec_context.name, min(stream.width, stream.height), stated_rate(stream), seconds
    except Exception:  # this is for information only: no file may stop a run here
        return None


def _quartiles(values: Sequence[float]) -> Quartiles:
    return Quartiles(*np.quantile(values, (0.25, 0.5, 0.75)).tolist())
