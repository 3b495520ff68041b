"""Many windows of a file in one pass give what each gives by itself, in flat memory.

Shapes: T frames, H x W pixels.
"""

import weakref
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dataloaders import decode
from dataloaders.cache import FrameCache
from dataloaders.decode import DecodedFrames, VideoError, Window, read_frames, read_windows
from dataloaders.frames import FrameReader
from tests.ffmpeg_files import X264, moving, write
from tests.videos import cut, noise, write_damaged_video, write_video

T, RATE = 60, 5
SECONDS = T / RATE
B_FRAMES = ("-bf", "3", "-b_strategy", "0")
UNEVEN = ("-vf", "setpts=(N+3*floor(N/4))/5/TB", "-fps_mode", "passthrough")


def ends(n_frames: int, fps: float) -> list[int]:
    return [0, n_frames // 2, n_frames - 1]


def alone(path: Path, window: Window) -> DecodedFrames | VideoError:
    try:
        return read_frames(path, window.choose, start=window.start, end=window.end)
    except VideoError as error:
        return error


def assert_same(found: DecodedFrames | VideoError, expected: DecodedFrames | VideoError) -> None:
    assert type(found) is type(expected)
    if isinstance(found, VideoError):
        assert str(found) == str(expected)
    else:
        assert found[1:] == expected[1:]
        assert np.array_equal(found.frames, expected.frames)


@pytest.fixture(scope="module", params=["steady.mp4", "uneven.mp4", "no_b.mkv", "part2.avi", "steady.ts"])
def video(request, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("windows") / request.param
    flags = {
        "uneven.mp4": (*X264, *B_FRAMES, *UNEVEN),
        "no_b.mkv": (*X264, "-bf", "0"),
        "part2.avi": ("-c:v", "mpeg4", "-bf", "2"),
    }
    return write(path, moving(T), *flags.get(request.param, (*X264, *B_FRAMES)))


moments = st.one_of(st.none(), st.floats(0, SECONDS + 2).map(lambda moment: round(moment, 2)))
some_windows = st.lists(st.tuples(moments, moments), max_size=8)


@settings(max_examples=5, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(pairs=some_windows, repeated=st.booleans(), thorough=st.booleans())
def test_each_window_gives_what_it_gives_alone(video, pairs, repeated, thorough):
    windows = [Window(ends, *pair) for pair in pairs * (1 + repeated)]
    found = list(read_windows(video, windows, thorough=thorough))
    assert sorted(index for index, _ in found) == list(range(len(windows)))
    for index, read in found:
        assert_same(read, alone(video, windows[index]))


@settings(max_examples=4, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(pairs=some_windows, sampling=st.sampled_from(["uniform", "segment"]), rate=st.sampled_from([0.0, 2.0]))
def test_a_reader_gives_the_same_clips_as_for_each_window(video, pairs, sampling, rate):
    reader = FrameReader(4, 32, sampling, feature_framerate=rate)
    expected, errors = {}, {}
    for index, pair in enumerate(pairs):
        try:
            expected[index] = reader(video, None, *pair)
        except VideoError as error:
            errors[index] = str(error)
    found, raised = {}, ""
    try:
        for index, clip, mask in reader.read_windows(video, pairs):
            found[index] = clip, mask
    except VideoError as error:
        raised = str(error)
    assert raised == (errors[min(errors)] if errors else "")
    assert found.keys() == expected.keys()
    for index, (clip, mask) in found.items():
        assert torch.equal(clip, expected[index][0])
        assert torch.equal(mask, expected[index][1])


@pytest.mark.parametrize("encoding", ["raw", "jpeg"])
@pytest.mark.parametrize("training", [False, True])
def test_windows_go_through_the_cache(tmp_path, encoding, training, decoded_frames):
    path = write(tmp_path / "a.mp4", moving(T), *X264, *B_FRAMES)
    windows = [(0.0, 4.0), (2.0, 6.0), (None, 3.0)]
    alone, together = (
        FrameReader(4, 32, "segment", training=training, cache=FrameCache(tmp_path / name, encoding))
        for name in ("alone", "together")
    )
    expected = [alone(path, np.random.default_rng(0), *window) for window in windows]
    together.prepare(path, *windows[1])
    decoded_frames.clear()
    for _ in range(2):
        for index, clip, mask in together.read_windows(path, windows, np.random.default_rng(0)):
            if not training:  # in training the order of the windows decides who draws what
                assert torch.equal(clip, expected[index][0])
            assert mask.all()
        assert len(decoded_frames) <= 25
        for window in windows:
            assert together.cache_place(path, *window).is_file()
    for index, window in enumerate(windows):
        clip, _ = together(path, np.random.default_rng(0), *window)
        assert torch.equal(clip, expected[index][0])


def test_each_window_comes_when_its_last_frame_has_come(tmp_path, decoded_frames):
    path = write(tmp_path / "a.mp4", moving(T), *X264, "-bf", "0")
    windows = [Window(ends, 8, 10), Window(ends, 0, 2), Window(ends, 1, 4), Window(ends, 0, 2), Window(ends, 20, 30)]
    came = [(index, len(decoded_frames)) for index, _ in read_windows(path, windows)]
    assert came[0] == (4, 0)  # it is after the end of the video
    assert sorted(came[1:3]) == [(1, 10), (3, 10)]
    assert came[3:] == [(2, 20), (0, 50)]


def test_memory_is_flat(tmp_path):
    """No more frames are kept than the windows that are open at a moment hold."""
    path = write(tmp_path / "a.mp4", moving(120), *X264, *B_FRAMES)
    alive: list[weakref.ref] = []
    most = 0

    def count(frame: np.ndarray) -> np.ndarray:
        nonlocal most
        kept = frame.copy()
        alive.append(weakref.ref(kept))
        alive[:] = [known for known in alive if known() is not None]
        most = max(most, len(alive))
        return kept

    windows = [Window(lambda n, fps: np.arange(n), start, start + 2) for start in range(22)]
    found = 0
    for _, read in read_windows(path, windows, count):
        assert isinstance(read, DecodedFrames)
        assert len(read.frames) == 10
        found += 1
    assert found == 22
    assert most <= 10 + 1  # each second, 5 frames are in two windows


def test_nothing_is_decoded_beyond_the_last_window(tmp_path, decoded_frames):
    path = write(tmp_path / "a.mp4", moving(T), *X264, "-bf", "0")
    list(read_windows(path, [Window(ends, 2, 4), Window(ends, 0, 3)]))
    assert len(decoded_frames) == 20
    decoded_frames.clear()
    assert list(read_windows(path, [])) == []
    assert list(FrameReader(3, 32).read_windows(path, [])) == []
    assert decoded_frames == []


def test_damage_in_the_middle_leaves_the_windows_before_it(tmp_path):
    path = tmp_path / "a.mp4"
    number = write_damaged_video(path)
    pairs = [(start, start + 4.0) for start in np.arange(0.0, 16.0)][::-1]
    windows = [Window(lambda n, fps: np.arange(n), *pair) for pair in pairs]
    before = {index for index, (_, end) in enumerate(pairs) if end * 3 <= number}
    assert 0 < len(before) < len(pairs)
    reads = dict(read_windows(path, windows))
    assert {index for index, read in reads.items() if isinstance(read, DecodedFrames)} == before
    for index, read in reads.items():
        assert_same(read, alone(path, windows[index]))
    clips = {}

    def read_all() -> None:
        for index, clip, _ in FrameReader(12, 32).read_windows(path, pairs):
            clips[index] = clip

    with pytest.raises(VideoError, match=rf"a\.mp4 is damaged: its frame {number}, at "):
        read_all()
    assert clips.keys() == before
    for index, clip in clips.items():
        assert torch.equal(clip, FrameReader(12, 32)(path, None, *pairs[index])[0])


def test_windows_near_the_end_of_a_cut_file(tmp_path):
    path = cut(write_video(tmp_path / "a.mp4", noise(60)), 0.9)
    windows = [Window(ends), *(Window(ends, start, start + 3) for start in range(0, 22, 3)), Window(ends, 5)]
    reads = dict(read_windows(path, windows))
    assert len(reads) == len(windows)
    for index, read in reads.items():
        assert_same(read, alone(path, windows[index]))
    assert isinstance(reads[0], DecodedFrames)
    assert reads[0].n_frames < 60
    assert any(isinstance(read, VideoError) for read in reads.values())


def test_a_frame_without_pixels_spoils_only_the_windows_that_show_it(tmp_path, monkeypatch):
    path = write(tmp_path / "a.mp4", moving(T), *X264, *B_FRAMES)
    rgb = decode._rgb
    windows = [Window(ends, start, start + 2) for start in (0, 4, 5, 8)]
    expected = dict(read_windows(path, windows))

    def without_frame_25(picture, *size):
        if round(picture.time * RATE) == 25:
            raise decode.av.ArgumentError(22, "Invalid argument")
        return rgb(picture, *size)

    monkeypatch.setattr(decode, "_rgb", without_frame_25)
    reads = dict(read_windows(path, windows))
    for index in (0, 3):
        assert_same(reads[index], expected[index])
    for index in (1, 2):
        assert isinstance(reads[index], VideoError)


def test_a_file_that_cannot_be_read_is_refused_at_once(tmp_path):
    (tmp_path / "text.mp4").write_text("no video" * 50)
    for name, reason in (("none.mp4", "does not exist"), ("text.mp4", "is not a video")):
        with pytest.raises(VideoError, match=reason):
            next(read_windows(tmp_path / name, [Window(ends), Window(ends, 1, 2)]))
