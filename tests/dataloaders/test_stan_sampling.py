"""STAN's sampling against the frames that its release picks, against a loop, and through readers of files."""

import ast
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dataloaders.cache import FrameCache
from dataloaders.frame_sampling import stan_random, stan_views
from dataloaders.frames import FrameReader
from dataloaders.views import Views
from tests.dataloaders.small_clips import numbers
from tests.videos import grey_ramp, write_video

counts, lengths = st.integers(1, 5000), st.integers(1, 80)


class GlobalDraws:
    """Draws one whole number after another from numpy's legacy generator, as the release does."""

    def __init__(self, seed: int) -> None:
        self.state = np.random.RandomState(seed)

    def integers(self, low: np.ndarray, high: np.ndarray, endpoint: bool) -> np.ndarray:
        return np.array([self.state.randint(a, b + endpoint) for a, b in zip(low, high, strict=True)])


def test_the_frames_of_the_release(reference):
    cases = torch.load(reference / "oracles/stan.pt", weights_only=True)["sampling"]
    assert len(cases) == 56
    for case, expected in cases.items():
        n, max_frames, how = case if isinstance(case, tuple) else ast.literal_eval(case)
        ours = stan_views(n, max_frames, 1)[0] if how == "test" else stan_random(n, max_frames, GlobalDraws(0))
        assert ours.tolist() == expected, case


@given(counts, lengths, st.integers(0, 2**32))
def test_the_segments_by_a_loop(n, max_frames, seed):
    step = (n - 1) / max_frames
    edges = [round(step * i) for i in range(max_frames + 1)]
    drawn = stan_random(n, max_frames, np.random.default_rng(seed))
    assert all(first <= frame <= last for first, frame, last in zip(edges, drawn, edges[1:], strict=False))
    assert (np.diff(drawn) >= 0).all()
    assert stan_views(n, max_frames, 1).tolist() == [[edge + math.floor(step / 2) for edge in edges[:-1]]]


@given(counts, lengths, st.integers(1, 10))
def test_views_are_moments_of_each_segment(n, max_frames, n_views):
    views, step = stan_views(n, max_frames, n_views), (n - 1) / max_frames
    assert views.shape == (n_views, max_frames)
    assert views.dtype == np.int64
    assert 0 <= views.min() <= views.max() <= n - 1
    assert (np.diff(views, axis=1) >= 0).all()
    for view, clip in enumerate(views):
        inside = (2 * view + 1) * (n - 1) // (2 * n_views * max_frames)
        assert clip.tolist() == [round(step * i) + inside for i in range(max_frames)]


def test_both_ends_of_a_segment_are_drawn():
    drawn = np.stack([stan_random(9, 2, np.random.default_rng(seed)) for seed in range(200)])
    assert set(drawn[:, 0]) == {0, 1, 2, 3, 4}
    assert set(drawn[:, 1]) == {4, 5, 6, 7, 8}


@pytest.mark.parametrize("training", [False, True])
def test_readers_of_files(tmp_path, decoded, training):
    """Check thinning, a window, a cache and a short video."""
    path = write_video(tmp_path / "a.mp4", grey_ramp(20), fps=5)
    plain = FrameReader(4, 32, frame_sampling="stan", training=training)
    cached = replace(plain, cache=FrameCache(tmp_path / "cache"))
    for seed in range(3):
        expected = stan_random(20, 4, np.random.default_rng(seed)) if training else stan_views(20, 4, 1)[0]
        for reader in (plain, cached):
            video, frame_mask = reader(path, np.random.default_rng(seed))
            assert numbers(video) == expected.tolist()
            assert frame_mask.all()
    assert decoded == {"a.mp4": 4}  # three times without the cache
    thinned = replace(plain, feature_framerate=1.0)  # frames 0, 5, 10, 15
    assert set(numbers(thinned(path, np.random.default_rng(0))[0])) <= {0, 5, 10, 15}
    assert set(numbers(plain(path, np.random.default_rng(0), start=1.0, end=2.0)[0])) <= {5, 6, 7, 8, 9}
    short = write_video(tmp_path / "short.mp4", grey_ramp(1))
    assert numbers(plain(short, np.random.default_rng(0))[0]) == [0, 0, 0, 0]


def test_views_of_a_file(tmp_path):
    path = write_video(tmp_path / "a.mp4", grey_ramp(20), fps=5)
    videos, _ = FrameReader(4, 32, frame_sampling="stan", views=Views(3)).read_views(path)
    assert [numbers(video) for video in videos] == stan_views(20, 4, 3).tolist()
