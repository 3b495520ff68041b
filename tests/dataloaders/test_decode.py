"""Decoding: the right frames in the right colours from several containers, and one sentence for every broken file."""

import functools
import os
import subprocess
import sys
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dataloaders.decode import MAX_SHORTFALL, VideoError, decoder_version, read_frames
from tests.videos import frame_numbers, grey_ramp, write_video


def every_frame(n_frames: int, fps: float) -> range:
    return range(n_frames)


def noise(n_frames: int) -> np.ndarray:
    """Frames that do not compress, so that a part of the bytes is about the same part of the frames."""
    return np.random.default_rng(0).integers(0, 256, (n_frames, 64, 64, 3), dtype=np.uint8)


def write_sound(path: Path) -> Path:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=16000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 16000), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 16000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def cut(source: Path, part: float) -> Path:
    path = source.with_name(f"cut_{source.name}")
    content = source.read_bytes()
    path.write_bytes(content[: int(len(content) * part)])
    return path


@pytest.mark.parametrize(
    ("name", "codec"),
    [("a.mp4", "libx264"), ("a.mkv", "libx264"), ("a.mov", "libx264"), ("a.avi", "mpeg4"), ("a.webm", "libvpx")],
)
def test_frames_are_those_asked_for(tmp_path, name, codec):
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


class Capture:
    """OpenCV's capture, watched from around it: garbage collecting a subclass of it crashes the interpreter."""

    opened = cv2.VideoCapture

    def __init__(self, *args, frame_count: float | None = None):
        self.capture = self.opened(*args)
        self.frame_count = frame_count
        self.calls: list[str] = []

    def __getattr__(self, name):
        self.calls.append(name)
        return getattr(self.capture, name)

    def get(self, prop):
        if prop == cv2.CAP_PROP_FRAME_COUNT and self.frame_count is not None:
            return self.frame_count
        return self.capture.get(prop)


def test_frames_after_the_last_one_chosen_are_left_alone(tmp_path, monkeypatch):
    path = write_video(tmp_path / "a.mp4", grey_ramp(30))
    capture = Capture(str(path))
    monkeypatch.setattr(cv2, "VideoCapture", lambda *args: capture)
    assert frame_numbers(read_frames(path, lambda n, fps: [2, 5, 5]).frames) == [2, 5, 5]
    assert capture.calls.count("grab") == 6
    assert capture.calls.count("retrieve") == 2
    assert "set" not in capture.calls
    assert capture.calls[-1] == "release"


def test_colours_are_rgb(tmp_path):
    red = np.zeros((2, 32, 32, 3), np.uint8)
    red[..., 0] = 220
    pixel = read_frames(write_video(tmp_path / "red.mp4", red), every_frame).frames[0, 16, 16]
    assert pixel[0] > 200
    assert pixel[1:].max() < 20


def test_odd_sizes(tmp_path):
    path = write_video(tmp_path / "odd.mp4", grey_ramp(5, 33, 47), pixel_format="yuv444p")
    frames = read_frames(path, every_frame).frames
    assert frames.shape == (5, 33, 47, 3)
    assert frame_numbers(frames) == [0, 1, 2, 3, 4]


def test_a_single_frame(tmp_path):
    frames, n_frames, _ = read_frames(write_video(tmp_path / "one.mp4", grey_ramp(1)), every_frame)
    assert (len(frames), n_frames) == (1, 1)


@pytest.mark.parametrize("name", ["two words.mp4", "вид\u0435о 视频 é.mp4", "50%d of [a].mp4", "http:a'b\"c.mp4"])
def test_names_of_any_kind(tmp_path, monkeypatch, name):
    write_video(tmp_path / "plain.mp4", grey_ramp(3)).rename(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    for path in (tmp_path / name, Path(name), name):
        assert frame_numbers(read_frames(path, every_frame).frames) == [0, 1, 2]


def test_frames_are_counted_where_the_header_does_not(tmp_path):
    path = write_video(tmp_path / "raw.h264", grey_ramp(20))
    frames, n_frames, _ = read_frames(path, every_frame)
    assert n_frames == 20
    assert frame_numbers(frames) == list(range(20))


@pytest.mark.parametrize("frame_count", [0, -1.9e14, 4e9, float("nan"), float("inf")])
def test_an_impossible_count_in_the_header_is_not_believed(tmp_path, monkeypatch, frame_count):
    path = write_video(tmp_path / "a.mp4", grey_ramp(6))
    monkeypatch.setattr(cv2, "VideoCapture", functools.partial(Capture, frame_count=frame_count))
    assert read_frames(path, every_frame).n_frames == 6


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


def test_a_video_with_too_little_left_is_refused(tmp_path):
    path = cut(write_video(tmp_path / "a.mp4", noise(60)), 0.5)
    with pytest.raises(
        VideoError, match=r"cut_a.mp4 is cut off: \d+ of its 60 frames can be decoded; download it again"
    ):
        read_frames(path, every_frame)


def test_frames_without_pixels_are_refused(tmp_path, monkeypatch):
    path = write_video(tmp_path / "a.mp4", grey_ramp(6))

    class OnlyTheFirstFrame(Capture):
        def retrieve(self):
            return self.capture.retrieve() if self.calls.count("grab") == 1 else (False, None)

    monkeypatch.setattr(cv2, "VideoCapture", OnlyTheFirstFrame)
    with pytest.raises(VideoError, match=r"a\.mp4 is damaged: its frame 4 cannot be decoded"):
        read_frames(path, lambda n, fps: [0, n - 1])


def missing(folder: Path) -> Path:
    return folder / "none.mp4"


def dangling(folder: Path) -> Path:
    (folder / "link.mp4").symlink_to(folder / "none.mp4")
    return folder / "link.mp4"


def directory(folder: Path) -> Path:
    return folder


def zero_bytes(folder: Path) -> Path:
    (folder / "zero.mp4").touch()
    return folder / "zero.mp4"


def text(folder: Path) -> Path:
    (folder / "text.mp4").write_text("<html>404 Not Found</html>\n" * 50)
    return folder / "text.mp4"


def random_bytes(folder: Path) -> Path:
    (folder / "random.mp4").write_bytes(np.random.default_rng(0).bytes(5000))
    return folder / "random.mp4"


def sound(folder: Path) -> Path:
    return write_sound(folder / "sound.mp4")


def no_index(folder: Path) -> Path:
    return cut(write_video(folder / "index_last.mov", noise(10)), 0.6)


def index_only(folder: Path) -> Path:
    path = write_video(folder / "a.mp4", noise(10))
    content = path.read_bytes()
    path.write_bytes(content[: content.index(b"mdat") + 4])
    return path


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (missing, "does not exist"),
        (dangling, "does not exist"),
        (directory, "is a directory"),
        (zero_bytes, "is empty"),
        (text, "is not a video"),
        (random_bytes, "is not a video"),
        (sound, "is not a video"),
        (no_index, "is not a video"),
        (index_only, "holds no frame|is not a video"),
    ],
)
def test_broken_files_get_one_sentence(tmp_path, make, reason):
    path = make(tmp_path)
    with pytest.raises(VideoError, match=reason) as raised:
        read_frames(path, every_frame)
    message = str(raised.value)
    assert message.startswith(str(path))
    assert "\n" not in message
    assert message.endswith(".")


@pytest.fixture(scope="module")
def good_bytes(tmp_path_factory) -> bytes:
    return write_video(tmp_path_factory.mktemp("good") / "a.mp4", noise(8)).read_bytes()


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
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
    paths = [str(text(tmp_path)), str(cut(write_video(tmp_path / "a.mp4", noise(60)), 0.5))]
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
    assert decoder_version() == f"cv2 {cv2.__version__}"
