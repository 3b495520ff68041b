"""Pictures come out turned, mirrored and shaped as ffmpeg shows them."""

import struct
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dataloaders.decode import read_frames
from dataloaders.frames import FrameReader
from dataloaders.picture_shape import shown_width, turned
from dataloaders.transforms import resize_and_crop
from tests.ffmpeg_files import X264, ffmpeg, ffmpeg_frames, moving, write

EIGHT = [(a, b, c, d) for a, b, c, d in np.ndindex(3, 3, 3, 3) if abs((a - 1) * (d - 1) - (b - 1) * (c - 1)) == 1]
EIGHT = [tuple(int(n) - 1 for n in m) for m in EIGHT if 0 in (m[0] - 1, m[1] - 1) and 0 in (m[2] - 1, m[3] - 1)]
FLAT = [(0, 0, 0, 0), (1, 0, 0, 0), (0, 0, 0, 1)]


def with_matrix(path: Path, a: int, b: int, c: int, d: int) -> Path:
    """Write an mp4 whose header asks for this display matrix."""
    write(path, moving(3), *X264)
    content = bytearray(path.read_bytes())
    place = content.index(b"tkhd") + 44  # ISO/IEC 14496-12: after 40 bytes of a version 0 track header
    content[place : place + 36] = struct.pack(">9i", a << 16, b << 16, 0, c << 16, d << 16, 0, 0, 0, 1 << 30)
    path.write_bytes(content)
    return path


def every_frame(n_frames: int, fps: float) -> range:
    return range(n_frames)


@pytest.mark.parametrize("matrix", [*EIGHT, *FLAT], ids=str)
def test_a_display_matrix_gives_what_ffmpeg_shows(tmp_path, matrix):
    assert len(EIGHT) == 8
    path = with_matrix(tmp_path / "a.mp4", *matrix)
    size = (64, 48) if matrix[0] == 0 and matrix not in FLAT else (48, 64)
    assert np.array_equal(read_frames(path, every_frame).frames, ffmpeg_frames(path, *size))


@pytest.mark.parametrize("matrix", EIGHT, ids=str)
def test_a_display_matrix_sends_each_pixel_to_its_place(matrix):
    """Turn by the standard's definition: column p, row q go to column a p + c q, row b p + d q, moved into view."""
    a, b, c, d = matrix
    pixels = np.arange(2 * 3 * 3).reshape(2, 3, 3)
    places = {(a * p + c * q, b * p + d * q): pixels[q, p] for q in range(2) for p in range(3)}
    left, top = (min(place[axis] for place in places) for axis in (0, 1))
    shown = turned(pixels, (a, b, 0, c, d, 0, 0, 0, 1))
    assert shown.shape == ((2, 3, 3) if a else (3, 2, 3))
    for (column, row), pixel in places.items():
        assert (shown[row - top, column - left] == pixel).all()


@pytest.mark.parametrize("angle", [angle for angle in range(-180, 180, 15) if angle % 90 != 45])
def test_an_angle_in_between_is_turned_by_the_nearest_quarter(angle):
    cosine, sine = np.cos(np.radians(angle)), np.sin(np.radians(angle))
    matrix = [round(n * (1 << 16)) for n in (cosine, sine, 0, -sine, cosine, 0, 0, 0, 1)]
    pixels = np.arange(2 * 3 * 3).reshape(2, 3, 3)
    assert np.array_equal(turned(pixels, matrix), np.rot90(pixels, -round(angle / 90)))


# --- pixels that are not square ---


@pytest.fixture(scope="module", params=["16/15", "4/3", "8/9"])
def stretched(request, tmp_path_factory) -> tuple[Path, int]:
    """Return a file, and the width at which its pictures of 64 pixels are shown."""
    path = tmp_path_factory.mktemp("stretched") / "a.mp4"
    # Colours at full resolution: versions of FFmpeg place colours at half resolution differently.
    write(path, moving(5), *X264[:-1], "yuv444p", "-vf", f"setsar={request.param}")
    return path, round(64 * Fraction(request.param))


def test_frames_are_read_in_the_shape_they_are_shown_in(stretched):
    path, width = stretched
    shown = ffmpeg("-i", path, "-vf", f"scale={width}:48", "-f", "rawvideo", "-pix_fmt", "rgb24", "pipe:1")
    expected = np.frombuffer(shown, np.uint8).reshape(5, 48, width, 3).copy()
    assert np.abs(read_frames(path, every_frame, square_pixels=True).frames.astype(int) - expected).max() <= 1
    assert read_frames(path, every_frame).frames.shape == (5, 48, 64, 3)

    video, _ = FrameReader(5, 32)(path)
    assert np.abs(video.int() - resize_and_crop(expected, 32).int()).max() <= 2


def test_the_reader_gives_what_a_file_with_square_pixels_gives(stretched, tmp_path):
    path, width = stretched
    ffmpeg("-i", path, "-vf", f"scale={width}:48,setsar=1", "-c:v", "ffv1", "-pix_fmt", "yuv444p", tmp_path / "a.mkv")
    videos = [FrameReader(5, 32)(name)[0].float() for name in (path, tmp_path / "a.mkv")]
    assert (videos[0] - videos[1]).abs().mean() < 2


@pytest.mark.parametrize("aspect", ["1", "0", "100", "1/50"])
def test_square_and_absurd_pixels_change_nothing(tmp_path, aspect):
    path = write(tmp_path / "a.mp4", moving(5), *X264, "-vf", f"setsar={aspect}")
    plain = read_frames(path, every_frame).frames
    assert np.array_equal(read_frames(path, every_frame, square_pixels=True).frames, plain)
    assert torch.equal(FrameReader(5, 32)(path)[0], resize_and_crop(plain, 32))


def test_rounding_to_even_sides_is_no_pixel_shape(tmp_path):
    """`ffmpeg -vf scale=-2:48` makes such files: an even width instead of 85.33 pixels, and a note of it."""
    path = write(tmp_path / "a.mp4", moving(5, 36, 64), *X264, "-vf", "setsar=1,scale=-2:48")
    with av.open(str(path)) as container:
        assert container.streams.video[0].sample_aspect_ratio not in (None, 1)
    assert np.array_equal(
        read_frames(path, every_frame, square_pixels=True).frames, read_frames(path, every_frame).frames
    )


@given(st.integers(1, 4000), st.integers(1, 4000), st.one_of(st.none(), st.fractions(0, 1000)))
def test_a_shown_width_is_a_width(width, height, aspect):
    shown = shown_width(width, height, aspect)
    assert 1 <= shown <= 4 * width
    if aspect and 0.25 <= aspect <= 4:
        assert abs(shown - width * aspect) <= 2
    else:
        assert shown == width
