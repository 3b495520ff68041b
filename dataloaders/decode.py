"""Decodes chosen frames of a video file as uint8 RGB. PyAV (FFmpeg) reads them in order; they have the orientation and
shape that players show.

We never seek: seeking is several times slower on compressed clips and returns wrong frames from damaged files without
an error. Every frame up to the last chosen one is decoded; only the chosen ones are converted to pixels. A file's
header may promise another number of frames than there are, and some containers state none. `video_file.survey` finds
out what to expect, and the frames are chosen again if something else comes out.

OpenCV's reader is equally fast, but its versions 4.13 to 5.0 return a black or an old picture for every frame of an
interlaced video (camcorders, television, DVDs) and report success.

Shapes: K chosen frames, H x W pixels.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from itertools import count
from pathlib import Path
from typing import NamedTuple

import av
import numpy as np
from av.container import InputContainer

from dataloaders.file_part import VideoPath
from dataloaders.frame_parts import FrameParts, read_parts
from dataloaders.picture_shape import display_matrix, shown_width, turned
from dataloaders.skipping import Skipping, Unsure, may_skip
from dataloaders.video_file import (
    FIX,
    MAX_SHORTFALL,
    DamagedVideoError,
    VideoError,
    VideoFacts,
    file_status,
    open_video,
    stated_rate,
    survey,
)

AT_THE_END = 4  # last frames that a packet cut short may spoil: its own and some that are decoded before it
READING = 2  # version of this module's rules; a change of them may give other frames of the same file

Choose = Callable[[int, float], "Sequence[int] | np.ndarray"]
Convert = Callable[[np.ndarray], np.ndarray]  # one frame uint8 [H, W, 3] RGB -> what to keep of it
Watch = Callable[[float, av.VideoFrame], None]  # seconds from the file's start, and the frame that comes then


class DecodedFrames(NamedTuple):
    """`frames`: uint8 [K, H, W, 3] RGB, or as converted, in the order chosen. `n_frames`: the count they were chosen
    from. `fps`: frames a second as the file states, their mean rate if that is wrong, 0.0 if it states none."""

    frames: np.ndarray
    n_frames: int
    fps: float


def decoder_version() -> str:
    """Return the decoder's identity, to be noted beside results: versions may decode a file differently."""
    codecs = ".".join(map(str, av.library_versions["libavcodec"]))
    return f"av {av.__version__} (libavcodec {codecs}), reading {READING}"


class Window(NamedTuple):
    """The frames to take from one window of a file, in seconds from the file's start; None is the file's own start or
    end. `choose` is that of `read_frames`."""

    choose: Choose
    start: float | None = None
    end: float | None = None


def read_frames(
    path: str | VideoPath | FrameParts,
    choose: Choose,
    convert: Convert | None = None,
    *,
    start: float | None = None,
    end: float | None = None,
    square_pixels: bool = False,
    thorough: bool = False,
) -> DecodedFrames:
    """Decode the frames that `choose` asks for. Each passes through `convert` at once, so that memory never holds all
    whole frames of a long video.

    `choose(n_frames, fps)` returns the frame numbers wanted, sorted, each in 0..n_frames-1, repeats allowed. `fps` is
    0.0 if the container states none. It is called again, with the true count, if the video turns out to have other
    frames than it seemed to have. Frames are turned and mirrored as the file asks, and all have the size of the first.

    With `start` or `end`, in seconds from the file's start, the frames on screen at some moment of [start, end) are the
    whole video: `n_frames` counts only these, and number 0 is the first of them. With `square_pixels`, frames have the
    shape that players show; otherwise the pixels are those in the file, even if they are not square.

    A file is damaged if, up to the last frame chosen, FFmpeg marks a frame as corrupt or cannot decode a packet. It is
    refused: FFmpeg fills such frames with guesses, which the others show too until the next key frame. We accept three
    kinds of damage. A recording may begin in the middle of other frames. If a file is cut off, its last packet is
    incomplete, and we leave out that packet's frame. A frame that nobody asked for and that no other is built from is
    not looked at (see `skipping`), unless the reading is `thorough`.

    Raises VideoError if there is no such file, if no frame can be decoded or none is in the window, if more than
    MAX_SHORTFALL of the promised frames are missing, and for a damaged or encrypted file.
    """
    if isinstance(path, FrameParts):
        return DecodedFrames(*read_parts(path, choose, convert))
    window = Window(choose, start, end)
    ((_, read),) = read_windows(path, [window], convert, square_pixels=square_pixels, thorough=thorough)
    if isinstance(read, VideoError):
        raise read
    return read


def read_windows(
    path: str | VideoPath,
    windows: Iterable[Window],
    convert: Convert | None = None,
    *,
    square_pixels: bool = False,
    thorough: bool = False,
    watch: Watch | None = None,
) -> Iterator[tuple[int, DecodedFrames | VideoError]]:
    """Decode a file once for many windows. For each, yield its index and what `read_frames` would return, as soon as
    its last frame has come, or the VideoError that `read_frames` would raise.

    Windows may overlap, repeat and come in any order. A frame is kept until the last window that wants it is complete,
    so that memory grows with the windows that are open at a moment and not with the length of the video. A window
    without a frame, or one that damage reaches, does not affect the others. `watch` is shown every frame once, in
    order, up to the last one that a window wants. Raises VideoError if the whole file cannot be read.
    """
    path = Path(path) if isinstance(path, str) else path
    file_status(path)
    windows = list(windows)
    facts: dict[bool, VideoFacts] = {}
    requests, failed = [], []
    with open_video(path) as (container, stream):
        for timed in {window.start is not None or window.end is not None for window in windows}:
            facts[timed] = survey(path, container, stream, stated_rate(stream), timed=timed)
            if facts[timed].n_frames == 0:
                raise _without_frames(path)
            _check_shortfall(path, facts[timed])
        for index, window in enumerate(windows):
            try:
                timed = window.start is not None or window.end is not None
                requests.append(_request(path, index, window, facts[timed]))
            except VideoError as error:
                failed.append((index, error))
        yield from failed
        if not requests:
            return
        reading = _Reading(path, requests, convert, square_pixels)
        skipping = None
        wanted = reading.users.keys()
        if not thorough and watch is None and all(may_skip(stream, found, wanted) for found in facts.values()):
            skipping = Skipping(stream, requests[0].facts.rate, frozenset(wanted))
        pictures = _pictures(path, container, stream, skipping)
        if watch is not None:
            pictures = _watched(pictures, requests[0].facts, watch)
        try:
            yield from reading.run(stream, pictures, skipping)
            is_sure = True
        except Unsure:
            is_sure = False
    if not is_sure:
        reading = _Reading(path, reading.waiting, convert, square_pixels)
        with open_video(path) as (container, stream):
            yield from reading.run(stream, _pictures(path, container, stream))

    # The video has other frames than it seemed to have: choose again.
    again = []
    for unread, times in reading.unread:
        corrected: dict[int, VideoFacts] = {}
        for request in unread:
            try:
                if not times:
                    raise _without_frames(path)
                if (key := id(request.facts)) not in corrected:
                    corrected[key] = request.facts.once_decoded(times)
                _check_shortfall(path, corrected[key])
                again.append(_request(path, request.index, request.window, corrected[key]))
            except VideoError as error:
                yield request.index, error
    if again:
        reading = _Reading(path, again, convert, square_pixels)
        with open_video(path) as (container, stream):
            yield from reading.run(stream, _pictures(path, container, stream))
        for unread, times in reading.unread:
            for request in unread:
                yield (
                    request.index,
                    DamagedVideoError(f"{path} is damaged: its frame {len(times)} cannot be decoded; {FIX}."),
                )


@dataclass(frozen=True, eq=False)
class _Request:
    """The frames of one window: their `numbers` in the file, chosen from `n_frames`."""

    index: int
    window: Window
    facts: VideoFacts
    numbers: np.ndarray
    n_frames: int

    @cached_property
    def distinct(self) -> set[int]:
        return set(self.numbers.tolist())

    @cached_property
    def last(self) -> int:
        return max(self.distinct)


def _request(path: VideoPath, index: int, window: Window, facts: VideoFacts) -> _Request:
    """Choose the frames of a window; VideoError if it holds none."""
    first, stop = _window(path, facts, window.start, window.end)
    numbers = first + np.asarray(window.choose(stop - first, facts.rate))
    return _Request(index, window, facts, numbers, stop - first)


def _damage(path: VideoPath, number: int, seconds: float) -> DamagedVideoError:
    return DamagedVideoError(
        f"{path} is damaged: its frame {number}, at {seconds:.2f} s, cannot be decoded as it was; {FIX}."
    )


def _without_frames(path: VideoPath) -> VideoError:
    return VideoError(f"{path} holds no frame that can be decoded: {FIX}.")


def _check_shortfall(path: VideoPath, facts: VideoFacts) -> None:
    """Raise VideoError if too much of a file is missing."""
    if facts.n_frames < facts.promised * (1 - MAX_SHORTFALL):
        raise VideoError(
            f"{path} is cut off, or its header is wrong: {facts.n_frames} of its {facts.promised} frames can be "
            f"decoded; {FIX}."
        )


def _window(path: VideoPath, facts: VideoFacts, start: float | None, end: float | None) -> tuple[int, int]:
    """Return the first frame number of the window and the one after its last; VideoError if it holds no frame."""
    if start is None and end is None:
        return 0, facts.n_frames
    if facts.rate == 0:
        raise VideoError(f"{path} states no frame rate, so that seconds cannot be found in it: re-encode it.")
    first, stop = facts.window(start, end)
    if first >= stop:
        until = "its end" if end is None else f"{end:g} s"
        raise VideoError(
            f"{path} has no frame from {start or 0:g} s until {until}, it lasts {facts.length:g} s: correct the "
            "times, or download it again."
        )
    return first, stop


def _pictures(
    path: VideoPath, container: InputContainer, stream: av.VideoStream, skipping: Skipping | None = None
) -> Iterator[av.VideoFrame | None]:
    """Yield the frames of a freshly opened file in order, None for a packet that cannot be decoded."""
    is_looked_at = False
    with suppress(av.FFmpegError):
        for packet in container.demux(stream):
            frames: list[av.VideoFrame] | None = None
            if skipping is not None:
                skipping.send(packet)
            with suppress(av.FFmpegError):
                frames = packet.decode()
            if frames is None or not is_looked_at:  # not each time: it takes longer than the rest of the loop
                is_looked_at = True
                if packet.has_sidedata("encryption_info"):
                    raise VideoError(f"{path} is encrypted: download a copy without copy protection.")
            yield from [None] if frames is None else frames


def _watched(
    pictures: Iterator[av.VideoFrame | None], facts: VideoFacts, watch: Watch
) -> Iterator[av.VideoFrame | None]:
    numbers = count()
    for picture in pictures:
        if picture is not None:
            watch(facts.seconds(next(numbers)), picture)
        yield picture


def _rgb(frame: av.VideoFrame, width: int, height: int) -> np.ndarray:
    """Return a frame's pixels, uint8 [H, W, 3]: scaled to width x height, then turned and mirrored as it asks."""
    # Bicubic, as in ffmpeg, for colours at half resolution. One thread: more take longer to start than they save.
    pixels = frame.to_ndarray(format="rgb24", width=width, height=height, interpolation="BICUBIC", threads=1)
    return np.ascontiguousarray(turned(pixels, display_matrix(frame)))


class _Reading:
    """One pass over a file for several windows.

    `waiting` are those not complete yet, the next one last. After the pass, `unread` are those for which frames must be
    chosen again, with the times of the decoded frames on the stream's clock. `users` counts the windows that still want
    a frame.
    """

    def __init__(
        self, path: VideoPath, requests: Iterable[_Request], convert: Convert | None, square_pixels: bool
    ) -> None:
        self.waiting = sorted(requests, key=lambda request: request.last, reverse=True)
        self.users = Counter(number for request in self.waiting for number in request.distinct)
        self.unread: list[tuple[list[_Request], list[float | None]]] = []
        self._frames: dict[int, np.ndarray] = {}
        self._path, self._convert, self._square_pixels = path, convert, square_pixels

    def run(
        self, stream: av.VideoStream, pictures: Iterator[av.VideoFrame | None], skipping: Skipping | None = None
    ) -> Iterator[tuple[int, DecodedFrames | VideoError]]:
        """Yield windows from the `pictures` of a freshly opened file. Raises Unsure if some were skipped and it is not
        certain which."""
        times: list[float | None] = []
        misjudged: list[_Request] = []
        corrupt = lost = None  # numbers: the first marked frame, the first one after a lost packet
        width = height = 0
        for picture in pictures:
            number = len(times) if skipping is None else skipping.number(picture)
            if picture is None:
                lost = number if lost is None and number else lost
                continue
            if picture.is_corrupt and corrupt is None:
                corrupt = number
            if number == 0:
                width, height = picture.width, picture.height
                if self._square_pixels:
                    width = shown_width(width, height, stream.sample_aspect_ratio)
            if number in self.users:
                try:
                    rgb = _rgb(picture, width, height)
                except av.FFmpegError:  # a kind of pixels that cannot be converted
                    if skipping is not None:
                        raise Unsure from None
                    self._give_up([request for request in self.waiting if number in request.distinct], times[:number])
                else:
                    self._frames[number] = self._convert(rgb) if self._convert else rgb
            if skipping is None:
                times.append(picture.time)
            damaged = min((place for place in (corrupt, lost) if place is not None), default=None)
            if damaged is None:
                while self.waiting and self.waiting[-1].last <= number:
                    request = self.waiting.pop()
                    if self._fits(request, times):
                        yield request.index, self._frames_of(request)
                    else:
                        misjudged.append(request)
                        self._forget(request)
            elif number >= damaged + AT_THE_END:
                error = _damage(self._path, damaged, (times[damaged] or 0) - (times[0] or 0))
                while self.waiting:
                    yield self.waiting.pop().index, error
            if not self.waiting:
                break
        else:
            if skipping is not None:
                raise Unsure
            there = times[:corrupt]
            for request in self.waiting[::-1]:
                if request.last < len(there) and self._fits(request, times):
                    yield request.index, self._frames_of(request)
                    self.waiting.remove(request)
            self._give_up(self.waiting, there)
        if misjudged:
            times += [picture.time for picture in pictures if picture]
            self.unread.append((misjudged, times))

    def _give_up(self, requests: list[_Request], times: list[float | None]) -> None:
        """Leave windows to the next pass, which expects frames at these times."""
        if requests:
            self.unread.append((requests, times))
            self.waiting = [request for request in self.waiting if request not in requests]
            for request in requests:
                self._forget(request)

    def _fits(self, request: _Request, times: list[float | None]) -> bool:
        """Return whether the frames of a window came at the times at which we expected them."""
        return request.facts.guess is None or all(
            request.facts.may_be(number, times[number]) for number in request.distinct
        )

    def _frames_of(self, request: _Request) -> DecodedFrames:
        frames = np.stack([self._frames[number] for number in request.numbers.tolist()])
        self._forget(request)
        return DecodedFrames(frames, request.n_frames, request.facts.rate)

    def _forget(self, request: _Request) -> None:
        """Drop the frames that no window but this one wants."""
        self.users.subtract(request.distinct)
        for number in request.distinct:
            if not self.users[number]:
                del self.users[number]
                self._frames.pop(number, None)
