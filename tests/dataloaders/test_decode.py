"""Decoding: the wanted frames in the right colours and no work beyond them; damage gives frames or one sentence.

test_hostile_files.py tests every kind of odd and broken file.
"""

import os
import subprocess
import sys
from pathlib import Path

import av
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dataloaders import decode
from dataloaders.cache import FrameCache
from dataloaders.decode import MAX_SHORTFALL, VideoError, decoder_version, read_frames
from dataloaders.frames import FrameReader
from preprocess.check_videos import check
from tests.videos import cut, frame_numbers, grey_ramp, noise, write_damaged_video, write_video


def every_frame(n_frames: int, fps: float) -> range:
    return range(n_frames)


@pytest.mark.parametrize(
    ("name", "codec"),
    [("a.mp4", "libx264"), ("a.mkv", "libx264"), ("a.mov", "libx264"), ("a.avi", "mpeg4"), ("a.webm", "libvpx")],
)
def test_the_frames_asked_for_are_returned(tmp_path, name, codec):
    path = write_video(tmp_path / name, grey_ramp(20, step=11), fps=5, codec=codec)
    asked = []

    def choose(n_frames, fps):
        asked.append((n_frames, fps))
        return [0, 3, 3, 19]

    frames, n_frames, fps = read_frames(path, choose)
    assert asked == [(20, 5.0)]
    assert (n_frames, fps) == (20, 5.0)
    assert frames.dtype == np.uint8
    assert frames.shape == (4, 32, 48, 3)
    assert frame_numbers(frames, step=11) == [0, 3, 3, 19]


def test_frames_after_the_last_one_chosen_are_left_alone(tmp_path, monkeypatch):
    path = write_video(tmp_path / "a.mp4", grey_ramp(30))
    decoded, converted = [], []
    pictures, rgb = decode._pictures, decode._rgb

    def watch_pictures(*args):
        for picture in pictures(*args):
            decoded.append(picture)
            yield picture

    def watch_rgb(*args):
        converted.append(args)
        return rgb(*args)

    monkeypatch.setattr(decode, "_pictures", watch_pictures)
    monkeypatch.setattr(decode, "_rgb", watch_rgb)
    assert frame_numbers(read_frames(path, lambda n, fps: [2, 5, 5]).frames) == [2, 5, 5]
    assert len(decoded) == 6
    assert len(converted) == 2


def test_colours_are_rgb(tmp_path):
    red = np.zeros((2, 32, 32, 3), np.uint8)
    red[..., 0] = 220
    pixel = read_frames(write_video(tmp_path / "red.mp4", red), every_frame).frames[0, 16, 16]
    assert pixel[0] > 200
    assert pixel[1:].max() < 20


def test_frames_are_counted_where_the_header_does_not(tmp_path):
    path = write_video(tmp_path / "raw.h264", grey_ramp(20))
    frames, n_frames, _ = read_frames(path, every_frame)
    assert n_frames == 20
    assert frame_numbers(frames) == list(range(20))


def test_a_video_that_ends_early_is_sampled_from_what_is_there(tmp_path):
    path = cut(write_video(tmp_path / "a.mp4", noise(60)), 0.9)
    asked = []

    def first_and_last(n_frames, fps):
        asked.append(n_frames)
        return [0, n_frames - 1]

    frames, n_frames, _ = read_frames(path, first_and_last)
    assert 60 * (1 - MAX_SHORTFALL) <= n_frames < 60
    assert asked == [60, n_frames]
    whole = read_frames(tmp_path / "a.mp4", lambda n, fps: [0, n_frames - 1]).frames
    assert (frames == whole).all()


def test_frames_without_pixels_are_refused(tmp_path, monkeypatch):
    path = write_video(tmp_path / "a.mp4", grey_ramp(6))
    rgb = decode._rgb

    def only_the_first(picture, *size):
        if picture.pts:
            raise av.ArgumentError(22, "Invalid argument")
        return rgb(picture, *size)

    monkeypatch.setattr(decode, "_rgb", only_the_first)
    with pytest.raises(VideoError, match=r"a\.mp4 is damaged: its frame 4 cannot be decoded"):
        read_frames(path, lambda n, fps: [0, n - 1])


def test_a_damaged_frame_is_refused_and_named(damaged, tmp_path):
    path, number = damaged
    message = rf"a\.mp4 is damaged: its frame {number}, at {number / 3:.2f} s, cannot be decoded as it was; download"
    for read in (
        lambda: read_frames(path, lambda n, fps: [0, n - 1]),
        lambda: read_frames(path, lambda n, fps: [0], start=number / 3),
        lambda: FrameReader(6, 32)(path),
        lambda: FrameReader(6, 32, "segment", cache=FrameCache(tmp_path / "cache"))(path),
    ):
        with pytest.raises(VideoError, match=message):
            read()
    finding = check(path, max_frames=12)
    assert finding.status == "broken"
    assert f"its frame {number}, at" in finding.reason
    before = read_frames(path, lambda n, fps: [0, number - 1]).frames  # nothing is wrong up to here
    assert len(before) == 2


def test_a_packet_that_is_lost_is_damage(tmp_path, monkeypatch):
    path = write_video(tmp_path / "a.mp4", grey_ramp(30))
    pictures = decode._pictures

    def lose_one(*args):
        for number, picture in enumerate(pictures(*args)):
            yield None if number == 12 else picture

    monkeypatch.setattr(decode, "_pictures", lose_one)
    with pytest.raises(VideoError, match=r"a\.mp4 is damaged: its frame 12, at "):
        read_frames(path, lambda n, fps: [0, n - 1])
    assert frame_numbers(read_frames(path, lambda n, fps: [3, 7]).frames) == [3, 7]


def test_what_comes_before_the_first_frame_is_no_damage(tmp_path, monkeypatch):
    """A television recording may begin anywhere."""
    path = write_video(tmp_path / "a.mp4", grey_ramp(10))
    pictures = decode._pictures

    def late(*args):
        yield None
        yield None
        yield from pictures(*args)

    monkeypatch.setattr(decode, "_pictures", late)
    assert frame_numbers(read_frames(path, every_frame).frames) == list(range(10))


def test_the_frame_that_a_file_ends_in_is_left_out(tmp_path):
    whole = write_video(tmp_path / "a.avi", noise(60), fps=25, codec="mpeg4")
    path = cut(whole, 0.9)
    assert [frame.is_corrupt for frame in av.open(str(path)).decode(video=0)][-1]
    found = read_frames(path, every_frame)
    assert 45 <= found.n_frames < 60
    assert np.array_equal(found.frames, read_frames(whole, every_frame).frames[: found.n_frames])


@pytest.fixture(scope="module")
def damaged(tmp_path_factory) -> tuple[Path, int]:
    """Return a damaged video and the number of the frame that FFmpeg marks."""
    path = tmp_path_factory.mktemp("damaged") / "a.mp4"
    return path, write_damaged_video(path)


@pytest.fixture(scope="module")
def good_bytes(tmp_path_factory) -> bytes:
    return write_video(tmp_path_factory.mktemp("good") / "a.mp4", noise(8)).read_bytes()


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(damage=st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), max_size=30), part=st.floats(0, 1))
def test_damage_of_any_kind_ends_in_frames_or_a_video_error(tmp_path, good_bytes, damage, part):
    content = bytearray(good_bytes)
    for place, byte in damage:
        content[int(place * (len(content) - 1))] = byte
    path = tmp_path / "damaged.mp4"
    path.write_bytes(content[: int(part * len(content))])
    try:
        frames, n_frames, fps = read_frames(path, lambda n, fps: [0, n - 1])
    except VideoError:
        return
    assert len(frames) == 2
    assert frames.dtype == np.uint8
    assert n_frames >= 1
    assert fps >= 0


def test_the_libraries_stay_silent(tmp_path):
    paths = [tmp_path / "text.mp4", cut(write_video(tmp_path / "a.mp4", noise(60)), 0.5)]
    paths[0].write_text("<html>404 Not Found</html>\n" * 50)
    script = (
        "import sys\nfrom dataloaders.decode import *\n"
        "for path in sys.argv[1:]:\n"
        "    try: read_frames(path, lambda n, fps: range(n))\n"
        "    except VideoError as error: print('refused')\n"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", script, *paths],
        cwd=root,
        env=dict(os.environ),
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "refused\nrefused\n"
    assert done.stderr == ""


def test_decoder_version_names_the_library():
    assert decoder_version().startswith(f"av {av.__version__} (libavcodec ")
