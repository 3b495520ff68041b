"""Decodes chosen frames of a video file as uint8 RGB. PyAV (FFmpeg) reads them in order; they have the orientation and
shape that players show.

We never seek: seeking is several times slower on compressed clips and returns wrong frames from damaged files without
an error. Every frame up to the last chosen one is decoded; only the chosen ones are converted to pixels. A file's
header may promise another number of frames than there are, and some containers state none. `video_file.survey` finds
out what to expect, and the frames are chosen again if something else comes out.

A phone held upright records turned frames, and a front camera mirrored ones; the file says how to undo this. The
display matrix is that of ISO/IEC 14496-12 (8.3.2.3): (a, b, u, c, d, v, x, y, w) shows the pixel of column p and row q
in column a p + c q + x and row b p + d q + y. FFmpeg passes it on as nine 32-bit integers in the machine's byte order.
Pixels need not be square: DVDs, camcorders and old phones store pictures that players stretch.

OpenCV's reader is equally fast, but its versions 4.13 to 5.0 return a black or an old picture for every frame of an
interlaced video (camcorders, television, DVDs) and report success.

Shapes: K chosen frames, H x W pixels.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import av
import numpy as np
from av.buffer import Buffer
from av.container import InputContainer

from dataloaders.video_file import (
    FIX,
    MAX_SHORTFALL,
    DamagedVideoError,
    VideoError,
    VideoFacts,
    file_status,
    open_video,
    survey,
)

AT_THE_END = 4  # last frames that a packet cut short may spoil: its own and some that are decoded before it
READING = 2  # version of this module's rules; a change of them may give other frames of the same file
MAX_PIXEL_ASPECT = 4  # of a pixel's long side to its short one; anamorphic film and video stay below 2.4
UPRIGHT = (1, 0, 0, 0, 1, 0, 0, 0, 1)

Choose = Callable[[int, float], "Sequence[int] | np.ndarray"]
Convert = Callable[[np.ndarray], np.ndarray]  # one frame uint8 [H, W, 3] RGB -> what to keep of it


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


def read_frames(
    path: str | Path,
    choose: Choose,
    convert: Convert | None = None,
    *,
    start: float | None = None,
    end: float | None = None,
    square_pixels: bool = False,
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
    refused: FFmpeg fills such frames with guesses, which the others show too until the next key frame. We accept two
    kinds of damage. A recording may begin in the middle of other frames. If a file is cut off, its last packet is
    incomplete, and we leave out that packet's frame.

    Raises VideoError if there is no such file, if no frame can be decoded or none is in the window, if more than
    MAX_SHORTFALL of the promised frames are missing, and for a damaged or encrypted file.
    """
    path = Path(path)
    file_status(path)

    def chosen(facts: VideoFacts) -> tuple[np.ndarray, int]:
        """Return the numbers of the frames wanted, and how many they were chosen from."""
        first, stop = _window(path, facts, start, end)
        return first + np.asarray(choose(stop - first, facts.rate)), stop - first

    with open_video(path) as (container, stream):
        facts = survey(path, container, stream, _frame_rate(stream), timed=start is not None or end is not None)
        if facts.n_frames == 0:
            raise _without_frames(path)
        _check_shortfall(path, facts)
        numbers, n_frames = chosen(facts)
        pictures = _pictures(path, container, stream)
        frames, times = _decode(path, stream, pictures, numbers, convert, square_pixels)
        complete = frames.keys() >= set(numbers.tolist())
        if complete and all(facts.may_be(number, times[number]) for number in frames):
            return DecodedFrames(_in_order(frames, numbers), n_frames, facts.rate)
        if complete:
            times += [picture.time for picture in pictures if picture]

    if not times:
        raise _without_frames(path)
    facts = facts.once_decoded(times)
    _check_shortfall(path, facts)
    numbers, n_frames = chosen(facts)
    with open_video(path) as (container, stream):
        pictures = _pictures(path, container, stream)
        frames, times = _decode(path, stream, pictures, numbers, convert, square_pixels)
    if not frames.keys() >= set(numbers.tolist()):
        raise DamagedVideoError(f"{path} is damaged: its frame {len(times)} cannot be decoded; {FIX}.")
    return DecodedFrames(_in_order(frames, numbers), n_frames, facts.rate)


def _damage(path: Path, number: int, seconds: float) -> DamagedVideoError:
    return DamagedVideoError(
        f"{path} is damaged: its frame {number}, at {seconds:.2f} s, cannot be decoded as it was; {FIX}."
    )


def _without_frames(path: Path) -> VideoError:
    return VideoError(f"{path} holds no frame that can be decoded: {FIX}.")


def _check_shortfall(path: Path, facts: VideoFacts) -> None:
    """Raise VideoError if too much of a file is missing."""
    if facts.n_frames < facts.promised * (1 - MAX_SHORTFALL):
        raise VideoError(
            f"{path} is cut off, or its header is wrong: {facts.n_frames} of its {facts.promised} frames can be "
            f"decoded; {FIX}."
        )


def _window(path: Path, facts: VideoFacts, start: float | None, end: float | None) -> tuple[int, int]:
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


def _frame_rate(stream: av.VideoStream) -> float:
    """Return the frames a second that the header states or FFmpeg guesses, 0.0 for neither."""
    return float(stream.average_rate or stream.guessed_rate or 0)


def _pictures(path: Path, container: InputContainer, stream: av.VideoStream) -> Iterator[av.VideoFrame | None]:
    """Yield the frames of a freshly opened file in order, None for a packet that cannot be decoded."""
    is_looked_at = False
    with suppress(av.FFmpegError):
        for packet in container.demux(stream):
            frames: list[av.VideoFrame] | None = None
            with suppress(av.FFmpegError):
                frames = packet.decode()
            if frames is None or not is_looked_at:  # not each time: it takes longer than the rest of the loop
                is_looked_at = True
                if packet.has_sidedata("encryption_info"):
                    raise VideoError(f"{path} is encrypted: download a copy without copy protection.")
            yield from [None] if frames is None else frames


def _rgb(frame: av.VideoFrame, width: int, height: int) -> np.ndarray:
    """Return a frame's pixels, uint8 [H, W, 3]: scaled to width x height, then turned and mirrored as it asks."""
    # Bicubic, as in ffmpeg, for colours at half resolution. One thread: more take longer to start than they save.
    pixels = frame.to_ndarray(format="rgb24", width=width, height=height, interpolation="BICUBIC", threads=1)
    return np.ascontiguousarray(turned(pixels, display_matrix(frame)))


def display_matrix(frame: av.VideoFrame) -> Sequence[int]:
    """Return the nine numbers of a decoded frame's display matrix, UPRIGHT if it has none."""
    data = frame.side_data.get("DISPLAYMATRIX")
    return np.frombuffer(bytes(data), np.int32).tolist() if isinstance(data, Buffer) else UPRIGHT


def shown_width(width: int, height: int, pixel_aspect: Fraction | None) -> int:
    """Return the width in square pixels of a picture of width x height pixels before it is turned; its height stays.

    `pixel_aspect` is the width of a pixel over its height. These count as square: None and zero, which mean unknown;
    anything beyond MAX_PIXEL_ASPECT either way, which no camera or disc has; and a change of a side by less than two
    pixels, which is how FFmpeg's scaling notes that it rounded a side.
    """
    if not pixel_aspect or not 1 / MAX_PIXEL_ASPECT <= pixel_aspect <= MAX_PIXEL_ASPECT:
        return width
    if abs(pixel_aspect - 1) * max(width, height) < 2:
        return width
    return max(1, round(width * pixel_aspect))


def turned(pixels: np.ndarray, matrix: Sequence[int]) -> np.ndarray:
    """Turn pixels [H, W, 3] by quarters and mirror them as the matrix asks; a view [H, W, 3] or [W, H, 3].

    FFmpeg shows the same eight orientations. An angle in between becomes the nearest. A matrix that flattens the
    picture, such as zeros, asks for nothing that can be shown; like FFmpeg we leave the picture as it is.
    """
    a, b, _, c, d = matrix[:5]
    if a * d == b * c:
        return pixels
    across, down = math.hypot(a, c), math.hypot(b, d)
    if abs(b) / down > abs(a) / across:  # columns become rows
        pixels, a, d = pixels.swapaxes(0, 1), c, b
    return pixels[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1]


def _decode(
    path: Path,
    stream: av.VideoStream,
    pictures: Iterable[av.VideoFrame | None],
    numbers: np.ndarray,
    convert: Convert | None,
    square_pixels: bool,
) -> tuple[dict[int, np.ndarray], list[float | None]]:
    """Decode the frames `numbers` from the `pictures` of a freshly opened file.

    Returns them by number, fewer than asked for if the video ended, and the time of every decoded frame on the stream's
    clock. Raises VideoError for a damaged file.
    """
    wanted = set(numbers.tolist())
    last = max(wanted)
    frames: dict[int, np.ndarray] = {}
    times: list[float | None] = []
    corrupt = lost = None  # numbers: the first marked frame, the first one after a lost packet
    for picture in pictures:
        number = len(times)
        if picture is None:
            lost = number if lost is None and number else lost
            continue
        if picture.is_corrupt and corrupt is None:
            corrupt = number
        if number == 0:
            width, height = picture.width, picture.height
            if square_pixels:
                width = shown_width(width, height, stream.sample_aspect_ratio)
        if number in wanted:
            try:
                rgb = _rgb(picture, width, height)
            except av.FFmpegError:  # a kind of pixels that cannot be converted
                break
            frames[number] = convert(rgb) if convert else rgb
        times.append(picture.time)
        damaged = min((place for place in (corrupt, lost) if place is not None), default=None)
        if damaged is not None and number >= damaged + AT_THE_END:
            raise _damage(path, damaged, (times[damaged] or 0) - (times[0] or 0))
        if damaged is None and number >= last:
            break
    else:
        if corrupt is not None:
            return {number: frame for number, frame in frames.items() if number < corrupt}, times[:corrupt]
    return frames, times


def _in_order(frames: dict[int, np.ndarray], numbers: np.ndarray) -> np.ndarray:
    return np.stack([frames[number] for number in numbers.tolist()])
