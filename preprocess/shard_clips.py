"""What a shard stores of a video: a small clip of few frames a second as h264, its frames as JPEG, or the file itself.

A clip of `fps` frames a second shows, for each 1 / fps seconds of the video, the frame on screen in their middle, by
time stamps. It is read as training reads videos (`dataloaders.decode`): turned and mirrored as the file asks, in square
pixels, and a damaged file is refused. The short side becomes `short_side` pixels; a smaller video keeps its size.
The same file and settings give the same bytes, if PyAV and OpenCV have the same versions.

Shapes: H x W pixels of a frame.
"""

import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import av
import numpy as np

from dataloaders.decode import Window, decoder_version, read_windows
from dataloaders.listed_videos import split_extension
from dataloaders.samples import Sample
from dataloaders.video_file import FIX, DamagedVideoError, VideoError, VideoFacts, file_status, open_video, survey

STORES = ("h264", "jpeg", "original")
PRESETS = ("ultrafast", "superfast", "veryfast", "faster", "fast", "medium", "slow", "slower", "veryslow")
OF_H264, OF_JPEG = ("crf", "preset", "fast_decode"), ("jpeg_quality",)  # settings that the other store does not have
MOST_BYTES = 8 * 2**30 - 1  # of one member of a tar
GLIMPSE = 1e-3  # seconds of a window that asks for the frame on screen at a moment
MIN_ALLOWANCE = 0.5  # seconds: containers state lengths that are off by a few frames


@dataclass(frozen=True)
class Storing:
    """How videos are stored; its fields are the flags of the same names. `crf` (x264's constant rate factor),
    `preset` and `fast_decode` belong to h264, `jpeg_quality` belongs to jpeg, and `original` uses none of all these."""

    store: str
    fps: float
    short_side: int
    crf: int
    preset: str
    fast_decode: bool
    jpeg_quality: int
    max_shortfall: float

    def __post_init__(self) -> None:
        if not 0 < self.fps <= 240:
            raise ValueError(f"--fps must be above 0 and at most 240, not {self.fps:g}.")
        if not 16 <= self.short_side <= 4096 or self.short_side % 2:
            raise ValueError(f"--short_side must be even and in 16..4096, not {self.short_side}.")
        if not 0 <= self.crf <= 51:
            raise ValueError(f"--crf must be in 0..51, not {self.crf}.")
        if not 1 <= self.jpeg_quality <= 100:
            raise ValueError(f"--jpeg_quality must be in 1..100, not {self.jpeg_quality}.")
        if not 0 <= self.max_shortfall < 1:
            raise ValueError(f"--max_shortfall must be in 0..1, 1 excluded, not {self.max_shortfall:g}.")

    def settings(self) -> dict[str, object]:
        """Return all that the stored bytes depend on, apart from the videos."""
        if self.store == "original":
            return {"store": self.store}
        import cv2  # --help does without it

        of_others = OF_JPEG if self.store == "h264" else OF_H264
        own = {name: value for name, value in asdict(self).items() if name not in of_others}
        return {**own, "decoder": decoder_version(), "opencv": cv2.__version__}


class StoredClip(NamedTuple):
    """The members of a sample, as (extension, content or the file with it) in the order of a tar."""

    members: Sequence[tuple[str, bytes | Path]]

    @property
    def size(self) -> int:
        """Return the bytes in a tar: a block of 512 for each header, and the contents in whole blocks."""
        sizes = [content.stat().st_size if isinstance(content, Path) else len(content) for _, content in self.members]
        return sum(512 + -(-size // 512) * 512 for size in sizes)


def store_clip(sample: Sample, storing: Storing) -> StoredClip:
    """Return what a shard stores of one video. Raises VideoError if that fails, and OSError of its disk."""
    members: list[tuple[str, bytes | Path]]
    if storing.store == "original":
        fps, members = _original(sample)
    else:
        import cv2

        fps = storing.fps
        frames = _frames(sample, storing)
        try:
            if storing.store == "h264":
                members = [("mp4", _to_h264(frames, storing))]
            else:
                members = [(f"{number:03d}.jpg", _to_jpeg(frame, storing)) for number, frame in enumerate(frames)]
        except (av.FFmpegError, cv2.error) as error:  # sizes that an encoder does not take
            raise VideoError(f"{sample.path} cannot be encoded ({error}): leave it out of the list.") from error
    texts = {"video_id": sample.video_id, "captions": list(sample.captions), "fps": fps}
    members.append(("json", json.dumps(texts, ensure_ascii=False).encode()))
    return StoredClip(sorted(members, key=lambda member: member[0]))


def _original(sample: Sample) -> tuple[float, list[tuple[str, bytes | Path]]]:
    """Return the frames a second of a file and the file as a member; VideoError if it is not a video."""
    if file_status(sample.path).st_size > MOST_BYTES:
        raise VideoError(f"{sample.path} has more than 8 GiB, too much for a tar's member: pass --store h264.")
    with open_video(sample.path) as (_, stream):
        fps = float(stream.average_rate or stream.guessed_rate or 0)
    extension = split_extension(sample.path.name)[1].removeprefix(".").lower()
    return fps, [(extension or "mp4", sample.path)]


# ---- frames ---------------------------------------------------------------------------------------------------------


def moments(start: float, end: float, fps: float) -> np.ndarray:
    """Return the middle of each 1 / fps seconds of [start, end), or of all of it if it is shorter: float64 [n], n >= 1.

    What remains at the end counts if it is longer than half of that.
    """
    count = int(np.ceil((end - start) * fps - 0.5 - 1e-6))
    return start + (np.arange(count) + 0.5) / fps if count > 0 else np.array([(start + end) / 2])


def _facts(path: Path) -> VideoFacts:
    file_status(path)
    with open_video(path) as (container, stream):
        rate = float(stream.average_rate or stream.guessed_rate or 0)
        facts = survey(path, container, stream, rate, timed=True)
    if facts.n_frames == 0:
        raise VideoError(f"{path} holds no frame that can be decoded: {FIX}.")
    if facts.rate == 0:
        raise VideoError(f"{path} states no frame rate, so that seconds cannot be found in it: re-encode it.")
    return facts


def _frames(sample: Sample, storing: Storing) -> Iterator[np.ndarray]:
    """Yield the small frames of a clip in order, uint8 [H, W, 3] RGB, H and W even.

    Raises VideoError also if more than `max_shortfall` of the clip's seconds are missing at its end, but at least half
    a second and one frame.
    """
    path, facts = sample.path, _facts(sample.path)
    start, end = sample.start or 0.0, min(facts.length, np.inf if sample.end is None else sample.end)
    if end <= start:
        raise VideoError(
            f"{path} has no frame after {start:g} s, it lasts {facts.length:g} s: correct the times, or download it "
            "again."
        )
    # Where the picture begins later than the sound, its first frame fills the gap.
    begins = facts.offset if facts.times is None else float(facts.times[0])
    times = np.maximum(moments(start, end, storing.fps), begins).tolist()
    windows = [Window(lambda n_frames, fps: [0], time, time + GLIMPSE) for time in times]
    waiting: dict[int, np.ndarray] = {}
    errors: dict[int, VideoError] = {}
    done = 0
    for index, read in read_windows(path, windows, lambda frame: _small(frame, storing.short_side), square_pixels=True):
        if isinstance(read, DamagedVideoError):
            raise read
        if isinstance(read, VideoError):
            errors[index] = read
            continue
        waiting[index] = read.frames[0]
        while done in waiting:
            yield waiting.pop(done)
            done += 1
    lost = (len(times) - done) / storing.fps
    if waiting or done == 0:
        raise errors[min(errors)]
    if lost > max(MIN_ALLOWANCE, 1 / storing.fps, storing.max_shortfall * (end - start)) + 1e-6:
        raise VideoError(
            f"{path} is cut off, or its header is wrong: {end - start - lost:.1f} of {end - start:.1f} seconds can be "
            f"decoded; {FIX}."
        )


def small_size(height: int, width: int, short_side: int) -> tuple[int, int]:
    """Return (height, width), even, with the shape of the frame and a short side of at most `short_side` pixels."""
    short = min(short_side, max(2, min(height, width) // 2 * 2))
    long = 2 * round(short / 2 * max(height, width) / min(height, width))
    return (short, long) if height < width else (long, short)


def _small(frame: np.ndarray, short_side: int) -> np.ndarray:
    import cv2

    height, width = small_size(frame.shape[0], frame.shape[1], short_side)
    return cv2.resize(frame, (width, height), interpolation=cv2.INTER_AREA)


# ---- encoding -------------------------------------------------------------------------------------------------------


def _to_h264(frames: Iterator[np.ndarray], storing: Storing) -> bytes:
    """Return an mp4 file of frames uint8 [H, W, 3] RGB."""
    file = io.BytesIO()
    # x264's fast sums of floating-point numbers vary with the processor, and from run to run; this does without them.
    options = {"crf": str(storing.crf), "preset": storing.preset, "x264-params": "cpu-independent=1"}
    if storing.fast_decode:
        options |= {"tune": "fastdecode", "bf": "0", "g": "12"}
    with av.open(file, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=Fraction(storing.fps).limit_denominator(1001), options=options)
        assert isinstance(stream, av.VideoStream)
        stream.pix_fmt = "yuv420p"
        stream.thread_count = 1  # the bytes of an h264 file depend on it
        for number, frame in enumerate(frames):
            if number == 0:
                stream.height, stream.width = frame.shape[:2]
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode(None))
    return file.getvalue()


def _to_jpeg(frame: np.ndarray, storing: Storing) -> bytes:
    """Return a JPEG file of a frame uint8 [H, W, 3] RGB."""
    import cv2

    picture = cv2.cvtColor(frame, cv2.COLOR_RGB2BGR)
    return cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, storing.jpeg_quality])[1].tobytes()
