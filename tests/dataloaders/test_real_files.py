"""Real video files, and small made ones for each way in which a file misleads: they give what ffmpeg shows, and no
frame is decoded twice.

Shapes: T frames, H x W pixels.
"""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from dataloaders.decode import VideoError, read_frames
from dataloaders.frames import FrameReader
from preprocess.check_videos import check
from tests.ffmpeg_files import FFMPEG, ffmpeg_frames, shown_times

REAL = {
    "tika__testASF.asf", "metadata-extractor-images__Sony_ILCE-7M3_A7M3.mts", "media__roadtrip-vp92-10bit.webm",
    "mp4parser__MOV00006.3gp", "decord__video_90.mov", "torchcodec__discard_first_keyframe.mp4",
    "media__iibbibb_editlist_videoonly.mp4", "moviepy__no_duration.webm", "moviepy__transparent.webm",
}  # fmt: skip
MADE = {  # frames, mean frames a second
    "base.mp4": (20, 10), "hflip.mp4": (20, 10), "vflip.mp4": (20, 10), "r90h.mp4": (20, 10), "nan.mp4": (20, 10),
    "drop40.webm": (72, 18.5), "drop40.mkv": (72, 18.5), "drop40.flv": (72, 18.5), "drop40.ts": (72, 18.5),
    "b30.mp4": (30, 30), "tick600.ts": (30, 30), "remux.avi": (30, 30), "vfr.asf": (85, 8.5), "screen.mp4": (59, 2.03),
}  # fmt: skip
INTERLACED = 1.0  # mean grey levels: between the lines of a field, versions of FFmpeg place colours differently


@pytest.fixture(scope="module")
def files(reference, tmp_path_factory) -> Callable[[str], Path]:
    """Return a real or a made file by its name."""
    real, made = reference / "data" / "videos", tmp_path_factory.mktemp("made")
    if not (real / "repro.sh").is_file():
        pytest.skip("STOP_REFERENCE has no data/videos")
    subprocess.run(["bash", real / "repro.sh", made], env={"FF": FFMPEG, "PATH": "/usr/bin:/bin"}, check=True)
    return lambda name: (real if name in REAL else made) / name


@pytest.fixture(scope="module")
def facts(reference) -> dict[str, dict]:
    """Return the facts about each real file, by its name."""
    found = {fact["file"]: fact for fact in json.loads((reference / "data" / "videos" / "facts.json").read_text())}
    assert set(found) == REAL
    return found


@pytest.mark.parametrize("name", [*sorted(REAL), *MADE])
def test_frames_rate_and_verdict(files, facts, name, decoded_frames):
    path = files(name)
    fact = facts.get(name)
    n_frames, rate = (fact["frames"], fact["mean_fps"]) if fact else MADE[name]
    asked = []

    def uniform(n, fps):
        asked.append(np.linspace(0, n - 1, min(n, 12), dtype=np.int64).tolist())
        return asked[-1]

    reads = []
    for thorough in (False, True):
        decoded_frames.clear()
        found = read_frames(path, uniform, thorough=thorough)
        reads.append(found.frames)
        shape = found.frames.shape[1:3]
        assert found.n_frames == n_frames
        assert found.fps == pytest.approx(rate, rel=0.002 if fact else 0.01)
    assert len(asked) == 2
    assert len(decoded_frames) == n_frames
    assert np.array_equal(*reads)
    expected = ffmpeg_frames(path, *shape)
    assert len(expected) == n_frames
    differences = np.abs(found.frames.astype(np.int16) - expected[asked[0]]).mean(axis=(1, 2, 3))
    assert differences.max() <= (INTERLACED if name.endswith(".mts") else 0)
    if fact:
        assert asked[0] == fact["uniform12"]
        assert shape == (fact["height_shown"], fact["width_shown"])
    finding = check(path, max_frames=1)
    assert (finding.status, finding.frames, finding.reason) == ("ok", n_frames, "")


@pytest.mark.parametrize(
    ("name", "reason"),
    [("song.mp4", "holds sound and a cover picture, no video"), ("cover.png", "is not a video file")],
)
def test_what_is_no_video_is_refused(files, name, reason):
    for _ in range(2):
        with pytest.raises(VideoError, match=reason):
            FrameReader(12, 32)(files(name))


def test_windows_of_a_recording_of_a_screen(files):
    """30 frames in the first second, then one a second."""
    path = files("screen.mp4")
    every = read_frames(path, lambda n, fps: range(n)).frames
    for start, end, shown in [(5, 10, [34, 35, 36, 37, 38]), (0.5, 1, range(15, 30)), (7.5, 8.5, [36, 37])]:
        found = read_frames(path, lambda n, fps: range(n), start=start, end=end)
        assert np.array_equal(found.frames, every[list(shown)])
    video, mask = FrameReader(5, 32)(path, start=5.0, end=10.0)
    assert mask.all()
    assert np.array_equal(video, FrameReader(59, 32)(path)[0][34:39])


@pytest.mark.parametrize(
    "name", ["mp4parser__MOV00006.3gp", "tika__testASF.asf", "vfr.asf", "drop40.mkv", "tick600.ts"]
)
def test_windows_hold_what_ffmpeg_shows_in_them(files, name):
    path = files(name)
    times = shown_times(path)
    every = read_frames(path, lambda n, fps: range(n)).frames
    leaves = [*times[1:], times[-1] + 0.01]
    generator = np.random.default_rng(0)
    for start, length in zip(
        generator.uniform(0, times[-1], 12), generator.exponential(times[-1] / 4, 12), strict=True
    ):
        shown = [f for f in range(len(times)) if times[f] < start + length and leaves[f] > start]
        found = read_frames(path, lambda n, fps: range(n), start=start, end=start + length)
        assert np.array_equal(found.frames, every[shown])


@pytest.mark.parametrize(
    ("name", "rate", "taken"),
    [
        ("remux.avi", 6.0, range(0, 30, 5)),
        ("tick600.ts", 1.0, [0]),
        ("drop40.mkv", 1.0, range(0, 72, 18)),
        ("vfr.asf", 1.0, range(0, 85, 8)),
        ("tika__testASF.asf", 1.0, range(0, 108, 7)),
    ],
)
def test_thinning_out_follows_the_rate_of_the_frames(files, name, rate, taken):
    path = files(name)
    every, _ = FrameReader(108, 32)(path)
    thinned, mask = FrameReader(30, 32, feature_framerate=rate)(path)
    assert np.array_equal(thinned[mask], every[list(taken)])
