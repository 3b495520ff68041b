"""PySlowFast's sampling against the frames that its decoder picked, against a loop, and through readers of files."""

import json
import math
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataloaders import frames as frames_module
from dataloaders.cache import FrameCache
from dataloaders.decode import DecodedFrames, VideoError
from dataloaders.frame_sampling import slowfast_clip, slowfast_random, slowfast_views
from dataloaders.frames import FrameReader
from dataloaders.views import Views
from tests.dataloaders.small_clips import numbers
from tests.videos import cut, grey_ramp, noise, write_video

counts, rates, lengths = st.integers(1, 600), st.sampled_from([5, 15, 24, 25, 30, 50, 60]), st.integers(1, 12)
strides = st.integers(1, 20)


def test_the_frames_of_the_official_decoder(reference):
    """Check all clips that the release's decoder took from made videos: training, one view and three views."""
    cases = json.loads((reference / "oracles/stdd_frames.json").read_text())
    assert len(cases) == 11
    for case in cases.values():
        n, fps = case["meta"]["frames"], case["meta"]["avg"]
        assert slowfast_views(n, fps, 8, 16, 1).tolist() == [case["test1"]]
        assert slowfast_views(n, fps, 8, 16, 3).tolist() == case["test3"]
        for draw in case["train"]:
            assert slowfast_clip(n, fps, 8, 16, draw["start"]).tolist() == draw["ids"]


def is_taken_by_a_loop(clip: np.ndarray, n: int, fps: int, stride: int, start: Fraction) -> bool:
    """Look at the time of every frame, in frames: those of the window, one more, and every so many of them.

    A position that is a whole number may be rounded down by one.
    """
    max_frames = len(clip)
    span = max(1, math.ceil(Fraction(stride * (max_frames - 1) * fps, 30)))
    size = max(Fraction(1), Fraction(stride * max_frames * fps, 30))
    window = []
    for frame in range(n):
        if frame > start + span - 1:
            window.append(frame)
            break
        if frame >= start:
            window.append(frame)
    for place, frame in enumerate(clip.tolist()):
        position = (size - 1) * place / (max_frames - 1) if max_frames > 1 else Fraction(0)
        places = {int(position), int(position) - (position.denominator == 1 and position > 0)}
        if frame not in {window[min(one, len(window) - 1)] for one in places}:
            return False
    return True


@given(counts, rates, lengths, strides, st.integers(0, 64))
def test_a_clip_is_what_the_definition_gives(n, fps, max_frames, stride, share):
    span = max(1, math.ceil(Fraction(stride * (max_frames - 1) * fps, 30)))
    start = Fraction(max(0, n - span) * share, 64)
    clip = slowfast_clip(n, fps, max_frames, stride, float(start))
    assert clip.dtype == np.int64
    assert is_taken_by_a_loop(clip, n, fps, stride, start)
    assert 0 <= clip[0] <= clip[-1] < n
    assert (np.diff(clip) >= 0).all()


@given(counts, rates, lengths, strides, st.integers(1, 10))
def test_views_start_at_even_shares_of_the_room_and_never_at_its_end(n, fps, max_frames, stride, n_views):
    views = slowfast_views(n, fps, max_frames, stride, n_views)
    span = max(1, math.ceil(Fraction(stride * (max_frames - 1) * fps, 30)))
    for view, clip in enumerate(views):
        start = Fraction(max(0, n - span) * view, n_views)
        assert is_taken_by_a_loop(clip, n, fps, stride, start)
    assert views[0, 0] == 0


def test_every_start_of_training_is_equally_likely():
    generator = np.random.default_rng(0)
    firsts = [slowfast_random(12, 30.0, 3, 4, generator)[0] for _ in range(4000)]  # spans 8 of 12 frames
    # the first frame that begins at or after a moment of [0, 4)
    assert np.bincount(firsts)[1:] == pytest.approx([1000] * 4, rel=0.1)


# ---- readers of files ----


def reader(**settings) -> FrameReader:
    return FrameReader(
        **{"max_frames": 4, "image_size": 32, "frame_sampling": "slowfast", "frame_stride": 6} | settings
    )


@pytest.fixture
def ramp(tmp_path) -> Path:
    return write_video(tmp_path / "a.mp4", grey_ramp(50), fps=15)


def test_a_reader_knows_the_rate_of_the_file(ramp, tmp_path):
    """Check that the distance of frames is in seconds: at twice the rate, twice as many frames apart."""
    assert numbers(reader()(ramp)[0]) == slowfast_views(50, 15, 4, 6, 1)[0].tolist() == [0, 3, 7, 9]
    faster = write_video(tmp_path / "b.mp4", grey_ramp(50), fps=30)
    assert numbers(reader()(faster)[0]) == slowfast_views(50, 30, 4, 6, 1)[0].tolist() == [0, 7, 15, 18]
    views, mask = reader(views=Views(3, 1)).read_views(ramp)
    assert [numbers(view) for view in views] == slowfast_views(50, 15, 4, 6, 3).tolist()
    assert mask.all()


@pytest.mark.parametrize("start", [None, 1.0])
def test_a_cache_gives_the_same_clips(ramp, tmp_path, decoded, start):
    for settings in ({"training": True}, {}, {"views": Views(3, 1)}):
        plain = reader(**settings)
        cached = replace(plain, cache=FrameCache(tmp_path / "cache"))
        drawn = set()
        for seed in range(6):
            read = [
                one.read_views(ramp, start)[0]
                if "views" in settings
                else one(ramp, np.random.default_rng(seed), start)[0]
                for one in (plain, cached)
            ]
            assert read[0].equal(read[1])
            drawn.add(tuple(numbers(read[0].flatten(0, -4))))
        assert (len(drawn) > 3) == ("training" in settings)
    assert decoded["a.mp4"] == 3 * (6 + 1)


def test_a_draw_from_the_cache_is_that_of_the_whole_file(ramp, tmp_path):
    cached = reader(training=True, cache=FrameCache(tmp_path / "cache"))
    for seed in range(5):
        expected = slowfast_random(50, 15.0, 4, 6, np.random.default_rng(seed))
        assert numbers(cached(ramp, np.random.default_rng(seed))[0]) == expected.tolist()


def test_a_video_that_ends_early_is_sampled_by_the_frames_that_it_has(tmp_path):
    path = cut(write_video(tmp_path / "a.mp4", noise(40)), 0.85)
    for training in (False, True):
        plain = reader(training=training, frame_stride=60)
        for seed in range(4):
            expected, _ = plain(path, np.random.default_rng(seed))
            got, _ = replace(plain, cache=FrameCache(tmp_path / "cache"))(path, np.random.default_rng(seed))
            assert got.equal(expected)


def test_a_file_without_a_rate_is_refused(ramp, monkeypatch):
    def without_a_rate(path, choose, convert=None, **settings) -> DecodedFrames:
        raise AssertionError(choose(50, 0.0))

    monkeypatch.setattr(frames_module, "read_frames", without_a_rate)
    with pytest.raises(
        VideoError, match=r"a\.mp4 states no frame rate: re-encode it, or pass another --frame_sampling"
    ):
        reader()(ramp)


def test_candidates_must_be_all_frames():
    with pytest.raises(ValueError, match=r"slowfast counts every frame .* pass --feature_framerate 0"):
        reader(feature_framerate=3.0)
