"""Real video files for tests. They are small, and each decoded frame can be identified.

Shapes: T frames, H x W pixels.
"""

import struct
from fractions import Fraction
from pathlib import Path

import av
import numpy as np


def write_video(
    path: Path,
    frames: np.ndarray,
    fps: float = 3,
    *,
    codec: str = "libx264",
    pixel_format: str = "yuv420p",
    sound_seconds: int = 0,
) -> Path:
    """Encode frames uint8 [T, H, W, 3] RGB into `path` and return it; the suffix chooses the container.

    With the default pixel format height and width must be even; "yuv444p" takes any size. An mp4 has its index at the
    front, as downloaded ones do, so that a truncated file still opens. It gets `sound_seconds` of silence.
    """
    options = {"movflags": "faststart"} if path.suffix == ".mp4" else {}
    with av.open(str(path), "w", options=options) as container:
        stream = container.add_stream(codec, rate=Fraction(fps).limit_denominator(1001))
        assert isinstance(stream, av.VideoStream)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = pixel_format
        if codec == "libx264":
            stream.options = {"crf": "12", "preset": "veryfast"}
        sound = container.add_stream("aac", rate=16000) if sound_seconds else None
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
        if sound:
            silence = np.zeros((1, 16000 * sound_seconds), np.float32)
            samples = av.AudioFrame.from_ndarray(silence, format="fltp", layout="mono")
            samples.sample_rate = 16000
            container.mux(sound.encode(samples))
            container.mux(sound.encode())
    return path


def flag_rotation(path: Path) -> Path:
    """Mark an mp4 file as rotated by a quarter turn, as phones do. Its frames stay as they are."""
    content = bytearray(path.read_bytes())
    matrix = content.index(b"tkhd") + 44  # ISO/IEC 14496-12: after 40 bytes of a version 0 track header
    content[matrix : matrix + 36] = struct.pack(">9i", 0, 1 << 16, 0, -1 << 16, 0, 0, 0, 0, 1 << 30)
    path.write_bytes(content)
    return path


def cut(source: Path, part: float) -> Path:
    """Write a file beside `source` with only the first part of its bytes, and return its path."""
    path = source.with_name(f"cut_{source.name}")
    content = source.read_bytes()
    path.write_bytes(content[: int(len(content) * part)])
    return path


def noise(n_frames: int) -> np.ndarray:
    """Return frames uint8 [T, 64, 64, 3] that do not compress: half of the bytes hold half of the frames."""
    return np.random.default_rng(0).integers(0, 256, (n_frames, 64, 64, 3), dtype=np.uint8)


def grey_ramp(n_frames: int, height: int = 32, width: int = 48, step: int = 4) -> np.ndarray:
    """Return uniformly grey frames uint8 [T, H, W, 3]. Frame f has 16 + step * f, which `frame_numbers` reads back."""
    levels = 16 + step * np.arange(n_frames)
    assert levels[-1] <= 240, "too many frames for the 8 bits of a grey level"
    return np.broadcast_to(levels.astype(np.uint8)[:, None, None, None], (n_frames, height, width, 3)).copy()


def frame_numbers(frames: np.ndarray, step: int = 4) -> list[int]:
    """Return the frame numbers of decoded `grey_ramp` frames [K, H, W, 3], the last three axes in any order."""
    levels = frames.reshape(len(frames), -1).mean(axis=1)
    return np.rint((levels - 16) / step).astype(int).tolist()


def write_damaged_video(path: Path) -> int:
    """Write a video of 60 frames with a few wrong bytes in its middle that FFmpeg notices; return the number of the
    frame that FFmpeg marks."""
    blocks = noise(60)[:, :8, :8].repeat(8, axis=1).repeat(8, axis=2)
    whole = write_video(path, blocks).read_bytes()
    for place in range(len(whole) // 2, len(whole)):
        path.write_bytes(whole[:place] + bytes(16) + whole[place + 16 :])
        with av.open(str(path)) as container:
            marks = [frame.is_corrupt for frame in container.decode(video=0)]
        if marks.count(True) == 1 and len(marks) == 60:
            return marks.index(True)
    raise AssertionError("FFmpeg marks no damage")
