"""Odd and broken video files: each gives ffmpeg's own frames, or one sentence that names it, the reason and the fix.
Never a black frame, never a frame from elsewhere in the video.

Shapes: T frames, H x W pixels.
"""

import re
from pathlib import Path

import numpy as np
import pytest
import torch

from dataloaders.decode import VideoError, read_frames
from dataloaders.frames import FrameReader
from dataloaders.transforms import resize_and_crop
from preprocess.check_videos import check
from tests.dataloaders.hostile_files import BAD, GOOD, Good, cut_mp4
from tests.ffmpeg_files import X264, ffmpeg_frames, moving, write

pytestmark = pytest.mark.timeout(60)  # a decoder that hangs fails too


def every_frame(n_frames: int, fps: float) -> range:
    return range(n_frames)


def spread(n_frames: int, fps: float) -> np.ndarray:
    """Return five frame numbers from the first to the last."""
    return np.linspace(0, n_frames - 1, 5).astype(int)


@pytest.fixture(scope="module", params=GOOD.values(), ids=GOOD.keys())
def good(request, tmp_path_factory) -> tuple[Path, Good, np.ndarray]:
    """Return a file, what is expected of it, and ffmpeg's frames, no two of which look alike."""
    case = request.param
    path = case.make(tmp_path_factory.mktemp("good"))
    expected = ffmpeg_frames(path, *case.size)
    assert len(expected) in (case.n_frames if isinstance(case.n_frames, range) else [case.n_frames])
    for frame, others in ((n, np.delete(expected, n, axis=0)) for n in range(len(expected))):
        assert distances(others, expected[frame]).min() > 2 * case.tolerance + 5
    return path, case, expected


def distances(frames: np.ndarray, frame: np.ndarray) -> np.ndarray:
    """Return the mean absolute difference of each frame from one frame, float [T]."""
    return np.abs(frames.astype(np.int16) - frame).mean(axis=(1, 2, 3))


def test_frames_equal_ffmpegs(good):
    path, case, expected = good
    frames, n_frames, _ = read_frames(path, every_frame)
    assert n_frames == len(expected)
    assert frames.shape == expected.shape
    assert max(distances(frames[n : n + 1], expected[n])[0] for n in range(n_frames)) <= case.tolerance


def test_chosen_frames_are_spread_over_what_ffmpeg_finds(good):
    path, case, expected = good
    for frame, number in zip(read_frames(path, spread).frames, spread(len(expected), 0), strict=True):
        assert distances(expected, frame).argmin() == number
        assert distances(expected, frame).min() <= case.tolerance


def test_every_frame_is_decoded_once_and_the_same_each_time(good, decoded_frames):
    path, case, expected = good
    first, again = (FrameReader(12, 32)(path) for _ in range(2))
    assert torch.equal(first[0], again[0])
    assert torch.equal(first[1], again[1])
    # Its header counts missing frames, so that frames are chosen again.
    times = 2 if case.make is cut_mp4 else 1
    decoded_frames.clear()
    for _ in range(2):
        read_frames(path, every_frame)
    assert sum(picture is not None for picture in decoded_frames) == 2 * times * len(expected)


def test_the_checking_command_says_the_same(good):
    path, case, expected = good
    finding = check(path, max_frames=12)
    assert (finding.status, finding.frames, (finding.height, finding.width)) == (case.status, len(expected), case.size)


def test_relative_names(good, monkeypatch):
    path, _, expected = good
    monkeypatch.chdir(path.parent)
    assert len(read_frames(path.name, every_frame).frames) == len(expected)


@pytest.mark.parametrize(("make", "reason"), BAD, ids=[make.__name__ for make, _ in BAD])
def test_broken_files_get_one_sentence(tmp_path, make, reason):
    path = make(tmp_path)
    for read in (lambda: read_frames(path, every_frame), lambda: FrameReader(12, 32)(path)):
        with pytest.raises(VideoError, match=reason) as raised:
            read()
        message = str(raised.value)
        assert message.startswith(str(path))
        assert re.search("download it again|download the video|give the path", message)
        assert "\n" not in message
        assert message.endswith(".")
    finding = check(path, max_frames=12)
    assert finding.status == ("broken" if path.is_file() else "missing")
    assert finding.frames == 0


@pytest.mark.parametrize("n_frames", [1, 5])
@pytest.mark.parametrize("frame_sampling", ["uniform", "segment", "released", "dense"])
def test_fewer_frames_than_asked_for(tmp_path, n_frames, frame_sampling):
    """Every frame that the mask calls real is a frame of the video; padding is black and masked."""
    path = write(tmp_path / "few.mp4", moving(n_frames), *X264)
    expected = resize_and_crop(ffmpeg_frames(path, 48, 64), 32)
    video, mask = FrameReader(8, 32, frame_sampling)(path)
    n_real = n_frames if frame_sampling == "uniform" else 8
    assert mask.tolist() == [True] * n_real + [False] * (8 - n_real)
    assert not video[n_real:].any()
    shown = [next(n for n in range(n_frames) if torch.equal(frame, expected[n])) for frame in video[:n_real]]
    assert shown == sorted(shown)
    assert set(shown) == set(range(n_frames))
    assert check(path, max_frames=8).status == "short"
