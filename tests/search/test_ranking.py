"""Arithmetic of queries, how far hits stand out, joined windows and the limit of a file, against loops."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from search.ranking import (
    above,
    bound_of_nonsense,
    combine,
    join_windows,
    limit_per_file,
    sample_gallery,
    stands_out,
    widening,
)


def test_the_sum_of_queries_is_of_unit_length_and_ignores_theirs():
    queries = np.array([[3.0, 0, 0], [0, 0.1, 0], [0, 0, 2]])
    np.testing.assert_allclose(combine(queries, np.array([1, 1, -2])), np.array([1, 1, -2]) / 6**0.5, rtol=1e-6)
    np.testing.assert_allclose(combine(queries[1:2], np.array([0.2])), [0, 1, 0])
    assert combine(queries, np.ones(3)).dtype == np.float32


def test_a_negative_weight_leads_away():
    dog, cat = np.array([[1.0, 0.2, 0], [0.2, 1, 0]])
    without = combine(np.stack([dog, cat]), np.array([1, -0.5]))
    assert without @ dog > 0
    assert without @ cat < (dog / np.linalg.norm(dog)) @ cat


@pytest.mark.parametrize(
    ("queries", "weights", "message"),
    [
        ([[1.0, 0], [1, 0]], [1.0, -1], "cancel out"),
        ([[1.0, 0], [0, 0]], [1.0, 1], "has no direction"),
        ([[1.0, 0]], [1.0, 1], r"\[2\] weights do not fit queries of shape \[1, 2\]"),
        ([[1.0, np.nan]], [1.0], "not finite"),
        ([[1.0, 0]], [0.0], "cancel out"),
        (np.empty((0, 2)), [], "do not fit"),
    ],
)
def test_what_cannot_be_combined(queries, weights, message):
    with pytest.raises(ValueError, match=message):
        combine(np.array(queries), np.array(weights))


def test_above_against_its_definition():
    random = np.random.default_rng(0)
    queries, gallery = random.standard_normal((3, 8)), random.standard_normal((50, 8))
    scores = -np.sort(-(queries @ gallery.T), axis=1)[:, :4]
    found = above(scores, queries, gallery)
    for query, row, expected in zip(queries, scores, found, strict=True):
        all_scores = [float(query @ window) for window in gallery]
        mean = sum(all_scores) / 50
        deviation = (sum((score - mean) ** 2 for score in all_scores) / 50) ** 0.5
        np.testing.assert_allclose([(score - mean) / deviation for score in row], expected, rtol=1e-4)


def test_above_of_a_gallery_without_differences():
    window = np.random.default_rng(0).standard_normal((1, 512)).astype(np.float32)
    for gallery in (window, np.repeat(window, 7, axis=0)):
        assert above(window @ window.T, window, gallery).tolist() == [[0.0]]


def test_above_says_nothing_of_what_was_not_found():
    found = above(np.array([[0.3, -np.inf]]), np.eye(2)[:1], np.random.default_rng(0).standard_normal((5, 2)))
    assert np.isfinite(found[0, 0])
    assert found[0, 1] == -np.inf


def test_a_sample_of_the_gallery():
    vectors = np.arange(20).reshape(10, 2).astype(np.float16)
    assert sample_gallery(vectors).tolist() == vectors.tolist()
    assert sample_gallery(vectors, 4)[:, 0].tolist() == [0, 6, 12, 18]
    assert sample_gallery(vectors[:0]).shape == (0, 2)
    assert sample_gallery(vectors).dtype == np.float32


def test_how_far_a_score_stands_out_from_nonsense():
    """The second window is near to everything: the same score says less of it."""
    nonsense = np.array([[0.0, 0.8], [0.2, 0.9], [0.1, 1.0]])
    windows = np.eye(2)
    deviation = np.array([0.0, 0.2, 0.1]).std()
    found = stands_out(np.array([0.9, 0.9]), windows, nonsense)
    assert found == pytest.approx([0.8 / deviation, 0.0], abs=1e-4)
    assert np.isfinite(stands_out(np.array([0.9]), windows[:1], np.zeros((3, 2)))).all()


def test_the_bound_of_nonsense():
    assert bound_of_nonsense(np.linspace(0.2, 0.4, 21)) == pytest.approx(0.39)
    with pytest.raises(ValueError, match="some texts"):
        bound_of_nonsense(np.empty(0))


def joined_by_loop(files, starts, ends) -> list[int]:
    owner = []
    for i in range(len(files)):
        hits = [j for j in range(i) if owner[j] == j and files[j] == files[i]]
        better = [j for j in hits if starts[j] < ends[i] and starts[i] < ends[j]]
        owner.append(better[0] if better else i)
    return owner


@settings(max_examples=50)
@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 12), st.integers(1, 4)), max_size=12))
def test_windows_join_the_best_hit_that_they_overlap(windows):
    files, starts, lengths = np.array(windows, np.int64).reshape(-1, 3).T
    ends = starts + lengths
    assert join_windows(files, starts / 2, ends / 2).tolist() == joined_by_loop(files, starts, ends)


def test_neighbours_join_and_what_touches_does_not():
    files = np.array([1, 1, 1, 2])
    starts = np.array([5.0, 0, 10, 5])
    assert join_windows(files, starts, starts + 10).tolist() == [0, 0, 0, 3]
    assert join_windows(files, starts, starts + 5).tolist() == [0, 1, 2, 3]


def test_near_duplicates_of_a_file_join():
    files, starts = np.array([1, 1, 1, 2]), np.array([0.0, 20, 40, 0])
    vectors = np.array([[1, 0], [0.999, 0.045], [0.6, 0.8], [1, 0]], np.float16)
    assert join_windows(files, starts, starts + 10, vectors, alike=0.99).tolist() == [0, 0, 2, 3]
    assert join_windows(files, starts, starts + 10, vectors, alike=0.9999).tolist() == [0, 1, 2, 3]


def test_the_limit_of_a_file():
    files = np.array([4, 4, 7, 4, 7, 4])
    assert limit_per_file(files, 2).tolist() == [True, True, True, False, True, False]
    assert limit_per_file(files[:0], 1).tolist() == []


@pytest.mark.parametrize(
    ("top", "count", "asked"), [(2, 300, [16, 128, 300]), (20, 100, [100]), (1, 8, [8]), (5, 0, [])]
)
def test_widening(top, count, asked):
    assert list(widening(top, count)) == asked
