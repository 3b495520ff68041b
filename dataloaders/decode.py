"""A video file and a choice of frame numbers -> those frames as uint8 RGB, read in order with OpenCV.

Frames are never sought: seeking is several times slower on compressed clips and returns wrong frames from damaged
files without an error. Every frame up to the last chosen one is `grab`bed (decoded), only the chosen ones are
`retrieve`d (converted to pixels). The frame count in a file's header is a promise that is not always kept, so the
choice is made again when a video ends earlier than promised.

Shapes: K chosen frames, H x W pixels.
"""

import functools
import math
import os
import stat
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

MAX_SHORTFALL = 0.25  # the part of the promised frames that may be missing before a file counts as broken

MEND = "download it again, or re-encode it (ffmpeg -i IN -c:v libx264 OUT.mp4)"

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
    return f"cv2 {cv2.__version__}"


def read_frames(path: str | Path, choose: Choose, convert: Convert | None = None) -> DecodedFrames:
    """Decode the frames that `choose` asks for, each passed through `convert` at once, so that whole frames of a long
    video are never all in memory.

    `choose(n_frames, fps)` returns the frame numbers wanted, sorted, each in 0..n_frames-1, repeats allowed. `fps` is
    0.0 when the container states none. It is called a second time, with the true count, if the video ends before the
    last frame it asked for.

    Raises VideoError when there is no such file, when no frame can be decoded, when more than MAX_SHORTFALL of the
    promised frames are missing, or when one of those left cannot be decoded either.
    """
    path = Path(path)
    file_status(path)
    with _open(path) as capture:
        fps = _frame_rate(capture)
        promised = _promised_frames(capture, path)
        if promised:
            numbers = np.asarray(choose(promised, fps))
            frames, count = _decode(capture, numbers, convert)
            if frames.keys() >= set(numbers.tolist()):
                return DecodedFrames(_in_order(frames, numbers), promised, fps)
        else:
            count = _count_frames(capture)

    if count == 0:
        raise VideoError(f"{path} holds no frame that can be decoded: {MEND}.")
    if count < promised * (1 - MAX_SHORTFALL):
        raise VideoError(f"{path} is cut off: {count} of its {promised} frames can be decoded; {MEND}.")
    numbers = np.asarray(choose(count, fps))
    with _open(path) as capture:
        frames, reached = _decode(capture, numbers, convert)
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


@functools.cache
def _set_up_opencv() -> None:
    """Once per process: silence the libraries (our own errors name the file, theirs do not) and start no threads."""
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")  # FFmpeg's AV_LOG_QUIET; read when the first file is opened
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
    cv2.setNumThreads(0)


@contextmanager
def _open(path: Path) -> Iterator[cv2.VideoCapture]:
    _set_up_opencv()
    # An absolute path, because FFmpeg takes the "a:" of a relative "a:b.mp4" for a protocol. One decoding thread,
    # because the loader's workers already use the cores.
    capture = cv2.VideoCapture(str(path.absolute()), cv2.CAP_FFMPEG, [cv2.CAP_PROP_N_THREADS, 1])
    try:
        if not capture.isOpened():
            reason = "is not a video that OpenCV can open (no video stream, a damaged header or an unknown codec)"
            raise VideoError(f"{path} {reason}: {MEND}.")
        yield capture
    finally:
        capture.release()


def _frame_rate(capture: cv2.VideoCapture) -> float:
    fps = capture.get(cv2.CAP_PROP_FPS)
    return fps if math.isfinite(fps) and fps > 0 else 0.0


def _promised_frames(capture: cv2.VideoCapture, path: Path) -> int:
    """The header's frame count, 0 where there is none to believe: a frame takes at least a byte of the file."""
    count = capture.get(cv2.CAP_PROP_FRAME_COUNT)
    return int(count) if 1 <= count <= path.stat().st_size else 0


def _count_frames(capture: cv2.VideoCapture) -> int:
    count = 0
    while capture.grab():
        count += 1
    return count


def _decode(
    capture: cv2.VideoCapture, numbers: np.ndarray, convert: Convert | None
) -> tuple[dict[int, np.ndarray], int]:
    """Frames by number, from a freshly opened file, and how many were decoded: less than asked for if the video
    ended."""
    wanted = set(numbers.tolist())
    frames: dict[int, np.ndarray] = {}
    for number in range(max(wanted) + 1):
        if not capture.grab():
            return frames, number
        if number in wanted:
            decoded, bgr = capture.retrieve()
            if not decoded:
                return frames, number
            rgb = cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB)
            frames[number] = convert(rgb) if convert else rgb
    return frames, max(wanted) + 1


def _in_order(frames: dict[int, np.ndarray], numbers: np.ndarray) -> np.ndarray:
    return np.stack([frames[number] for number in numbers.tolist()])
