"""Video files made by the ffmpeg program, and the frames it decodes from any file, to compare with.

Shapes: T frames, H x W pixels.
"""

import re
import subprocess
from pathlib import Path

import numpy as np
import pytest

FFMPEG = pytest.importorskip("imageio_ffmpeg").get_ffmpeg_exe()
X264 = ("-c:v", "libx264", "-preset", "veryfast", "-crf", "12", "-pix_fmt", "yuv420p")


def ffmpeg(*arguments: str | bytes | Path, data: bytes | None = None) -> bytes:
    """Run ffmpeg with `data` as its input `pipe:0` and return its output `pipe:1`."""
    return subprocess.run([FFMPEG, "-v", "error", *arguments], input=data, capture_output=True, check=True).stdout


def moving(n_frames: int = 20, height: int = 48, width: int = 64) -> np.ndarray:
    """Return frames uint8 [T, H, W, 3] of coloured waves that move at different speeds, so that no two are alike."""
    y, x = np.mgrid[:height, :width]
    t = np.arange(n_frames)[:, None, None]
    waves = (x + 4 * t) / 7, (y + 6 * t) / 6 + 1, (x + y - 2 * t) / 9 + 2
    return np.stack([128 + 100 * np.sin(wave) for wave in waves], axis=-1).astype(np.uint8)


ENCODED: dict[tuple, bytes] = {}  # many files are made from the same one


def write(path: Path, frames: np.ndarray, *flags: str | bytes) -> Path:
    """Encode with the ffmpeg program at 5 frames a second; the suffix chooses the container."""
    key = (path.suffix, frames.shape, frames.tobytes(), flags)
    if key not in ENCODED:
        size = f"{frames.shape[2]}x{frames.shape[1]}"
        source = ("-f", "rawvideo", "-pix_fmt", "rgb24", "-s", size, "-r", "5", "-i", "pipe:0")
        ffmpeg(*source, *flags, path, data=frames.tobytes())
        ENCODED[key] = path.read_bytes()
    path.write_bytes(ENCODED[key])
    return path


def ffmpeg_frames(path: Path, height: int, width: int) -> np.ndarray:
    """Return every frame that ffmpeg decodes, uint8 [T, H, W, 3]."""
    raw = ffmpeg("-i", path, "-fps_mode", "passthrough", "-f", "rawvideo", "-pix_fmt", "rgb24", "pipe:1")
    return np.frombuffer(raw, np.uint8).reshape(-1, height, width, 3).copy()


def replace(path: Path, old: bytes, new: bytes) -> Path:
    """Replace the only occurrence of `old` in a file by `new`, of the same length."""
    content = path.read_bytes()
    assert content.count(old) == 1
    assert len(old) == len(new)
    path.write_bytes(content.replace(old, new))
    return path


def shown_times(path: Path) -> np.ndarray:
    """Return when ffmpeg shows each frame, in seconds from the start of the file, float64 [T]."""
    told = ffmpeg(
        "-i", path, "-map", "0:V:0", "-fps_mode", "passthrough", "-enc_time_base", "demux", "-f", "framemd5", "-"
    )
    clock = re.search(rb"#tb 0: (\d+)/(\d+)", told)
    assert clock
    ticks = [int(line.split(b",")[2]) for line in told.splitlines() if not line.startswith(b"#")]
    return np.array(ticks) * int(clock[1]) / int(clock[2])
