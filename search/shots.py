"""Finds the cuts of a video while it is decoded, and moves the borders of windows onto them (`--cut shots`).

A window that ends shortly after a cut mixes two shots, of which one is hardly seen. A border that lies less than half a
stride, and less than a quarter of a window, from a cut moves onto it; the nearest cut counts. The first start and the
last end stay those of the file. So there are as many windows as without cuts, in the same order and without gaps, from
half to one and a half times as long; a cut in the middle of a window stays there, and the windows before and after it
then begin or end at that cut.

Cuts are found by frame differences. A frame is reduced to 32x32 pixels, and its difference d is the mean over pixels
and colours, 0 to 255, of what has changed since the frame before. A frame begins a shot if its d is at least LEAST, and
at least TIMES the greatest d of the two frames before and the two after. So neither motion nor a moving camera is a
cut, because their differences go on, and neither is a flash, which comes and goes. Dissolves and fades are not found,
nor is a shot of one or two frames.
"""

from collections.abc import Sequence
from contextlib import suppress

import av
import numpy as np

SIDE = 32  # pixels of a reduced frame
LEAST = 10.0  # of 255
TIMES = 2.0
AROUND = 2  # frames before and after
QUARTER = 0.25  # of a window

Window = tuple[float | None, float | None]  # start and end in seconds


class CutFinder:
    """Watches the frames of a video in their order. `cuts` are the seconds at which shots begin, but for the first;
    those before `decided` are complete."""

    def __init__(self) -> None:
        self.cuts: list[float] = []
        self.decided = 0.0
        self._before: np.ndarray | None = None
        self._seen: list[tuple[float, float]] = []  # seconds and d of the last frames

    def __call__(self, seconds: float, picture: av.VideoFrame) -> None:
        """Take the frame that comes at some seconds."""
        with suppress(av.FFmpegError):  # a kind of pixels that cannot be converted; reading says so
            small = picture.to_ndarray(format="rgb24", width=SIDE, height=SIDE, interpolation="AREA", threads=1)
            frame = small.astype(np.int16)
            change = 0.0 if self._before is None else float(np.abs(frame - self._before).mean())
            self._before = frame
            self._seen.append((seconds, change))
            if len(self._seen) > AROUND:
                self._decide(len(self._seen) - 1 - AROUND)
                del self._seen[: -2 * AROUND]

    def finish(self) -> None:
        """Decide on the last frames too."""
        for place in range(max(0, len(self._seen) - AROUND), len(self._seen)):
            self._decide(place)
        self.decided = float("inf")

    def _decide(self, place: int) -> None:
        seconds, change = self._seen[place]
        around = [
            d for _, d in (*self._seen[max(0, place - AROUND) : place], *self._seen[place + 1 : place + 1 + AROUND])
        ]
        if change >= LEAST and change >= TIMES * max(around, default=0.0):
            self.cuts.append(seconds)
        self.decided = seconds


def reach(window: float, stride: float) -> float:
    """Return the seconds within which a border moves onto a cut."""
    return min(stride / 2, QUARTER * window)


def move_borders(windows: Sequence[Window], cuts: Sequence[float], within: float) -> list[Window]:
    """Return windows, sorted, with each border that lies less than `within` seconds from a cut on the nearest one; the
    first start and the last end stay."""

    def moved(border: float | None) -> float | None:
        if border is None or not cuts:
            return border
        nearest = min(cuts, key=lambda cut: abs(cut - border))
        return nearest if abs(nearest - border) < within else border

    last = len(windows) - 1
    return [
        (moved(start) if place else start, moved(end) if place < last else end)
        for place, (start, end) in enumerate(windows)
    ]
