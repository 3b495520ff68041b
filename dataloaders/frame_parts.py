"""A clip whose frames are JPEG files inside a larger file, such as members of a tar."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dataloaders.file_part import FilePart
from dataloaders.video_file import VideoError


@dataclass(frozen=True)
class FrameParts:
    """A clip whose frames are JPEG files inside one larger file, `rate` frames a second (0.0 for unknown)."""

    file: Path
    name: str
    frames: Sequence[FilePart]
    rate: float

    def __str__(self) -> str:
        return f"{self.file}/{self.name}"


ClipPath = Path | FilePart | FrameParts  # what a `FrameReader` reads


def read_parts(
    clip: FrameParts,
    choose: Callable[[int, float], "Sequence[int] | np.ndarray"],
    convert: Callable[[np.ndarray], np.ndarray] | None,
) -> tuple[np.ndarray, int, float]:
    """Return what `decode.read_frames` returns, for a clip of JPEG frames; only those chosen are decoded.

    Raises VideoError for a frame that is not a JPEG file.
    """
    import cv2

    pictures: dict[int, np.ndarray] = {}
    numbers = [int(number) for number in choose(len(clip.frames), clip.rate)]
    for number in dict.fromkeys(numbers):
        part = clip.frames[number]
        picture = cv2.imdecode(np.frombuffer(part.read(), dtype=np.uint8), cv2.IMREAD_COLOR) if part.size else None
        if picture is None:
            raise VideoError(f"{part} is not a picture that can be decoded: make its shard again.")
        rgb = cv2.cvtColor(picture, cv2.COLOR_BGR2RGB)
        pictures[number] = rgb if convert is None else convert(rgb)
    return np.stack([pictures[number] for number in numbers]), len(clip.frames), clip.rate
