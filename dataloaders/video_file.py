"""A video file before it is decoded: whether it may be opened, which of its streams is the picture, how many frames it
has, when each is shown, and whether its end is missing.

Only files that hold a video themselves are opened. FFmpeg would also follow playlists (ffconcat, HLS, DASH), run
scripts (AviSynth) and fetch addresses, whatever a file is called. A text named .mp4 could then be another file's
frames, or a request to a server.

We trust a header whose parts agree (an mp4's count, length and index); that costs nothing. For every other file we list
the packets, because headers err in many ways; this reads the file but decodes nothing. Length times rate is not the
number of frames if frames were dropped or the rate is a guess. An AVI counts empty slots. Packets are not always frames
either: a frame may come as two fields, and a packet may hold a frame that is never shown. Their times show which.

Times are in seconds from the file's start, which is the earlier start of its picture and its sound, as `ffmpeg -ss` and
players count. Sound that starts less than a frame before the picture does not count.

Shapes: n frames.
"""

import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any

import av
import numpy as np
from av.container import InputContainer
from av.stream import Disposition

from dataloaders.file_part import FilePart, VideoPath
from dataloaders.frame_sampling import in_window, on_screen
from dataloaders.stated_size import is_cut, stated_size

FIX = "download it again, or re-encode it (ffmpeg -i IN -c:v libx264 OUT.mp4)"

# FFmpeg's names of the formats that hold pictures or sound themselves. Sound is included because it may come with a
# picture, and because a sound file must be told apart from a damaged one.
FORMATS = (
    "mov", "matroska", "avi", "mpegts", "mpeg", "asf", "flv", "live_flv", "ogg", "rm", "mxf", "nut", "gxf", "wtv", "dv",
    "ivf", "gif", "amv", "nsv", "nuv", "swf", "pva", "ty", "dhav", "bink", "smk", "roq", "flic", "yuv4mpegpipe",
    "h264", "hevc", "vvc", "evc", "av1", "obu", "m4v", "mpegvideo", "h263", "h261", "vc1", "mjpeg",
    "dirac", "cavsvideo", "mp3", "flac", "wav", "aac", "aiff", "ac3", "ape", "wv", "tta",
)  # fmt: skip
FORMAT_WHITELIST = ",".join(FORMATS)
PROTOCOL_WHITELIST = "file"

# A title that is not UTF-8 must not make a video unreadable. PyAV 19 reads any title without this option.
LENIENT: dict[str, Any] = {"metadata_errors": "replace"} if int(av.__version__.split(".")[0]) < 19 else {}

MAX_SHORTFALL = 0.25  # share of the promised frames or time that may be missing before we call a file broken
WRONG_RATE = 0.05  # relative error beyond which we replace a header's rate by the mean rate of the frames
HIDDEN = 0.1  # of the usual time between two packets: a packet sooner than that replaces a frame that is never shown


class VideoError(ValueError):
    """A file that cannot be read as a video; the message is one sentence with path, reason and fix."""


class DamagedVideoError(VideoError):
    """A video of which FFmpeg can only guess some frames."""


# ---- opening --------------------------------------------------------------------------------------------------------


def file_status(path: VideoPath) -> os.stat_result:
    """Return what the file system says about a video; VideoError if the path cannot be a video file."""
    try:
        status = path.stat()
    except FileNotFoundError as error:
        raise VideoError(f"{path} does not exist: check --features_path, or download the video.") from error
    if stat.S_ISDIR(status.st_mode):
        raise VideoError(f"{path} is a directory, not a video file: give the path of the file in it.")
    if status.st_size == 0:
        raise VideoError(f"{path} is empty (0 bytes): download it again.")
    return status


def open_container(path: VideoPath) -> InputContainer:
    """Open a file with PyAV, whatever its name and titles; passes on what PyAV raises."""
    protocols = f"subfile,{PROTOCOL_WHITELIST}" if isinstance(path, FilePart) else PROTOCOL_WHITELIST
    options = {"protocol_whitelist": protocols, "format_whitelist": FORMAT_WHITELIST}
    # An absolute path, because FFmpeg reads the "a:" of a relative "a:b.mp4" as a protocol.
    address = path.address() if isinstance(path, FilePart) else str(path.absolute())
    return av.open(address, container_options=options, **LENIENT)


def picture_stream(container: InputContainer, path: VideoPath) -> av.VideoStream:
    """Return the stream that FFmpeg would show; VideoError if there is none, or only a cover picture."""
    stream = container.streams.best("video")
    if not isinstance(stream, av.VideoStream) or stream.codec_context is None:
        raise VideoError(f"{path} is not a video (it holds no picture in a known codec): {FIX}.")
    # FFmpeg prefers any other picture: if a cover is the best stream, there is no video beside it.
    if stream.disposition & (Disposition.attached_pic | Disposition.timed_thumbnails):
        raise VideoError(f"{path} holds sound and a cover picture, no video: download the video itself.")
    if stream.disposition & Disposition.still_image:
        raise VideoError(f"{path} is not a video file (it is a still picture): download the video itself.")
    return stream


@contextmanager
def open_video(path: VideoPath) -> Iterator[tuple[InputContainer, av.VideoStream]]:
    """Open a file and its picture stream, which decodes on one thread; VideoError if it is not a video."""
    try:
        container = open_container(path)
    except av.ArgumentError as error:  # FFmpeg's answer to a format outside the whitelist
        raise VideoError(
            f"{path} is not a video file (it is a playlist, a script or a still picture, or its header is damaged): "
            "download the video itself."
        ) from error
    except av.FFmpegError as error:
        raise VideoError(f"{path} is not a video that can be opened ({error.strerror}): {FIX}.") from error
    with container:
        stream = picture_stream(container, path)
        if "enc_key_id" in stream.metadata:  # Matroska's; an mp4 says so packet by packet
            raise VideoError(f"{path} is encrypted: download a copy without copy protection.")
        stream.codec_context.thread_count = 1  # the loader's workers already use the cores
        yield container, stream


# ---- frames and times -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class VideoFacts:
    """The frames that a file seems to have: `n_frames`, at `rate` frames a second (0.0 if unknown).

    `times`, float64 [n], says when each frame comes on screen, `ends` when the last one leaves it. The stream's own
    clock is `zero` ahead of them. If the rate is constant, `times` is None and frame f comes at `offset` + f / `rate`.
    `guess`, float64 [n], holds times on the stream's clock if we ruled out some packets as no frames and may be wrong.
    `promised` is the number of frames that a file should have if its end is missing, else `n_frames`. `is_steady` says
    that the packets were listed and have the times of a constant rate.
    """

    n_frames: int
    rate: float
    offset: float = 0.0
    times: np.ndarray | None = None
    ends: float = 0.0
    zero: float = 0.0
    guess: np.ndarray | None = None
    promised: int = 0
    is_steady: bool = False

    @property
    def length(self) -> float:
        """Return the seconds from the file's start to the end of its last frame."""
        return self.offset + self.n_frames / self.rate if self.times is None else self.ends

    def window(self, start: float | None, end: float | None) -> tuple[int, int]:
        """Return the first frame on screen in [start, end) seconds, and the one after the last."""
        if start is None and end is None:
            return 0, self.n_frames
        if self.times is not None:
            return on_screen(self.times, self.ends, start, end)
        start, end = (None if moment is None else moment - self.offset for moment in (start, end))
        return in_window(self.n_frames, self.rate, start, end)

    def seconds(self, number: int) -> float:
        """Return when a frame comes on screen; one that is not expected comes at the end of those that are."""
        if self.times is None:
            return self.offset + number / self.rate if self.rate else 0.0
        return float(self.times[number]) if number < len(self.times) else self.ends

    def may_be(self, number: int, time: float | None) -> bool:
        """Return whether the frame decoded as `number`, at `time` on the stream's clock, is the one we expected."""
        return self.guess is None or time is None or abs(time - self.guess[number]) < 0.5 / self.rate

    def once_decoded(self, times: Sequence[float | None]) -> "VideoFacts":
        """Return the facts after every frame was decoded, in this order, at these times on the stream's clock."""
        found = replace(self, n_frames=len(times), guess=None)
        if self.times is None or None in times:
            return found
        return replace(found, times=np.sort(np.array(times, dtype=np.float64)) - self.zero)


def stated_rate(stream: av.VideoStream) -> float:
    """Return the frames a second that the header states or FFmpeg guesses, 0.0 for neither."""
    return float(stream.average_rate or stream.guessed_rate or 0)


def length_of(path: VideoPath) -> float:
    """Return the seconds from a file's start to the end of its last frame; 0.0 if it states no frame rate, or holds no
    frame. Decodes nothing; raises VideoError if it is not a video."""
    file_status(path)
    with open_video(path) as (container, stream):
        facts = survey(path, container, stream, stated_rate(stream), timed=True)
        return facts.length if facts.rate and facts.n_frames else 0.0


@dataclass(frozen=True)
class _Packets:
    """The packets of a stream that hold a frame to be shown. `times`, float64 [n], are sorted seconds on the stream's
    clock, None if the file gives none; `durations` are those that the packets state, 0 for unknown."""

    count: int
    times: np.ndarray | None
    durations: np.ndarray


def survey(
    path: VideoPath, container: InputContainer, stream: av.VideoStream, rate: float, timed: bool = False
) -> VideoFacts:
    """Find out which frames a freshly opened file has.

    `rate` is the header's, in frames a second, 0.0 for none. `timed` says that moments in seconds will be asked for.
    """
    size = path.stat().st_size
    tick = float(stream.time_base or 0)
    seconds = stream.duration * tick if stream.duration else (container.duration or 0) / av.time_base
    # A frame takes at least a byte. We believe neither a larger count nor the length that an AVI derives from it: the
    # file was written as a stream without a known end.
    seconds = 0.0 if stream.frames > size else seconds
    counted, lasting = (round(n) if 0 < n <= size else 0 for n in (stream.frames, seconds * rate))
    index = stream.index_entries
    if counted and len(index) == counted and lasting <= counted + 1:
        # An edit list hides frames: they are decoded but not shown, and the video is shorter than they are.
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
            ends = max(ends, times[0] + seconds)  # the last frame stays on screen
    if _is_constant(times, rate, tick):
        return VideoFacts(len(times), rate, offset, guess=guess, promised=promised, is_steady=True)
    zero = times[0] - offset
    return VideoFacts(len(times), rate, offset, times - zero, ends - zero, zero, guess, promised)


def _right_rate(times: np.ndarray, tick: float, seconds: float, rate: float) -> float:
    """Return the header's rate if it fits the frames' times, or their number in the `seconds` that the picture is said
    to last (0 for unknown); otherwise the mean rate of the frames."""
    steps, span = len(times) - 1, float(times[-1] - times[0])
    if rate == 0 or span <= 0:
        return rate
    for frames, lasting in ((steps, span), (steps + 1, seconds)):
        if abs(lasting * rate - frames) <= max(1.0, WRONG_RATE * frames):
            return rate
    mean = steps / span
    # A clock's ticks may turn 30 into 29.9997, and cutting that to a whole number would give 29.
    usual = (round(mean), round(mean * 1.001) / 1.001)
    return float(next((near for near in usual if near and _is_constant(times, near, tick)), mean))


def picture_offset(container: InputContainer, stream: av.VideoStream, rate: float, first: float | None = None) -> float:
    """Return the seconds from the file's start to the first frame, shown at `first` on the stream's clock."""
    if first is None:
        first = float((stream.start_time or 0) * (stream.time_base or 0))
    late = float(first) - (container.start_time or 0) / av.time_base
    return late if rate and late * rate > 1 - 1e-6 else 0.0


def _has_constant_index(stream: av.VideoStream, rate: float) -> bool:
    """Return whether the frames of an index, which is in decoding order, come at `rate`."""
    tick = float(stream.time_base or 0)
    return _is_constant(np.fromiter((entry.timestamp for entry in stream.index_entries), np.int64) * tick, rate, tick)


def _is_constant(times: np.ndarray, rate: float, tick: float) -> bool:
    """Return whether times, in seconds, come at `rate`, apart from rounding to a clock's ticks.

    Rounding moves a time by less than a tick (Matroska and FLV count in milliseconds); where a frame lasts only a few
    ticks, it must also stay well below a frame.
    """
    if rate == 0:
        return False
    return bool(np.abs(times - times[0] - np.arange(len(times)) / rate).max() < min(1.01 * tick, 0.25 / rate))


def _list_packets(path: VideoPath) -> _Packets:
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
    # The clock jumps back where files were joined byte by byte; we let it go on from where it was.
    steps = np.diff(decoded)
    if (steps < 0).any():
        usual = np.median(steps)
        shown[1:] += np.cumsum(np.where(steps < 0, usual - steps, 0))
    order = np.argsort(shown, kind="stable")
    return _Packets(len(listed), shown[order] * tick, durations[order] * tick)


def _shown(packets: _Packets, rate: float) -> np.ndarray:
    """Return the times of the packets that are frames.

    These are all of them, unless there are more than `rate` allows. Then those that do not look like separate frames
    are left out, if the rest are exactly as many as `rate` allows.
    """
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


def _lacks_its_end(path: VideoPath, stream: av.VideoStream, seconds: float) -> bool:
    """Return whether a file whose picture ends long before `seconds` is cut off; if not, its sound lasts longer."""
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
