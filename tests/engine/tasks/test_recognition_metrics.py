"""Metrics of recognition equal plain loops, over all orders of tied classes, and do not depend on irrelevant orders."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.tasks import recognition_metrics
from engine.tasks.recognition_metrics import (
    ClassResult,
    check_scores,
    confusion,
    direction,
    fuse,
    mean_class_accuracy,
    per_class,
    predicted,
    topk_accuracy,
    worst_pairs,
)
from engine.tasks.recognition_metrics import recognition_metrics as all_metrics

MANY = st.tuples(st.integers(1, 6), st.integers(1, 5), st.integers(0, 10_000))  # videos, classes, seed


def draw(n: int, n_classes: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw scores with many ties, and labels."""
    generator = np.random.default_rng(seed)
    return generator.integers(0, 3, (n, n_classes)).astype(np.float32), generator.integers(0, n_classes, n)


def hits_in_all_orders(row: np.ndarray, own: int, k: int) -> float:
    """Return how often a class is among the first k, by listing all orders of the classes."""
    hits = []
    for order in itertools.permutations(range(len(row))):
        ranking = sorted(order, key=lambda c: -row[c])  # stable: ties stay as in `order`
        hits.append(own in ranking[:k])
    return float(np.mean(hits))


@given(MANY, st.integers(1, 6))
@settings(max_examples=40)
def test_ties_are_averaged_over_all_orders(size, k):
    scores, labels = draw(*size)
    hits = [hits_in_all_orders(row, own, k) for row, own in zip(scores, labels, strict=True)]
    assert topk_accuracy(scores, labels, k) == pytest.approx(100 * np.mean(hits))
    if k == 1:
        per_class_hits = [
            np.mean([h for h, own in zip(hits, labels, strict=True) if own == c]) for c in sorted(set(labels))
        ]
        mean, classes = mean_class_accuracy(scores, labels)
        assert mean == pytest.approx(100 * np.mean(per_class_hits))
        assert classes == len(per_class_hits)


@given(MANY)
@settings(max_examples=40)
def test_results_of_classes_are_those_of_their_videos_alone(size):
    scores, labels = draw(*size)
    for own, result in enumerate(per_class(scores, labels)):
        rows = labels == own
        assert result.videos == rows.sum()
        if not rows.any():
            assert result == ClassResult(0, None, None, None, 0)
            continue
        assert result.top1 == pytest.approx(topk_accuracy(scores[rows], labels[rows], 1))
        assert result.top5 == pytest.approx(topk_accuracy(scores[rows], labels[rows], 5))
        guesses = [int(np.argmax(row)) for row in scores[rows]]
        mistakes = [guesses.count(other) if other != own else 0 for other in range(scores.shape[1])]
        assert result.mistakes == max(mistakes)
        assert result.mistaken_for == (mistakes.index(max(mistakes)) if any(mistakes) else None)


@given(MANY)
@settings(max_examples=40)
def test_confusion_and_direction_equal_a_loop(size):
    scores, labels = draw(*size)
    n_classes = scores.shape[1]
    matrix = np.zeros((n_classes, n_classes), np.int64)
    for row, own in zip(scores, labels, strict=True):
        matrix[own, min(c for c in range(n_classes) if row[c] == row.max())] += 1
    assert (confusion(scores, labels) == matrix).all()
    assert confusion(scores, labels).dtype == np.int64

    reversed_of = np.array([c ^ 1 if c ^ 1 < n_classes - n_classes % 2 else -1 for c in range(n_classes)])
    wins = []
    for row, own in zip(scores, labels, strict=True):
        if reversed_of[own] >= 0:
            other = row[reversed_of[own]]
            wins.append(1.0 if row[own] > other else 0.5 if row[own] == other else 0.0)
    if wins:
        assert direction(scores, labels, reversed_of) == pytest.approx(100 * np.mean(wins))
    got = all_metrics(scores, labels, reversed_of)["recognition"]
    assert ("direction" in got) == (n_classes > 1)  # whatever the videos are
    if not wins:
        assert np.isnan(got.pop("direction", np.nan))
    assert got == {
        "top1": topk_accuracy(scores, labels, 1),
        "top5": topk_accuracy(scores, labels, 5),
        "mean_class": mean_class_accuracy(scores, labels)[0],
    } | ({"direction": direction(scores, labels, reversed_of)} if wins else {})


@given(MANY, st.integers(0, 10_000), st.sampled_from([-8.0, 0.25, 3.0]))
@settings(max_examples=40)
def test_order_of_videos_and_classes_and_a_constant_change_nothing(size, seed, constant):
    scores, labels = draw(*size)
    n, n_classes = scores.shape
    generator = np.random.default_rng(seed)
    videos, classes = generator.permutation(n), generator.permutation(n_classes)
    reversed_of = np.arange(n_classes)[::-1].copy()
    reversed_of[reversed_of == np.arange(n_classes)] = -1  # the middle one
    place = np.argsort(classes)  # of each class in the new order
    moved_reversed = np.array([place[reversed_of[c]] if reversed_of[c] >= 0 else -1 for c in classes])
    moved = scores[videos][:, classes] + np.float32(constant)
    got, again = (
        all_metrics(scores, labels, reversed_of)["recognition"],
        all_metrics(torch.tensor(moved), torch.tensor(place[labels[videos]]), moved_reversed)["recognition"],
    )
    assert again == pytest.approx(got, nan_ok=True)


def test_equal_scores_are_at_chance_whatever_the_labels():
    for labels in (np.zeros(10, np.int64), np.arange(10)):
        metrics = all_metrics(torch.zeros(10, 101), labels)["recognition"]
        assert metrics == pytest.approx({"top1": 100 / 101, "top5": 500 / 101, "mean_class": 100 / 101})


def test_with_few_classes_top_5_is_100():
    scores, labels = torch.tensor([[0.0, 1.0, 2.0], [0.0, 1.0, 2.0]]), torch.tensor([0, 0])
    assert all_metrics(scores, labels)["recognition"] == {"top1": 0, "top5": 100, "mean_class": 0}


def test_shares_that_are_whole_percents_are_whole():
    scores = torch.eye(2)[[0] * 29 + [1] * 21]
    assert topk_accuracy(scores, torch.zeros(50, dtype=torch.int64), 1) == 58


def test_blocks_change_nothing(monkeypatch):
    scores, labels = draw(50, 7, 0)
    views = np.random.default_rng(0).normal(size=(50, 3, 7)).astype(np.float32)
    reversed_of = [1, 0, -1, -1, 5, 4, -1]
    whole = all_metrics(scores, labels, reversed_of), per_class(scores, labels), fuse(views, "softmax")
    monkeypatch.setattr(recognition_metrics, "BLOCK", 30)
    assert all_metrics(scores, labels, reversed_of) == whole[0]
    assert per_class(scores, labels) == whole[1]
    assert torch.equal(fuse(views, "softmax"), whole[2])
    assert (predicted(scores) == scores.argmax(1)).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_any_precision_of_scores(dtype):
    scores, labels = draw(20, 6, 3)  # small whole numbers, which each precision holds
    given_so = torch.tensor(scores, dtype=dtype, requires_grad=True)
    assert all_metrics(given_so, torch.tensor(labels)) == all_metrics(scores, labels)


def test_a_model_blind_to_order_has_no_direction():
    """Each clip and its reversal get the same scores, so one is right for each one that is wrong."""
    scores = np.repeat(np.random.default_rng(0).normal(size=(9, 4)), 2, axis=0)
    labels = np.tile([2, 3], 9)
    assert direction(scores, labels, [-1, -1, 3, 2]) == 50


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_a_score_that_is_not_finite_is_an_error(bad, monkeypatch):
    monkeypatch.setattr(recognition_metrics, "BLOCK", 8)  # the rows count over blocks
    scores = torch.zeros(5, 3, 4)
    scores[3, 2, 1] = bad
    labels = torch.zeros(5, dtype=torch.int64)
    for measure in (
        lambda: topk_accuracy(scores[:, 2], labels, 1),
        lambda: mean_class_accuracy(scores[:, 2], labels),
        lambda: per_class(scores[:, 2], labels),
        lambda: confusion(scores[:, 2], labels),
        lambda: fuse(scores, "softmax"),
        lambda: check_scores(scores),
    ):
        with pytest.raises(ValueError, match=r"1 of 5 videos have a NaN or infinite score, first row 3 \(from 0\)"):
            measure()
    with pytest.raises(ValueError, match="first video 'd d'"):
        all_metrics(scores[:, 2], labels, ids=["a", "b", "c", "d d", "e"])


@pytest.mark.parametrize(
    ("scores", "labels", "k", "message"),
    [
        (np.zeros((2, 3)), np.array([0, 3]), 1, "row 1 .* has the class 3; the scores are of 3 classes"),
        (np.zeros((2, 3)), np.array([-1, 0]), 1, "row 0 .* has the class -1"),
        (np.zeros((2, 3)), np.array([0, 1, 2]), 1, "do not fit"),
        (np.zeros((2, 2, 3)), np.array([0, 1]), 1, "do not fit"),
        (np.zeros((2, 3)), np.array([0.0, 1.0]), 1, "whole numbers"),
        (np.zeros((0, 3)), np.array([], np.int64), 1, "no video"),
        (np.zeros((2, 3)), np.array([0, 1]), 0, "top-0"),
    ],
)
def test_bad_input(scores, labels, k, message):
    with pytest.raises(ValueError, match=message):
        topk_accuracy(scores, labels, k)


@pytest.mark.parametrize(
    ("reversed_of", "message"),
    [
        ([1, 0], "must be 3 numbers"),
        ([1, 0, 3], "must be 3 numbers"),
        ([0, -1, -1], "class 0 is reversed to class 0"),
        ([1, 2, 1], "class 0 is reversed to class 1, but not the other way round"),
        ([1, -1, -1], "class 0 is reversed to class 1, but not the other way round"),
        ([-1, -1, -1], "no video's class has a time-reversed counterpart"),
    ],
)
def test_bad_reversals(reversed_of, message):
    with pytest.raises(ValueError, match=message):
        direction(np.zeros((2, 3)), np.array([0, 1]), reversed_of)


def test_fusions_equal_a_loop():
    views = np.random.default_rng(0).normal(scale=30, size=(5, 3, 4)).astype(np.float32)
    for n in range(5):
        logits = sum(views[n, v].astype(np.float64) for v in range(3)) / 3
        assert fuse(views, "logits")[n].numpy() == pytest.approx(logits)
        softmax = np.zeros(4)
        for v in range(3):
            shifted = np.exp(views[n, v].astype(np.float64) - views[n, v].max())
            softmax += shifted / shifted.sum() / 3
        assert fuse(torch.tensor(views), "softmax")[n].numpy() == pytest.approx(softmax)


def test_small_probabilities_do_not_tie():
    """In fp32 the probabilities of the second and third class are 0, so that the third would share the second place."""
    views = torch.tensor([[[200.0, 60.0, 30.0]]])
    assert topk_accuracy(fuse(views, "softmax"), torch.tensor([1]), 2) == 100
    assert topk_accuracy(views.softmax(2)[:, 0], torch.tensor([1]), 2) == 50


def test_features_are_fused_before_they_are_scored():
    views = np.arange(6.0).reshape(2, 1, 3)
    assert (fuse(views, "features").numpy() == views[:, 0]).all()
    with pytest.raises(ValueError, match="--view_fusion features"):
        fuse(np.zeros((2, 3, 4)), "features")


@pytest.mark.parametrize(("shape", "how"), [((2, 3), "logits"), ((2, 0, 3), "logits"), ((2, 1, 3), "median")])
def test_fusions_that_do_not_exist(shape, how):
    with pytest.raises(ValueError, match=r"is no fusion|must have the shape"):
        fuse(np.zeros(shape), how)


def test_worst_pairs_are_the_most_frequent_mistakes():
    matrix = np.array([[9, 1, 4], [4, 9, 0], [2, 0, 9]])
    assert worst_pairs(matrix) == [(0, 2), (1, 0), (2, 0), (0, 1)]
    assert worst_pairs(matrix, 2) == [(0, 2), (1, 0)]
    assert worst_pairs(np.eye(3, dtype=np.int64)) == []
