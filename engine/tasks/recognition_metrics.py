"""Computes the metrics of action recognition from scores of videos with classes, with a stated rule for ties.

Shapes: N videos, V views of a video, K classes.

The rule is that of retrieval (`engine.tasks.retrieval_metrics`): tied classes are in random order, and each accuracy is
its exact expectation over these orders. So a model that gives every class the same score gets a top-1 of 100 / K, and
not what the place of the right class in the list happens to give. A score that is NaN or infinite is an error.

Every function takes scores and labels as numpy arrays or torch tensors. Accuracies are in percent.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch

from dataloaders.quoting import quoted
from engine.tasks.retrieval_metrics import blocks, chance_of_hit, count_better

Array = np.ndarray | torch.Tensor

FUSIONS = ("logits", "softmax", "features")
BLOCK = 2**22  # scores handled at once


class ClassResult(NamedTuple):
    """The result of one class. The accuracies are None if the split has no video of the class."""

    videos: int
    top1: float | None  # percent of the class's videos: its recall
    top5: float | None
    mistaken_for: int | None  # the other class that is predicted most often for these videos; None without mistakes
    mistakes: int  # how often that class is predicted


def topk_accuracy(scores: Array, labels: Array, k: int) -> float:
    """Return the percentage of videos whose class is among the `k` classes with the highest scores.

    With ties, this is the expectation over the orders of the tied classes: a video counts
    clip((k - better) / (tied + 1), 0, 1), with the numbers of classes that beat and that tie with its own. With K <= k
    classes it is 100.

    Args:
        scores: `[N,K]`, higher is better.
        labels: integers `[N]`, each video's class, 0 to K - 1.
        k: number of guesses, at least 1.

    Raises:
        ValueError: a score is NaN or infinite, there is no video, or the shapes, the labels or `k` do not fit.
    """
    if k < 1:
        raise ValueError(f"top-{k} accuracy does not exist: k counts guesses and is at least 1")
    return _percent(chance_of_hit(*_counts(scores, labels), k))


def mean_class_accuracy(scores: Array, labels: Array) -> tuple[float, int]:
    """Return the mean over classes of the percentage of the class's videos that are recognised, and how many classes.

    Only classes with videos count. Arguments and errors are those of `topk_accuracy`.
    """
    return _mean_class(chance_of_hit(*_counts(scores, labels), 1), _as_numpy(labels))


def per_class(scores: Array, labels: Array) -> list[ClassResult]:
    """Return the result of each of the K classes; arguments and errors are those of `topk_accuracy`."""
    better, tied = _counts(scores, labels)
    labels, matrix = _as_numpy(labels), confusion(scores, labels)
    videos = np.bincount(labels, minlength=len(matrix))
    top1, top5 = (np.bincount(labels, chance_of_hit(better, tied, k), len(matrix)) for k in (1, 5))
    wrong = matrix.copy()
    np.fill_diagonal(wrong, 0)
    other = wrong.argmax(axis=1)
    return [
        ClassResult(
            int(n),
            float(100 * top1[row] / n) if n else None,
            float(100 * top5[row] / n) if n else None,
            int(other[row]) if wrong[row].any() else None,
            int(wrong[row].max()),
        )
        for row, n in enumerate(videos)
    ]


def predicted(scores: Array) -> np.ndarray:
    """Return the class with the highest score of each video, int64 `[N]`; among tied classes, the first.

    Raises ValueError if a score is NaN or infinite.
    """
    check_scores(scores)
    return np.concatenate([_block(scores, rows).argmax(dim=1).cpu().numpy() for rows in _rows(scores)])


def tied_at_top(scores: Array) -> np.ndarray:
    """Return for which videos two or more classes share the highest score, bool `[N]`."""
    return np.concatenate([_tied_at_top(_block(scores, rows)) for rows in _rows(scores)])


def _tied_at_top(scores: torch.Tensor) -> np.ndarray:
    return ((scores == scores.amax(dim=1, keepdim=True)).sum(dim=1) > 1).cpu().numpy()


def confusion(scores: Array, labels: Array) -> np.ndarray:
    """Return how often videos of a class (row) are taken for a class (column), int64 `[K,K]`.

    A video counts once, for `predicted`: of tied classes, the first. So with ties, the diagonal can differ from the
    top-1 accuracy, which is an expectation. Arguments and errors are those of `topk_accuracy`.
    """
    labels, n_classes = _check(scores, labels), scores.shape[1]
    return np.bincount(labels * n_classes + predicted(scores), minlength=n_classes**2).reshape(n_classes, n_classes)


def worst_pairs(matrix: np.ndarray, count: int = 20) -> list[tuple[int, int]]:
    """Return the most frequent mistakes as (class, class it is taken for), most frequent first, at most `count`.

    Of equally frequent mistakes, the one first in the confusion matrix, int64 `[K,K]`, comes first.
    """
    wrong = matrix.copy()
    np.fill_diagonal(wrong, 0)
    order = np.argsort(-wrong, axis=None, kind="stable")[:count]
    return [(int(cell) // len(wrong), int(cell) % len(wrong)) for cell in order if wrong.flat[cell]]


def reversed_ids(keys: Sequence[str], reversed_of: Mapping[str, str]) -> np.ndarray:
    """Return the number of each class's time-reversed counterpart, int64 `[K]`, from keys of classes.

    It is -1 for a class without counterpart, or whose counterpart is not among the `keys`.
    """
    number = {key: at for at, key in enumerate(keys)}
    return np.array([number.get(reversed_of.get(key, ""), -1) for key in keys], dtype=np.int64)


def has_reversed(labels: Array, reversed_of: Array) -> np.ndarray:
    """Return which videos show a class that has a time-reversed counterpart, bool `[N]`."""
    return _as_numpy(reversed_of)[_as_numpy(labels)] >= 0


def direction(scores: Array, labels: Array, reversed_of: Array) -> float:
    """Return the percentage of videos that score their class above its time-reversed counterpart; a tie counts half.

    The video is fixed and two classes compete. A model that averages frames gives a video and its reversal the same
    scores; so over videos that are each played both ways it gets exactly 50.

    Args:
        scores: `[N,K]`, higher is better.
        labels: integers `[N]`.
        reversed_of: integers `[K]`, the class that each class shows when played backwards; -1 for a class without.

    Raises:
        ValueError: no video's class has a counterpart, `reversed_of` is not its own inverse, or as `topk_accuracy`.
    """
    labels, reversed_of = _check(scores, labels), _as_numpy(reversed_of)
    _check_reversed(reversed_of, scores.shape[1])
    rows = np.flatnonzero(has_reversed(labels, reversed_of))
    if not len(rows):
        raise ValueError("no video's class has a time-reversed counterpart, so there is no accuracy of direction")
    own = labels[rows]
    pairs = torch.stack([_cells(scores, rows, own), _cells(scores, rows, reversed_of[own])], dim=1)
    better, tied = count_better(pairs, torch.zeros(len(rows), dtype=torch.int64, device=pairs.device))
    return _percent(1 - better - tied / 2)


def fuse(scores: Array, how: str) -> torch.Tensor:
    """Return one score a class from the scores of all views.

    logits: the mean of the views' scores. softmax: the mean of the views' probabilities. features: the caller averages
    the views' features and scores the mean; here it is allowed only for a single view, where it changes nothing.

    Args:
        scores: `[N,V,K]`.
        how: one of FUSIONS.

    Returns:
        fp64 `[N,K]`. In fp32, probabilities below 1e-45 would tie at 0, and the order of the views could decide a tie.

    Raises:
        ValueError: a score is NaN or infinite, there is no view, or the fusion is unknown or impossible.
    """
    if how not in FUSIONS:
        raise ValueError(f"{how!r} is no fusion of views; choose one of {', '.join(FUSIONS)}")
    if len(scores.shape) != 3 or not scores.shape[1]:
        raise ValueError(f"scores of views must have the shape [videos,views,classes], not {list(scores.shape)}")
    if how == "features" and scores.shape[1] > 1:
        raise ValueError(
            "scores of single views do not give the score of their mean feature; fuse by logits or softmax, or "
            "evaluate with --view_fusion features"
        )
    check_scores(scores)
    fused = torch.empty(scores.shape[0], scores.shape[2], dtype=torch.float64)
    for rows in _rows(scores):
        views = _block(scores, rows).double()
        fused[rows[0] : rows[-1] + 1] = (views.softmax(dim=2) if how == "softmax" else views).mean(dim=1)
    return fused


def recognition_metrics(
    scores: Array, labels: Array, reversed_of: Array | None = None, ids: Sequence[str] | None = None
) -> dict[str, dict[str, float]]:
    """Return all accuracies of a split, in percent.

    Args:
        scores: `[N,K]`, higher is better.
        labels: integers `[N]`.
        reversed_of: as for `direction`.
        ids: N names of the videos, for errors.

    Returns:
        `{"recognition": {"top1": ..., "top5": ..., "mean_class": ...}}`, with "direction" if any class has a
        time-reversed counterpart; it is NaN if no video is of such a class. With fewer than six classes, top5 is 100.

    Raises:
        ValueError: as `topk_accuracy`; `reversed_of` is not its own inverse.
    """
    check_scores(scores, ids)
    better, tied = _counts(scores, labels)
    right = chance_of_hit(better, tied, 1)
    metrics = {
        "top1": _percent(right),
        "top5": _percent(chance_of_hit(better, tied, 5)),
        "mean_class": _mean_class(right, _as_numpy(labels))[0],
    }
    if reversed_of is not None:
        _check_reversed(_as_numpy(reversed_of), scores.shape[1])
        if (_as_numpy(reversed_of) >= 0).any():
            is_directed = has_reversed(labels, reversed_of).any()
            metrics["direction"] = direction(scores, labels, reversed_of) if is_directed else math.nan
    return {"recognition": metrics}


def check_scores(scores: Array, ids: Sequence[str] | None = None) -> None:
    """Raise ValueError if a score in `[N,...]` is NaN or infinite; names the first such video, by `ids` if given."""
    bad: list[int] = []
    for rows in _rows(scores):
        finite = torch.isfinite(_block(scores, rows)).flatten(1).all(dim=1)
        bad += rows[~finite.cpu().numpy()].tolist()
    if bad:
        first = f"row {bad[0]} (from 0)" if ids is None else f"video {quoted(ids[bad[0]])}"
        raise ValueError(
            f"{len(bad)} of {len(scores)} videos have a NaN or infinite score, first {first}, so they have no rank"
        )


def _counts(scores: Array, labels: Array) -> tuple[np.ndarray, np.ndarray]:
    """Return `count_better` of all videos, computed in blocks: int64 `[N]` twice."""
    labels = _check(scores, labels)
    check_scores(scores)
    counts = np.empty((2, len(labels)), dtype=np.int64)
    for rows in _rows(scores):
        block = _block(scores, rows)
        counts[:, rows] = count_better(block, torch.as_tensor(labels[rows], device=block.device))
    return counts[0], counts[1]


def _mean_class(right: np.ndarray, labels: np.ndarray) -> tuple[float, int]:
    """Return the mean over classes of the mean of `right`, `[N]`, in percent, and the number of classes."""
    videos = np.bincount(labels)
    present = videos > 0
    recall = np.bincount(labels, right)[present] / videos[present]
    return _percent(recall), int(present.sum())


def _percent(shares: np.ndarray) -> float:
    return float(100 * shares.sum() / len(shares))  # whole numbers stay whole: 29 of 50 are 58 and not 57.99...


def _check(scores: Array, labels: Array) -> np.ndarray:
    """Return labels as int64 `[N]`; raise ValueError if they do not fit the scores `[N,K]`."""
    labels = _as_numpy(labels)
    if len(scores.shape) != 2 or labels.shape != (scores.shape[0],):
        shapes = f"scores {list(scores.shape)} and labels {list(labels.shape)}"
        raise ValueError(f"{shapes} do not fit: they must be [videos,classes] and [videos]")
    if not labels.size:
        raise ValueError("no video was evaluated, so there is no accuracy")
    if labels.dtype.kind not in "iu":
        raise ValueError(f"labels must be whole numbers of classes, not {labels.dtype}")
    if labels.min() < 0 or labels.max() >= scores.shape[1]:
        row = int(np.argmax((labels < 0) | (labels >= scores.shape[1])))
        raise ValueError(f"row {row} (from 0) has the class {labels[row]}; the scores are of {scores.shape[1]} classes")
    return labels.astype(np.int64)


def _check_reversed(reversed_of: np.ndarray, n_classes: int) -> None:
    """Raise ValueError if `reversed_of` is not `[K]`, or not a matching of classes."""
    classes = np.arange(n_classes)
    if reversed_of.shape != (n_classes,) or not np.isin(reversed_of, [-1, *classes]).all():
        raise ValueError(f"reversed classes must be {n_classes} numbers of classes, or -1 for a class without one")
    paired = classes[reversed_of >= 0]
    wrong = paired[(reversed_of[paired] == paired) | (reversed_of[reversed_of[paired]] != paired)]
    if len(wrong):
        raise ValueError(
            f"class {wrong[0]} is reversed to class {reversed_of[wrong[0]]}, but not the other way round; each class "
            "has at most one other as its reversal, and that has it"
        )


def _as_numpy(values: Array) -> np.ndarray:
    return values.cpu().numpy() if isinstance(values, torch.Tensor) else np.asarray(values)


def _rows(scores: Array) -> Iterator[np.ndarray]:
    """Yield numbers of rows, in order, that together hold about BLOCK scores."""
    return blocks(scores.shape[0], max(1, BLOCK // max(1, int(np.prod(scores.shape[1:])))))


def _block(scores: Array, rows: np.ndarray) -> torch.Tensor:
    block = scores[rows[0] : rows[-1] + 1]
    return block.detach() if isinstance(block, torch.Tensor) else torch.tensor(block)


def _cells(scores: Array, rows: np.ndarray, columns: np.ndarray) -> torch.Tensor:
    cells = scores[rows, columns]
    return cells.detach() if isinstance(cells, torch.Tensor) else torch.tensor(cells)
