"""What a video file tells before anything is decoded: how many frames it has, when each is shown, how fast they come,
and whether its end is missing.

A header that fits together (an mp4's count, length and index) is believed, at no cost. Every other file has its packets
listed, which reads the file but decodes nothing, for headers err in many ways: a length times a rate is no count where
frames were dropped or the rate is a guess, and an AVI counts empty slots. Packets are no frames either where a frame
comes as two fields, or where a packet holds one that is never shown; times tell.

Times are in seconds from the file's start, the earliest of its picture and its sound, as `ffmpeg -ss` and players
count. Sound that starts less than a frame before the picture moves nothing.

Shapes: n frames.
"""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import av
import numpy as np
from av.container import InputContainer

from dataloaders.frame_sampling import in_window, on_screen
from dataloaders.stated_size import is_cut, stated_size
from dataloaders.video_file import open_video

MAX_SHORTFALL = 0.25  # the part of the promised frames or time that may be missing before a file counts as broken
WRONG_RATE = 0.05  # a header's rate that is further than this part of it from the frames' own mean rate is not used
HIDDEN = 0.1  # of the usual time between two packets: one that follows sooner replaces a frame that is never shown


@dataclass(frozen=True)
class VideoFacts:
    """`n_frames` to choose from, 0 where there is none; `rate` frames a second, 0.0 where nothing tells.

    `times`, float64 [n], is when each frame comes on screen, `ends` when the last one leaves it; the stream's own clock
    is `zero` further. Where the rate is constant, `times` is None and frame f comes at `offset` + f / `rate`. `guess`,
    float64 [n], are times on the stream's clock of what may not be all frames: some packets were taken for none.
    `promised` is the number of frames that a file should have whose end is missing, else `n_frames`.
    """

    n_frames: int
    rate: float
    offset: float = 0.0
    times: np.ndarray | None = None
    ends: float = 0.0
    zero: float = 0.0
    guess: np.ndarray | None = None
    promised: int = 0

    @property
    def length(self) -> float:
        """Seconds from the file's start to the end of its last frame."""
        return self.offset + self.n_frames / self.rate if self.times is None else self.ends

    def window(self, start: float | None, end: float | None) -> tuple[int, int]:
        """The frames on screen at some moment of [start, end) seconds: the first, and the one after the last."""
        if start is None and end is None:
            return 0, self.n_frames
        if self.times is not None:
            return on_screen(self.times, self.ends, start, end)
        start, end = (None if moment is None else moment - self.offset for moment in (start, end))
        return in_window(self.n_frames, self.rate, start, end)

    def may_be(self, number: int, time: float | None) -> bool:
        """Whether a frame decoded as this number, at this time on the stream's clock, is the one it was taken for."""
        return self.guess is None or time is None or abs(time - self.guess[number]) < 0.5 / self.rate

    def once_decoded(self, times: Sequence[float | None]) -> "VideoFacts":
        """What is known after every frame has been decoded, in this order, at these times on the stream's clock."""
        found = replace(self, n_frames=len(times), guess=None)
        if self.times is None or None in times:
            return found
        return replace(found, times=np.sort(np.array(times, dtype=np.float64)) - self.zero)


@dataclass(frozen=True)
class _Packets:
    """The packets of a stream that hold a frame to be shown. `times`, float64 [n], in seconds on the stream's clock and
    sorted, None where the file gives none; `durations` what the packets state for themselves, 0 for unknown."""

    count: int
    times: np.ndarray | None
    durations: np.ndarray


def survey(
    path: Path, container: InputContainer, stream: av.VideoStream, rate: float, timed: bool = False
) -> VideoFacts:
    """Look at a freshly opened file, from which nothing is read, and whose header states `rate` frames a second, 0.0
    for none. `timed` says that moments in seconds will be asked for."""
    size = path.stat().st_size
    tick = float(stream.time_base or 0)
    seconds = stream.duration * tick if stream.duration else (container.duration or 0) / av.time_base
    # A frame takes at least a byte of the file: more than that is no count to believe, nor the length that an AVI makes
    # of it, which was written as a stream that was not known to end.
    seconds = 0.0 if stream.frames > size else seconds
    counted, lasting = (round(n) if 0 < n <= size else 0 for n in (stream.frames, seconds * rate))
    index = stream.index_entries
    if counted and len(index) == counted and lasting <= counted + 1:
        # An edit list hides frames, which are decoded and not shown, and makes the video shorter than they are.
        hidden = 0 if lasting == counted else sum(entry.is_discard for entry in index)
        if hidden < counted and not (timed and (hidden or not _has_constant_index(stream, rate))):
            n_frames = counted - hidden
            return VideoFacts(n_frames, rate, picture_offset(container, stream, rate), promised=n_frames)

    packets = _list_packets(path)
    if packets.times is None:  # a bare stream, of which nothing is known but its pictures
        return VideoFacts(packets.count, rate, promised=packets.count)
    times = _shown(packets, rate)
    guess = times if len(times) < packets.count else None
    rate = _right_rate(times, tick, seconds if stream.duration else 0.0, rate)
    ends = times[-1] + (packets.durations[-1] or (1 / rate if rate else 0))
    offset = picture_offset(container, stream, rate, times[0])

    promised = len(times)
    if seconds == 0 and (whole := stated_size(path, stream)) > size:  # FFmpeg leaves out the length of a cut ASF
        promised = round(promised * whole / size)
    seconds = max(seconds, counted / float(stream.average_rate or np.inf))  # FFmpeg shortens that of a cut AVI
    if 0 < seconds * rate <= size:
        if ends - times[0] < seconds * (1 - MAX_SHORTFALL) and _lacks_its_end(path, stream, seconds):
            promised = max(promised, round(seconds * rate))
        elif stream.duration:
            ends = max(ends, times[0] + seconds)  # the last one stays
    if _is_constant(times, rate, tick):
        return VideoFacts(len(times), rate, offset, guess=guess, promised=promised)
    zero = times[0] - offset
    return VideoFacts(len(times), rate, offset, times - zero, ends - zero, zero, guess, promised)


def _right_rate(times: np.ndarray, tick: float, seconds: float, rate: float) -> float:
    """The header's rate, unless it fits neither the frames' times nor their number in the `seconds` that the picture is
    said to last, 0 for unknown: then their mean rate."""
    steps, span = len(times) - 1, float(times[-1] - times[0])
    if rate == 0 or span <= 0:
        return rate
    for frames, lasting in ((steps, span), (steps + 1, seconds)):
        if abs(lasting * rate - frames) <= max(1.0, WRONG_RATE * frames):
            return rate
    mean = steps / span
    # What a clock's ticks make of 30 may be 29.9997, of which whole seconds would be cut as of 29.
    usual = (round(mean), round(mean * 1.001) / 1.001)
    return float(next((near for near in usual if near and _is_constant(times, near, tick)), mean))


def picture_offset(container: InputContainer, stream: av.VideoStream, rate: float, first: float | None = None) -> float:
    """Seconds from the file's start to the first frame, shown at `first` on the stream's clock."""
    if first is None:
        first = float((stream.start_time or 0) * (stream.time_base or 0))
    late = float(first) - (container.start_time or 0) / av.time_base
    return late if rate and late * rate > 1 - 1e-6 else 0.0


def _has_constant_index(stream: av.VideoStream, rate: float) -> bool:
    """Whether an index, which is in decoding order, has its frames at `rate`."""
    tick = float(stream.time_base or 0)
    return _is_constant(np.fromiter((entry.timestamp for entry in stream.index_entries), np.int64) * tick, rate, tick)


def _is_constant(times: np.ndarray, rate: float, tick: float) -> bool:
    """Whether times, in seconds, come at `rate`, but for the rounding to a clock's ticks, which is below one of them
    (Matroska and FLV count in milliseconds) and, where a frame lasts a few ticks only, well below a frame."""
    if rate == 0:
        return False
    return bool(np.abs(times - times[0] - np.arange(len(times)) / rate).max() < min(1.01 * tick, 0.25 / rate))


def _list_packets(path: Path) -> _Packets:
    listed = []
    with open_video(path) as (container, stream):
        tick = float(stream.time_base or 0)
        decoding_order_only = container.format.name == "avi"  # FFmpeg guesses its other times
        with suppress(av.FFmpegError):
            for packet in container.demux(stream):
                if packet.size and not packet.is_discard:
                    shown = packet.dts if decoding_order_only or packet.pts is None else packet.pts
                    listed.append((np.nan if shown is None else shown, packet.dts or 0, packet.duration or 0))
    if not listed:
        return _Packets(0, None, np.zeros(0))
    shown, decoded, durations = np.array(listed, dtype=np.float64).T
    if np.isnan(shown).any():
        return _Packets(len(listed), None, durations)
    # Where files were joined by their bytes the clock jumps back: it goes on from where it was.
    steps = np.diff(decoded)
    if (steps < 0).any():
        usual = np.median(steps)
        shown[1:] += np.cumsum(np.where(steps < 0, usual - steps, 0))
    order = np.argsort(shown, kind="stable")
    return _Packets(len(listed), shown[order] * tick, durations[order] * tick)


def _shown(packets: _Packets, rate: float) -> np.ndarray:
    """The times of the packets that are frames: all of them, unless there are more than come at `rate` and leaving out
    those that look like no frame of their own gives just as many as do."""
    times = packets.times
    assert times is not None
    expected = (times[-1] - times[0]) * rate + 1
    if not rate or len(times) <= expected + 1:
        return times
    steps = np.diff(times)
    candidates = [times[np.append(steps > HIDDEN * np.median(steps), True)]]
    if abs(np.median(packets.durations) * rate - 0.5) < 0.05:
        candidates.append(times[::2])  # an interlaced frame as two fields, each half a frame long
    return next((some for some in candidates if abs(len(some) - expected) <= 1), times)


def _lacks_its_end(path: Path, stream: av.VideoStream, seconds: float) -> bool:
    """Whether a file whose picture ends long before `seconds` is cut off, rather than that its sound lasts longer."""
    if stated_size(path, stream):
        return is_cut(path, stream)
    reached = start = None
    with open_video(path) as (container, _), suppress(av.FFmpegError):
        for packet in container.demux():
            if packet.size and packet.dts is not None:
                moment = float(packet.dts * packet.time_base)
                start = moment if start is None else min(start, moment)
                reached = moment if reached is None else max(reached, moment)
    return start is None or reached is None or reached - start < seconds * (1 - MAX_SHORTFALL)
