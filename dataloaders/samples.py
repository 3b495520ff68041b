"""What every data set's own file gives: a list of `Sample`s, one for each video."""

from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Sample:
    """One video of a data set with all its captions; `start` and `end`, in seconds, where only a part of the file
    belongs to it (None: from the file's start, to its end). `listed_in` is the file that names the video, for messages.
    """

    video_id: str
    path: Path
    captions: tuple[str, ...]
    start: float | None = None
    end: float | None = None
    listed_in: Path | None = field(default=None, compare=False)
