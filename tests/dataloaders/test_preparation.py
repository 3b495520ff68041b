"""Checks of a split's videos before training: which cannot be used, and how much room a cache will take."""

import shutil
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest

from dataloaders import frames as frames_module
from dataloaders.cache import FrameCache
from dataloaders.decode import VideoError, read_frames
from dataloaders.frames import FrameReader
from dataloaders.preparation import PROBES, forecast, leave_out, missing_files, read_all
from dataloaders.samples import Sample
from tests.videos import grey_ramp, write_video


def make_samples(folder: Path, count: int) -> list[Sample]:
    return [Sample(f"{n}", write_video(folder / f"{n}.mp4", grey_ramp(5 + n % 2)), ("a",)) for n in range(count)]


def cached(folder: Path, training: bool = False) -> FrameReader:
    return FrameReader(4, 32, "segment", training=training, cache=FrameCache(folder / "cache"))


def test_missing_files_are_named_by_number(tmp_path):
    samples = make_samples(tmp_path, 4)
    samples[1].path.unlink()
    samples[3].path.unlink()
    samples[3].path.symlink_to(tmp_path / "elsewhere.mp4")
    problems = missing_files(samples)
    assert list(problems) == [1, 3]
    assert problems[3] == f"{samples[3].path} is missing: download it, or correct --features_path."


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("with_cache", [False, True])
def test_every_video_is_read_as_training_would(tmp_path, training, with_cache):
    samples = make_samples(tmp_path, 6)
    samples[2].path.write_text("no video")
    samples[4].path.unlink()
    noise = np.random.default_rng(0).integers(0, 256, (60, 64, 64, 3), np.uint8)
    whole = write_video(tmp_path / "noise.mp4", noise).read_bytes()
    samples[5].path.write_bytes(whole[: len(whole) // 2])
    frames = cached(tmp_path, training)
    reader = frames if with_cache else FrameReader(4, 32, "segment", training=training)
    reasons = list(read_all(samples, reader, jobs=2))
    assert [reason is None for reason in reasons] == [True, True, False, True, False, False]
    assert "2.mp4 is not a video" in str(reasons[2])
    assert "4.mp4 does not exist" in str(reasons[4])
    assert "5.mp4 is cut off" in str(reasons[5])
    entries = len(list(tmp_path.glob("cache/*/*.safetensors")))
    assert entries == (3 if with_cache else 0)


def test_a_video_that_is_damaged_at_its_end_is_found_whatever_training_would_draw(tmp_path, monkeypatch):
    (sample,) = make_samples(tmp_path, 1)
    chosen = []

    def watched(path, choose, convert, **settings):
        return read_frames(path, lambda n, fps: chosen.append(choose(n, fps)) or chosen[-1], convert, **settings)

    monkeypatch.setattr(frames_module, "read_frames", watched)
    assert list(read_all([sample], FrameReader(4, 32, "segment", training=True), jobs=1)) == [None]
    assert chosen[0].tolist() == [4]


def test_leaving_out(tmp_path):
    samples = make_samples(tmp_path, 4)
    assert leave_out(samples, {}, 0, "test") == samples
    problems = {2: "c.mp4 is missing: download it.", 1: "b.mp4 is empty: download it."}
    assert leave_out(samples, problems, 2, "test") == [samples[0], samples[3]]
    with pytest.raises(
        ValueError,
        match=r"^b\.mp4 is empty: download it; it is the first of 2 unusable among the 4 videos of the test split, "
        r"--allow_missing is 1\.$",
    ):
        leave_out(samples, problems, 1, "test")
    with pytest.raises(ValueError, match=r"the first of 2 unusable among the 4 videos of the train split\.$"):
        leave_out(samples, problems, 0, "train")
    with pytest.raises(ValueError, match=r"the first of 4 unusable among the 4 videos"):
        leave_out(samples, dict.fromkeys(range(4), "a.mp4 is empty."), 10, "test")


@pytest.mark.parametrize("training", [False, True])
def test_the_forecast_comes_true(tmp_path, training):
    samples = make_samples(tmp_path, 3 * PROBES)
    frames = cached(tmp_path, training)
    frames.prepare(samples[1].path)
    frames.prepare(samples[3].path)
    found = forecast(samples, frames)
    assert (found.videos, found.present) == (3 * PROBES, 2)
    assert all(reason is None for reason in read_all(samples, frames, 1))
    sizes = [place.stat().st_size for place in tmp_path.glob("cache/*/*.safetensors")]
    assert len(sizes) == 3 * PROBES
    assert found.videos * found.entry_bytes == pytest.approx(sum(sizes), rel=0.05)
    assert found.missing_bytes == pytest.approx(sum(sizes) * (3 * PROBES - 2) / (3 * PROBES), rel=0.05)
    again = forecast(samples, frames)
    assert (again.present, again.missing_bytes) == (3 * PROBES, 0)
    assert str(again).startswith("48 videos of about 0.0")
    assert "48 are there, 0 MB to be written" in str(again)


def test_a_disk_that_is_too_small_is_noticed_beforehand(tmp_path, monkeypatch):
    samples = make_samples(tmp_path, PROBES + 4)
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**6, 10**6 - 9000, 9000))
    with pytest.raises(ValueError, match=r"has no room \(20 videos of about .* MB free\): name .*jpeg"):
        forecast(samples, cached(tmp_path))


def test_unreadable_videos_in_the_forecast(tmp_path):
    samples = make_samples(tmp_path, 3)
    samples[1].path.write_bytes(b"")
    frames = cached(tmp_path)
    with pytest.raises(VideoError, match=r"1\.mp4 is empty"):
        forecast(samples, frames)
    assert forecast(samples, frames, allow_missing=1).present == 2
    for sample in samples:
        sample.path.write_bytes(b"")
    with pytest.raises(VideoError, match=r"0\.mp4 is empty"):
        forecast(samples, frames, allow_missing=3)
