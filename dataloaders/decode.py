"""A video file and a choice of frame numbers -> those frames as uint8 RGB, read in order with PyAV (FFmpeg).

Frames are never sought: seeking is several times slower on compressed clips and returns wrong frames from damaged
files without an error. Every frame up to the last chosen one is decoded, only the chosen ones are converted to pixels.
The frame count in a file's header is a promise that is not always kept, and some containers give none: where it is
missing, or does not fit the rest of the header, what lies in the file is counted as well, and the choice is made again
when a video ends earlier than promised.

OpenCV's reader would do the same as fast, but its versions 4.13 to 5.0 return a black or an old picture for every
frame of an interlaced video (camcorders, television, DVDs) and report success.

Shapes: K chosen frames, H x W pixels.
"""

import os
import stat
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import av
import numpy as np
from av.container import InputContainer

MAX_SHORTFALL = 0.25  # the part of the promised frames that may be missing before a file counts as broken

MEND = "download it again, or re-encode it (ffmpeg -i IN -c:v libx264 OUT.mp4)"

# A title that is not UTF-8 must not keep a video from being read. PyAV 19 reads any title, without this option.
LENIENT: dict[str, Any] = {"metadata_errors": "replace"} if int(av.__version__.split(".")[0]) < 19 else {}

Choose = Callable[[int, float], "Sequence[int] | np.ndarray"]
Convert = Callable[[np.ndarray], np.ndarray]  # one frame uint8 [H, W, 3] RGB -> what to keep of it


class VideoError(ValueError):
    """A file that cannot be read as a video; the message is one sentence with path, reason and mend."""


class DecodedFrames(NamedTuple):
    """`frames` uint8 [K, H, W, 3] RGB, or as converted, in the order chosen; `n_frames` the count they were chosen
    from; `fps` frames a second as the container states it, 0.0 where it states none."""

    frames: np.ndarray
    n_frames: int
    fps: float


def decoder_version() -> str:
    """The decoder's identity, to be noted beside results: different versions may decode a file differently."""
    codecs = ".".join(map(str, av.library_versions["libavcodec"]))
    return f"av {av.__version__} (libavcodec {codecs})"


def read_frames(path: str | Path, choose: Choose, convert: Convert | None = None) -> DecodedFrames:
    """Decode the frames that `choose` asks for, each passed through `convert` at once, so that whole frames of a long
    video are never all in memory.

    `choose(n_frames, fps)` returns the frame numbers wanted, sorted, each in 0..n_frames-1, repeats allowed. `fps` is
    0.0 when the container states none. It is called a second time, with the true count, if the video ends before the
    last frame it asked for. Frames are turned as the file asks players to turn them, and have the size of the first.

    Raises VideoError when there is no such file, when no frame can be decoded, when more than MAX_SHORTFALL of the
    promised frames are missing, or when one of those left cannot be decoded either.
    """
    path = Path(path)
    file_status(path)
    count = 0
    with _open(path) as (container, stream):
        fps = _frame_rate(stream)
        promised = _promised_frames(container, stream, path)
        if promised:
            numbers = np.asarray(choose(promised, fps))
            frames, count = _decode(container, stream, numbers, convert)
            if frames.keys() >= set(numbers.tolist()):
                return DecodedFrames(_in_order(frames, numbers), promised, fps)

    if count == 0:
        raise VideoError(f"{path} holds no frame that can be decoded: {MEND}.")
    if count < promised * (1 - MAX_SHORTFALL):
        raise VideoError(
            f"{path} is cut off, or its header is wrong: {count} of its {promised} frames can be decoded; {MEND}."
        )
    numbers = np.asarray(choose(count, fps))
    with _open(path) as (container, stream):
        frames, reached = _decode(container, stream, numbers, convert)
    if not frames.keys() >= set(numbers.tolist()):
        raise VideoError(f"{path} is damaged: its frame {reached} cannot be decoded; {MEND}.")
    return DecodedFrames(_in_order(frames, numbers), count, fps)


def file_status(path: Path) -> os.stat_result:
    """What the file system says about a video; VideoError if it is not a file that can hold one."""
    try:
        status = path.stat()
    except FileNotFoundError as error:
        raise VideoError(f"{path} does not exist: check --features_path, or download the video.") from error
    if stat.S_ISDIR(status.st_mode):
        raise VideoError(f"{path} is a directory, not a video file: give the path of the file in it.")
    if status.st_size == 0:
        raise VideoError(f"{path} is empty (0 bytes): download it again.")
    return status


def open_container(path: Path) -> InputContainer:
    """A file opened with PyAV, whatever its name and its titles hold; what PyAV raises is passed on."""
    # An absolute path, because FFmpeg takes the "a:" of a relative "a:b.mp4" for a protocol.
    return av.open(str(path.absolute()), **LENIENT)


@contextmanager
def _open(path: Path) -> Iterator[tuple[InputContainer, av.VideoStream]]:
    try:
        container = open_container(path)
    except av.FFmpegError as error:
        raise VideoError(f"{path} is not a video that can be opened ({error.strerror}): {MEND}.") from error
    with container:
        stream = container.streams.best("video")
        if not isinstance(stream, av.VideoStream) or stream.codec_context is None:
            raise VideoError(f"{path} is not a video (it holds no picture in a known codec): {MEND}.")
        stream.codec_context.thread_count = 1  # the loader's workers already use the cores
        yield container, stream


def _frame_rate(stream: av.VideoStream) -> float:
    return float(stream.average_rate or stream.guessed_rate or 0)


def _promised_frames(container: InputContainer, stream: av.VideoStream, path: Path) -> int:
    """The frames that the header promises, or those in the file if they are more; 0 if there are none.

    An mp4's header has a count, other containers state how long they last. Both may be wrong: a fragmented mp4 may
    count its first fragment only, and a length is that of the first part where files were joined by their bytes.
    """
    rate = _frame_rate(stream)
    if stream.duration and stream.time_base:
        lasting = round(stream.duration * stream.time_base * rate)
    else:
        lasting = round((container.duration or 0) / av.time_base * rate)
    # A frame takes at least a byte of the file: more than that is no count to believe.
    counted, lasting = (count if 0 < count <= path.stat().st_size else 0 for count in (stream.frames, lasting))
    if counted and lasting <= counted + 1:
        return counted
    return max(counted or lasting, _count_packets(path))


def _count_packets(path: Path) -> int:
    """The encoded frames in a file, of which nothing is decoded."""
    count = 0
    with _open(path) as (container, stream), suppress(av.FFmpegError):
        for packet in container.demux(stream):
            count += packet.size > 0  # the last one is empty
    return count


def _pictures(container: InputContainer, stream: av.VideoStream) -> Iterator[av.VideoFrame]:
    """The frames of a freshly opened file in order; those that cannot be decoded are left out, as ffmpeg does."""
    with suppress(av.FFmpegError):
        for packet in container.demux(stream):
            try:
                frames = packet.decode()
            except av.FFmpegError:
                continue
            yield from frames


def _rgb(frame: av.VideoFrame, width: int, height: int) -> np.ndarray:
    """A frame's pixels, uint8 [H, W, 3]: scaled to width x height, then turned as its rotation flag asks."""
    # Bicubic, as in ffmpeg, for colours at half resolution. One thread: starting more takes longer than they save.
    pixels = frame.to_ndarray(format="rgb24", width=width, height=height, interpolation="BICUBIC", threads=1)
    return np.ascontiguousarray(np.rot90(pixels, round(frame.rotation / 90)))


def _decode(
    container: InputContainer, stream: av.VideoStream, numbers: np.ndarray, convert: Convert | None
) -> tuple[dict[int, np.ndarray], int]:
    """Frames by number, from a freshly opened file, and how many were decoded: less than asked for if the video
    ended."""
    wanted = set(numbers.tolist())
    frames: dict[int, np.ndarray] = {}
    count = 0
    for picture in islice(_pictures(container, stream), max(wanted) + 1):
        if count == 0:
            width, height = picture.width, picture.height
        if count in wanted:
            try:
                rgb = _rgb(picture, width, height)
            except av.FFmpegError:  # a kind of pixels that cannot be converted
                break
            frames[count] = convert(rgb) if convert else rgb
        count += 1
    return frames, count


def _in_order(frames: dict[int, np.ndarray], numbers: np.ndarray) -> np.ndarray:
    return np.stack([frames[number] for number in numbers.tolist()])
