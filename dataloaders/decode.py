"""A video file and a choice of frame numbers -> those frames as uint8 RGB, read in order with PyAV (FFmpeg).

Frames are never sought: seeking is several times slower on compressed clips and returns wrong frames from damaged
files without an error. Every frame up to the last chosen one is decoded, only the chosen ones are converted to pixels.
The frame count in a file's header is a promise that is not always kept, and some containers give none: `video_facts`
finds out what to expect, and the choice is made again when something else comes out.

OpenCV's reader would do the same as fast, but its versions 4.13 to 5.0 return a black or an old picture for every
frame of an interlaced video (camcorders, television, DVDs) and report success.

Shapes: K chosen frames, H x W pixels.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import av
import numpy as np
from av.container import InputContainer

from dataloaders.orientation import display_matrix, shown_width, turned
from dataloaders.video_facts import MAX_SHORTFALL, VideoFacts, survey
from dataloaders.video_file import MEND, DamagedVideoError, VideoError, file_status, open_container, open_video

__all__ = [
    "MAX_SHORTFALL", "Choose", "Convert", "DecodedFrames", "VideoError", "decoder_version", "file_status",
    "open_container", "read_frames",
]  # fmt: skip

AT_THE_END = 4  # frames of the last ones that a packet cut short may spoil: its own and some that are decoded before
READING = 2  # of this module's own rules; a change of them may give other frames of the same file

Choose = Callable[[int, float], "Sequence[int] | np.ndarray"]
Convert = Callable[[np.ndarray], np.ndarray]  # one frame uint8 [H, W, 3] RGB -> what to keep of it


class DecodedFrames(NamedTuple):
    """`frames` uint8 [K, H, W, 3] RGB, or as converted, in the order chosen; `n_frames` the count they were chosen
    from; `fps` frames a second as the file states it, or their mean rate where that is wrong; 0.0 where it states
    none."""

    frames: np.ndarray
    n_frames: int
    fps: float


def decoder_version() -> str:
    """The decoder's identity, to be noted beside results: different versions may decode a file differently."""
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
    """Decode the frames that `choose` asks for, each passed through `convert` at once, so that whole frames of a long
    video are never all in memory.

    `choose(n_frames, fps)` returns the frame numbers wanted, sorted, each in 0..n_frames-1, repeats allowed. `fps` is
    0.0 when the container states none. It is called a second time, with the true count, if the video has other frames
    than it seemed to have. Frames are turned and mirrored as the file asks players to show them, and have the size of
    the first.

    With `start` or `end`, in seconds from the file's start, the frames on screen at some moment of [start, end) are the
    whole video: `n_frames` counts only these, and number 0 is the first of them. With `square_pixels` frames have the
    shape that players show; otherwise the pixels are those in the file, even where they are not square.

    A frame that FFmpeg marks as corrupt, or a packet that it cannot decode, up to the last frame chosen, makes the file
    a damaged one, which is refused: FFmpeg fills such frames with guesses, and until the next key frame the others show
    them too. Two kinds of damage are no reason to refuse. Before its first frame a recording may begin in the middle of
    others. And where a file is cut off, its last packet is only a part: the frame of it is left out.

    Raises VideoError when there is no such file, when no frame can be decoded or none is in the window, when more than
    MAX_SHORTFALL of the promised frames are missing, and for a damaged or encrypted file.
    """
    path = Path(path)
    file_status(path)

    def chosen(facts: VideoFacts) -> tuple[np.ndarray, int]:
        """The numbers of the frames wanted, and how many they were chosen from."""
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
        raise DamagedVideoError(f"{path} is damaged: its frame {len(times)} cannot be decoded; {MEND}.")
    return DecodedFrames(_in_order(frames, numbers), n_frames, facts.rate)


def _damage(path: Path, number: int, seconds: float) -> DamagedVideoError:
    return DamagedVideoError(
        f"{path} is damaged: its frame {number}, at {seconds:.2f} s, cannot be decoded as it was; {MEND}."
    )


def _without_frames(path: Path) -> VideoError:
    return VideoError(f"{path} holds no frame that can be decoded: {MEND}.")


def _check_shortfall(path: Path, facts: VideoFacts) -> None:
    """Refuse a file of which too much is missing."""
    if facts.n_frames < facts.promised * (1 - MAX_SHORTFALL):
        raise VideoError(
            f"{path} is cut off, or its header is wrong: {facts.n_frames} of its {facts.promised} frames can be "
            f"decoded; {MEND}."
        )


def _window(path: Path, facts: VideoFacts, start: float | None, end: float | None) -> tuple[int, int]:
    """First frame number of the window and the one after its last; VideoError if there is none in between."""
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
    """Frames a second as the header states or FFmpeg guesses them, 0.0 for neither."""
    return float(stream.average_rate or stream.guessed_rate or 0)


def _pictures(path: Path, container: InputContainer, stream: av.VideoStream) -> Iterator[av.VideoFrame | None]:
    """The frames of a freshly opened file in order, None for a packet that cannot be decoded."""
    is_looked_at = False
    with suppress(av.FFmpegError):
        for packet in container.demux(stream):
            frames: list[av.VideoFrame] | None = None
            with suppress(av.FFmpegError):
                frames = packet.decode()
            if frames is None or not is_looked_at:  # not each time, because that takes longer than the rest of the loop
                is_looked_at = True
                if packet.has_sidedata("encryption_info"):
                    raise VideoError(f"{path} is encrypted: download a copy without copy protection.")
            yield from [None] if frames is None else frames


def _rgb(frame: av.VideoFrame, width: int, height: int) -> np.ndarray:
    """A frame's pixels, uint8 [H, W, 3]: scaled to width x height, then turned and mirrored as it asks."""
    # Bicubic, as in ffmpeg, for colours at half resolution. One thread: starting more takes longer than they save.
    pixels = frame.to_ndarray(format="rgb24", width=width, height=height, interpolation="BICUBIC", threads=1)
    return np.ascontiguousarray(turned(pixels, display_matrix(frame)))


def _decode(
    path: Path,
    stream: av.VideoStream,
    pictures: Iterable[av.VideoFrame | None],
    numbers: np.ndarray,
    convert: Convert | None,
    square_pixels: bool,
) -> tuple[dict[int, np.ndarray], list[float | None]]:
    """Frames by number, from the `pictures` of a freshly opened file, and the time of each that was decoded on the
    stream's clock: less than asked for if the video ended. VideoError for a damaged one."""
    wanted = set(numbers.tolist())
    last = max(wanted)
    frames: dict[int, np.ndarray] = {}
    times: list[float | None] = []
    corrupt = lost = None  # the numbers of the first frame that is marked, and of the next one after a lost packet
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
