"""Frame sampling against plain loops, against numbers worked out by hand, and as properties."""

from unittest.mock import Mock

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataloaders.frame_sampling import (
    at_frame_rate,
    dense_random,
    dense_views,
    in_window,
    on_screen,
    released_evaluation,
    released_training,
    released_views,
    segment_centres,
    segment_random,
    segment_views,
    uniform,
    uniform_views,
)

counts = st.integers(1, 5000)
frames_wanted = st.integers(1, 80)


def taken_second_by_second(n_frames: int, fps: float, rate: int) -> list[int]:
    """Run CLIP4Clip's extraction as a loop: in each whole second, the first `rate` of every `fps // rate`-th frame."""
    second = int(fps)
    spacing = max(1, second // rate)
    numbers = []
    for start in range(0, n_frames, second):
        numbers += [start + k * spacing for k in range(rate) if k * spacing < second and start + k * spacing < n_frames]
    return numbers


@given(counts, st.floats(1, 120), st.integers(1, 40))
def test_whole_rates_go_second_by_second(n_frames, fps, rate):
    assert at_frame_rate(n_frames, fps, rate).tolist() == taken_second_by_second(n_frames, fps, rate)


def test_one_frame_a_second_of_a_typical_clip():
    # 29.97 counts as 29 frames a second: the second frame taken is number 29, not 30
    assert at_frame_rate(100, 29.97, 1).tolist() == [0, 29, 58, 87]
    assert at_frame_rate(30, 10, 3).tolist() == [0, 3, 6, 10, 13, 16, 20, 23, 26]


def test_fractional_rates_are_spread_over_seconds():
    assert at_frame_rate(100, 10, 0.5).tolist() == [0, 20, 40, 60, 80]
    assert at_frame_rate(10, 10, 2.5).tolist() == [0, 4, 8]


def test_rate_zero_keeps_every_frame_and_asks_for_no_fps():
    assert at_frame_rate(4, 0.0, 0).tolist() == [0, 1, 2, 3]


@given(counts, st.floats(0.01, 1e9), st.floats(0, 1000))
def test_candidates_begin_at_the_first_frame_and_increase(n_frames, fps, rate):
    numbers = at_frame_rate(n_frames, fps, rate)
    assert numbers.dtype == np.int64
    assert numbers[0] == 0
    assert numbers[-1] < n_frames
    assert (np.diff(numbers) > 0).all()


def moments(bound: float) -> st.SearchStrategy[float | None]:
    return st.one_of(st.none(), st.floats(-1, bound), st.integers(-1, int(bound)).map(float))


@given(st.lists(st.integers(1, 4000), min_size=1, max_size=30), moments(60), moments(60))
def test_a_window_holds_the_frames_on_screen_at_one_of_its_moments(gaps, start, end):
    """The result equals a look at every millisecond, the clock of the frames."""
    times = np.cumsum([0, *gaps]) / 1000
    times, ends = times[:-1], times[-1]
    first, stop = on_screen(times, ends, start, end)
    begin = 0.0 if start is None else start
    until = ends if end is None else end
    on = [f for f, leaves in enumerate([*times[1:], ends]) if max(begin, times[f]) + 2e-6 < min(until, leaves)]
    assert set(on) <= set(range(first, stop))
    assert len(range(first, stop)) - len(on) <= 2  # frames shown for less than two microseconds of the window
    assert first >= 0
    assert stop <= len(times)


@given(counts, st.integers(1, 60), st.integers(-10, 600), st.integers(0, 600))
def test_at_a_constant_rate_both_ways_give_the_same_window(n_frames, fps, start, length):
    times = np.arange(n_frames) / fps
    window = start / 10, (start + length) / 10
    by_times, by_rate = on_screen(times, n_frames / fps, *window), in_window(n_frames, fps, *window)
    assert list(range(*by_times)) == list(range(*by_rate))


def test_a_window_in_a_recording_of_a_screen():
    times = np.array([0.0, 0.1, 0.2, 5.0, 30.0])
    assert on_screen(times, 30.1, 1.0, 4.0) == (2, 3)  # the frame that stays on screen from 0.2 s
    assert on_screen(times, 30.1, 5.0, 10.0) == (3, 4)
    assert on_screen(times, 30.1, 0.15, None) == (1, 5)
    assert on_screen(times, 30.1, None, 0.1) == (0, 1)
    for empty in ((30.1, None), (5.0, 5.0), (4.0, 0.15), (None, 0.0)):
        first, stop = on_screen(times, 30.1, *empty)
        assert first >= stop


def test_uniform_by_hand():
    assert uniform(10, 4, 0).tolist() == [0, 1, 2, 3]
    assert uniform(10, 4, 1).tolist() == [6, 7, 8, 9]
    assert uniform(11, 4, 2).tolist() == [0, 3, 6, 10]  # 0, 3.33, 6.67, 10
    assert uniform(3, 4, 2).tolist() == [0, 1, 2]
    assert uniform(9, 1, 2).tolist() == [0]


@given(counts, frames_wanted, st.sampled_from([0, 1, 2]))
def test_uniform_takes_distinct_frames(n, max_frames, slice_framepos):
    positions = uniform(n, max_frames, slice_framepos)
    assert positions.dtype == np.int64
    assert len(positions) == min(n, max_frames)
    assert positions[0] >= 0
    assert positions[-1] < n
    assert (np.diff(positions) > 0).all()
    if slice_framepos == 2 and max_frames > 1:
        assert (positions[0], positions[-1]) == (0, n - 1)


def test_unknown_slice_framepos_is_refused():
    with pytest.raises(ValueError, match="--slice_framepos is 3"):
        uniform(10, 4, 3)


def test_segment_centres_by_hand():
    assert segment_centres(12, 4).tolist() == [1, 4, 7, 10]
    assert segment_centres(2, 4).tolist() == [0, 0, 1, 1]
    assert segment_centres(1, 3).tolist() == [0, 0, 0]
    assert segment_centres(7, 1).tolist() == [3]


@given(counts, frames_wanted, st.integers(0, 2**32))
def test_segments_keep_to_their_own_time(n, max_frames, seed):
    for positions in (segment_centres(n, max_frames), segment_random(n, max_frames, np.random.default_rng(seed))):
        assert positions.dtype == np.int64
        assert len(positions) == max_frames
        assert (np.diff(positions) >= 0).all()
        for i, frame in enumerate(positions.tolist()):
            # frame f is on screen during [f, f + 1), which must meet [i n / T, (i + 1) n / T)
            assert frame * max_frames < (i + 1) * n
            assert (frame + 1) * max_frames > i * n


def test_random_segments_reach_every_frame_and_nothing_else_moves_them():
    draws = [segment_random(12, 4, np.random.default_rng(seed)).tolist() for seed in range(200)]
    for segment in range(4):
        assert {draw[segment] for draw in draws} == {3 * segment, 3 * segment + 1, 3 * segment + 2}
    assert segment_random(12, 4, np.random.default_rng(7)).tolist() == draws[7]


@given(counts, frames_wanted)
def test_rounding_does_not_leave_the_segment(n, max_frames):
    # the largest number below one: its product with a segment's length may round up to the segment's end
    generator = Mock(random=lambda size: np.full(size, np.nextafter(1.0, 0.0)))
    ends = (np.arange(1, max_frames + 1) * n - 1) // max_frames
    assert segment_random(n, max_frames, generator).tolist() == ends.tolist()


def taken_by_released_code(n: int, max_frames: int, draws: list[int] | None) -> list[int]:
    """Run STOP's released loader as a loop; `draws` are the random numbers of training, None means evaluation."""
    run, numbers = n // max_frames, []
    for i in range(max_frames):
        if draws is not None and run >= 1:
            numbers.append(i * run + draws[i])
        elif draws is None and n > max_frames:
            numbers.append(int((i + 0.5) * n / max_frames))
        else:
            numbers.append(min(i, n - 1))
    return numbers


@given(counts, frames_wanted, st.integers(0, 2**32))
def test_released_sampling_is_the_released_loop(n, max_frames, seed):
    run = n // max_frames
    draws = np.random.default_rng(seed).integers(max(1, run), size=max_frames).tolist()
    training = released_training(n, max_frames, np.random.default_rng(seed))
    evaluation = released_evaluation(n, max_frames)
    assert training.tolist() == taken_by_released_code(n, max_frames, draws)
    assert evaluation.tolist() == taken_by_released_code(n, max_frames, None)
    assert training.dtype == evaluation.dtype == np.int64
    if n >= max_frames:
        assert evaluation.tolist() == segment_centres(n, max_frames).tolist()


def test_released_training_by_hand():
    draws = np.array([released_training(15, 4, np.random.default_rng(seed)) for seed in range(200)])
    for i in range(4):  # runs of 3 frames; 12, 13 and 14 are left over
        assert set(draws[:, i]) == {3 * i, 3 * i + 1, 3 * i + 2}
    for seed in range(9):
        generator = np.random.default_rng(seed)
        assert released_training(7, 4, generator).tolist() == [0, 1, 2, 3]
        assert released_training(2, 4, generator).tolist() == [0, 1, 1, 1]


# ---- several views ----


def test_views_worked_out_by_hand():
    # 12 frames in 2 segments: the views see 1/6, 3/6 and 5/6 of each
    assert segment_views(12, 2, 3).tolist() == [[1, 7], [3, 9], [5, 11]]
    assert segment_views(2, 4, 2).tolist() == [[0, 0, 1, 1], [0, 0, 1, 1]]
    # of frames 0, 2, 4, ... 10 each view takes every third
    assert uniform_views(11, 2, 3).tolist() == [[0, 6], [2, 8], [4, 10]]
    assert uniform_views(2, 4, 3).tolist() == [[0, 1]] * 3
    # a clip of 3 frames, 2 apart, spans 5 of 10 frames
    assert dense_views(10, 3, 2, 3).tolist() == [[0, 2, 4], [2, 4, 6], [5, 7, 9]]  # round(2.5) is 2
    assert dense_views(10, 3, 2, 1).tolist() == [[2, 4, 6]]
    assert dense_views(4, 4, 2, 2).tolist() == [[0, 2, 3, 3]] * 2
    assert released_views(2, 3, 2).tolist() == [[0, 1, 1]] * 2
    assert released_views(12, 2, 3).tolist() == segment_views(12, 2, 3).tolist()


@given(counts, st.integers(1, 32), st.integers(1, 10))
def test_segment_views_are_moments_of_each_segment(n, max_frames, n_views):
    views = segment_views(n, max_frames, n_views)
    for view in range(n_views):
        for segment in range(max_frames):
            # the moment (segment + (view + 1/2) / V) n / T, in whole numbers
            moment = (2 * segment * n_views + 2 * view + 1) * n
            frame = views[view, segment]
            assert frame * 2 * n_views * max_frames <= moment < (frame + 1) * 2 * n_views * max_frames


@given(counts, st.integers(1, 32), st.integers(1, 16), st.integers(1, 10))
def test_dense_views_start_where_a_plain_loop_starts(n, max_frames, stride, n_views):
    span = 1 + stride * (max_frames - 1)
    for view, clip in enumerate(dense_views(n, max_frames, stride, n_views)):
        if n < span:
            start = 0
        else:
            start = round(view * (n - span) / (n_views - 1)) if n_views > 1 else (n - span) // 2
        expected = []
        for number in range(max_frames):
            frame = start + number * stride
            expected.append(frame if frame < n else n - 1)
        assert clip.tolist() == expected


@given(counts, st.integers(1, 32), st.integers(1, 16), st.integers(1, 10))
def test_dense_views_reach_both_ends_of_a_long_video(n, max_frames, stride, n_views):
    views = dense_views(n, max_frames, stride, n_views)
    assert views.dtype == np.int64
    if n_views > 1 and n > (max_frames - 1) * stride:
        assert views[0, 0] == 0
        assert views[-1, -1] == n - 1


@given(counts, frames_wanted, st.integers(1, 10))
def test_uniform_views_have_distinct_frames_in_order(n, max_frames, n_views):
    views = uniform_views(n, max_frames, n_views)
    assert views.shape == (n_views, min(n, max_frames))
    assert (np.diff(views) > 0).all()
    assert views.min() == 0
    assert views.max() == n - 1 or (n_views, max_frames) == (1, 1)


@given(counts, frames_wanted)
def test_one_view_is_the_clip_of_an_evaluation(n, max_frames):
    assert uniform_views(n, max_frames, 1).tolist() == [uniform(n, max_frames).tolist()]
    assert segment_views(n, max_frames, 1).tolist() == [segment_centres(n, max_frames).tolist()]
    assert released_views(n, max_frames, 1).tolist() == [released_evaluation(n, max_frames).tolist()]


@given(counts, st.integers(1, 32), st.integers(1, 16), st.integers(0, 5))
def test_dense_training_draws_a_run_that_fits(n, max_frames, stride, seed):
    drawn = dense_random(n, max_frames, stride, np.random.default_rng(seed))
    assert drawn.dtype == np.int64
    if n > (max_frames - 1) * stride:
        assert (np.diff(drawn) == stride).all()
        assert 0 <= drawn[0] <= drawn[-1] < n
    else:
        assert drawn.tolist() == [min(number * stride, n - 1) for number in range(max_frames)]


def test_every_start_of_a_dense_run_is_equally_likely():
    generator = np.random.default_rng(0)
    starts = [dense_random(12, 3, 4, generator)[0] for _ in range(4000)]  # spans 9 of 12 frames
    assert np.bincount(starts) == pytest.approx([1000] * 4, rel=0.1)
