"""Joins clips into one long file, in which each of them keeps its pixels bit for bit.

Shapes: n clips.
"""

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import av
import numpy as np

LOSSLESS = {"qp": "0", "preset": "ultrafast"}


class _Kind(NamedTuple):
    """What clips must have in common."""

    rate: Fraction
    width: int
    height: int
    pixel_format: str


def join_clips(paths: Sequence[Path], path: Path, longest_pause: float = 0.0, seed: int = 0) -> np.ndarray:
    """Write clips one after another into an h264 file; return the moments of each, in seconds, float64 [n, 2].

    Before each clip the picture stands still for a random time of at most `longest_pause` seconds, in whole frames, so
    that clips begin anywhere. It shows the last frame of the clip before, and for the first clip its first frame.

    Raises ValueError if the clips differ in size, pixel format or frame rate.
    """
    draw = np.random.default_rng(seed)
    kind, _ = _read(paths[0])
    moments: list[tuple[float, float]] = []
    still: list[av.VideoFrame] = []
    shown = 0
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=kind.rate, options=LOSSLESS)
        assert isinstance(stream, av.VideoStream)
        _, stream.width, stream.height, stream.pix_fmt = kind
        for clip in paths:
            own, frames = _read(clip)
            if own != kind:
                raise ValueError(
                    f"{clip}: its frame rate or its size is not that of {paths[0]}: join clips of one kind"
                )
            pause = (still or frames[:1]) * int(draw.integers(int(longest_pause * kind.rate) + 1))
            start = shown + len(pause)
            moments.append((float(start / kind.rate), float((start + len(frames)) / kind.rate)))
            for frame in pause + frames:
                frame.pts, frame.time_base = shown, 1 / kind.rate
                frame.pict_type = av.video.frame.PictureType.NONE  # that of the clip would ask for a key frame
                container.mux(stream.encode(frame))
                shown += 1
            still = frames[-1:]
        container.mux(stream.encode(None))
    return np.array(moments, dtype=np.float64)


def _read(path: Path) -> tuple[_Kind, list[av.VideoFrame]]:
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        frames = list(container.decode(stream))
        rate = stream.average_rate
    if rate is None or not frames:
        raise ValueError(f"{path}: states no frame rate or holds no frame, so it cannot be joined")
    return _Kind(rate, frames[0].width, frames[0].height, frames[0].format.name), frames
