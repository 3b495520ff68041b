"""Saves what a model of action recognition says about every video, so that later questions need no second run.

Shapes: N videos, V views of a video, K classes. A run writes four files into one folder:

    predictions.npz   everything: ids, labels, keys and names of the classes, fp32 scores of every view `[N,V,K]`
    predictions.csv   for people: id, label, whether that is best (1, 0, or its share of a tie), and the five best
                      classes with their scores
    per_class.csv     for people: number of videos and accuracies of each class, and its most frequent mistake
    confusion.npz     the confusion matrix

`tools.report compare` and `tools.confusion` read predictions.npz.
"""

import csv
import json
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dataloaders.quoting import quoted
from engine.tasks.recognition_metrics import (
    FUSIONS,
    chance_of_hit,
    confusion,
    count_better,
    fuse,
    per_class,
    reversed_ids,
    tied_at_top,
)
from engine.writing import write_atomically

FORMAT = "stop-video predictions 1"
BEST = 5  # classes that predictions.csv names


@dataclass(frozen=True, eq=False)
class Predictions:
    """The scores of a split, and what its videos and classes are called."""

    ids: tuple[str, ...]  # N
    labels: np.ndarray  # int64 [N], each video's class
    keys: tuple[str, ...]  # K, the classes as lists and folders write them; no two are equal
    names: tuple[str, ...]  # K, the classes as texts write them
    views: np.ndarray  # fp32 [N,V,K]
    fusion: str  # of the views, as the run reports it: one of FUSIONS
    reversed_of: np.ndarray  # int64 [K], the class that a class shows when played backwards, or -1
    of_features: np.ndarray | None = None  # fp32 [N,K], with the fusion "features": the scores of the mean features

    def __post_init__(self) -> None:
        n, n_classes = len(self.ids), len(self.keys)
        shapes = {
            "labels": (self.labels, (n,)),
            "views": (self.views, (n, *self.views.shape[1:2], n_classes)),
            "reversed_of": (self.reversed_of, (n_classes,)),
        }
        if self.of_features is not None:
            shapes["of_features"] = (self.of_features, (n, n_classes))
        for name, (array, shape) in shapes.items():
            if array.shape != shape:
                raise ValueError(f"{name} of {n} videos and {n_classes} classes cannot have the shape {array.shape}")
        if len(self.names) != n_classes or len(set(self.keys)) < n_classes:
            raise ValueError(f"{n_classes} classes must have as many names, and keys that differ")
        if self.fusion not in FUSIONS:
            raise ValueError(f"{self.fusion!r} is no fusion of views: {', '.join(FUSIONS)}")
        if self.fusion == "features" and self.n_views > 1 and self.of_features is None:
            raise ValueError("the fusion of features needs the scores of the mean features")
        if self.labels.dtype.kind != "i" or not ((self.labels >= 0) & (self.labels < n_classes)).all():
            raise ValueError(f"labels must be numbers of the {n_classes} classes")

    @property
    def n_views(self) -> int:
        return self.views.shape[1]

    def possible_fusions(self) -> list[str]:
        """Return the fusions that `scores` can compute; a single view has one score, whatever the fusion."""
        if self.n_views == 1:
            return [self.fusion]
        return [fusion for fusion in FUSIONS if fusion != "features" or self.of_features is not None]

    def scores(self, fusion: str = "") -> torch.Tensor:
        """Return one score a class, fp64 `[N,K]`, by the run's own fusion of views or another one.

        Raises ValueError if a score is not finite, or the saved scores do not allow the fusion.
        """
        fusion = fusion or self.fusion
        if fusion == "features" and self.of_features is not None:
            return torch.tensor(self.of_features, dtype=torch.float64)
        return fuse(self.views, fusion)

    def of_videos(self, rows: np.ndarray) -> "Predictions":
        """Return the predictions for some videos, by their numbers, in the given order."""
        return replace(
            self,
            ids=tuple(self.ids[row] for row in rows),
            labels=self.labels[rows],
            views=self.views[rows],
            of_features=None if self.of_features is None else self.of_features[rows],
        )

    def of_classes(self, keys: Sequence[str]) -> "Predictions":
        """Return the predictions for the videos of some classes among these classes only, in the given order.

        They are those of a run with these classes alone: the others neither compete nor have videos. Raises KeyError
        for an unknown class.
        """
        number = {key: at for at, key in enumerate(self.keys)}
        columns = np.array([number[key] for key in keys], dtype=np.int64)
        place = np.full(len(self.keys), -1)
        place[columns] = np.arange(len(columns))
        counterpart = {self.keys[c]: self.keys[other] for c, other in enumerate(self.reversed_of) if other >= 0}
        chosen = self.of_videos(np.flatnonzero(place[self.labels] >= 0))
        return replace(
            chosen,
            labels=place[chosen.labels],
            keys=tuple(keys),
            names=tuple(self.names[column] for column in columns),
            views=chosen.views[:, :, columns],
            reversed_of=reversed_ids(keys, counterpart),
            of_features=None if chosen.of_features is None else chosen.of_features[:, columns],
        )


def folder_of_predictions(output_dir: Path, training: bool) -> Path:
    """Return where a run saves its predictions: in its folder, but in `eval` there for an evaluation in the folder of a
    training, whose own predictions stay."""
    try:
        settings = json.loads((output_dir / "config.json").read_text())
    except (OSError, ValueError):
        return output_dir
    is_of_a_training = isinstance(settings, dict) and settings.get("do_train") is True
    return output_dir / "eval" if is_of_a_training and not training else output_dir


def write_predictions(folder: Path, predictions: Predictions) -> None:
    """Write the four files into a folder, each completely or not at all. Only the main process may call this.

    Raises ValueError if a score is NaN or infinite, OSError if a file cannot be written.
    """
    scores, labels = predictions.scores(), predictions.labels
    matrix = confusion(scores, labels)
    write_atomically(folder / "predictions.npz", lambda path: _save(path, _arrays(predictions)))
    write_atomically(folder / "predictions.csv", lambda path: _write_csv(path, _rows(predictions, scores)))
    write_atomically(folder / "per_class.csv", lambda path: _write_csv(path, _class_rows(predictions, scores)))
    write_atomically(
        folder / "confusion.npz",
        lambda path: _save(
            path,
            {
                "confusion": matrix,  # int64 [K,K], rows are the truth; of tied classes the first is predicted
                "tied": np.int64(tied_at_top(scores).sum()),  # videos with several best classes
                "keys": np.array(predictions.keys, dtype=np.str_),
                "names": np.array(predictions.names, dtype=np.str_),
            },
        ),
    )


def read_predictions(path: Path) -> Predictions:
    """Read the predictions of a run, from predictions.npz or from the predictions.csv beside it.

    Raises:
        FileNotFoundError: one of the two files is missing, or the path is a folder.
        ValueError: a file is damaged or is none of a run, or the csv has other videos or labels than the npz.
    """
    saved = path.with_suffix(".npz")
    for file in (path, saved):
        if file.is_dir():
            raise FileNotFoundError(f"{file}: is a folder; name the predictions.csv in it")
        if not file.is_file():
            beside = "" if file == path else f"; {path.name} has no scores of all classes, so copy both files"
            raise FileNotFoundError(f"{file}: no such file; an evaluation of recognition writes it{beside}")
    try:
        loaded = np.load(saved, allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            raise ValueError("it is a single array")
        with loaded:
            if "format" not in loaded or str(loaded["format"]) != FORMAT:
                raise ValueError("it has another format")
            arrays = dict(loaded)
        predictions = Predictions(
            tuple(arrays["ids"].tolist()), arrays["labels"], tuple(arrays["keys"].tolist()),
            tuple(arrays["names"].tolist()), arrays["views"], str(arrays["fusion"]), arrays["reversed_of"],
            arrays.get("of_features"),
        )  # fmt: skip
    except (ValueError, KeyError, EOFError, AttributeError, zipfile.BadZipFile) as error:
        raise ValueError(
            f"{saved}: does not hold the predictions of a run ({error}); evaluate again, or name another file"
        ) from error
    if path != saved:
        _check_csv(path, predictions)
    return predictions


def read_subset(path: Path, predictions: Predictions) -> Predictions:
    """Return the predictions for the subset that a text file names: ids of videos, or keys of classes, one a line.

    With classes, only their videos count and only they compete, as in a run with these classes alone.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is not text, is empty, names something unknown or twice, or all lines are ids and classes at
            once.
    """
    try:
        content = path.read_text(encoding="utf-8-sig", errors="surrogateescape")
    except OSError as error:
        raise OSError(f"--subset {path}: cannot be read ({error.strerror}); name a text file") from error
    lines = [line for line in content.split("\n") if line.strip()]
    ids, keys = set(predictions.ids), set(predictions.keys)
    known = ids | keys
    lines = [line if line in known else line.strip() for line in lines]  # an id may begin with a space
    if not lines:
        raise ValueError(f"--subset {path}: is empty; name ids of videos or keys of classes, one a line")
    chosen = set(lines)
    if len(chosen) < len(lines):
        twice = next(line for line in lines if lines.count(line) > 1)
        raise ValueError(f"--subset {path}: names {quoted(twice)} twice; delete one of the lines")
    if chosen <= ids and chosen <= keys:
        raise ValueError(f"--subset {path}: its lines are ids of videos and also keys of classes; add a line of one")
    if chosen <= ids:
        return predictions.of_videos(np.flatnonzero([video in chosen for video in predictions.ids]))
    if chosen <= keys:
        return predictions.of_classes([key for key in predictions.keys if key in chosen])
    unknown = next((line for line in lines if line not in known), None)
    if unknown is not None:
        raise ValueError(
            f"--subset {path}: {quoted(unknown)} is no id of a video and no key of a class in the predictions; "
            "correct the line"
        )
    raise ValueError(f"--subset {path}: has ids of videos and keys of classes; name either ids or classes")


def _arrays(predictions: Predictions) -> dict[str, np.ndarray]:
    arrays = {
        "format": np.array(FORMAT),
        "ids": np.array(predictions.ids, dtype=np.str_),
        "labels": predictions.labels.astype(np.int64),
        "keys": np.array(predictions.keys, dtype=np.str_),
        "names": np.array(predictions.names, dtype=np.str_),
        "views": predictions.views.astype(np.float32, copy=False),
        "fusion": np.array(predictions.fusion),
        "reversed_of": predictions.reversed_of.astype(np.int64),
    }
    if predictions.of_features is not None:
        arrays["of_features"] = predictions.of_features.astype(np.float32, copy=False)
    return arrays


def _save(path: Path, arrays: dict[str, Any]) -> None:
    with open(path, "wb") as file:  # by name, numpy would add an ending
        np.savez(file, **arrays)


def _write_csv(path: Path, rows: Iterator[Sequence[object]]) -> None:
    # A file name need not be UTF-8; its bytes are written as they are.
    with open(path, "w", newline="", encoding="utf-8", errors="surrogateescape") as file:
        csv.writer(file, lineterminator="\n").writerows(rows)


def _rows(predictions: Predictions, scores: torch.Tensor) -> Iterator[Sequence[object]]:
    """Yield the rows of predictions.csv. "right" is the expectation over ties, so its mean is the top-1 accuracy."""
    best = min(BEST, len(predictions.keys))
    yield [
        "id", "label", "right",
        *(f"class {place}" for place in range(1, best + 1)), *(f"score {place}" for place in range(1, best + 1)),
    ]  # fmt: skip
    right = chance_of_hit(*count_better(scores, torch.tensor(predictions.labels)), 1)
    order = scores.sort(dim=1, descending=True, stable=True).indices[:, :best]  # of tied classes the first
    top = scores.gather(1, order).tolist()
    for row, video in enumerate(predictions.ids):
        classes = [predictions.keys[c] for c in order[row].tolist()]
        label = predictions.keys[predictions.labels[row]]
        yield [video, label, f"{right[row]:.4g}", *classes, *(f"{score:.6g}" for score in top[row])]


def _class_rows(predictions: Predictions, scores: torch.Tensor) -> Iterator[Sequence[object]]:
    """Yield the rows of per_class.csv; accuracies of a class without videos are empty."""
    yield ["class", "name", "videos", "top1", "top5", "mistaken for", "mistakes"]
    for own, result in enumerate(per_class(scores, predictions.labels)):
        other = "" if result.mistaken_for is None else predictions.keys[result.mistaken_for]
        accuracies = ["" if share is None else f"{share:.3f}" for share in (result.top1, result.top5)]
        yield [predictions.keys[own], predictions.names[own], result.videos, *accuracies, other, result.mistakes]


def _check_csv(path: Path, predictions: Predictions) -> None:
    """Raise ValueError if a predictions.csv lists other videos or labels than its npz."""
    try:
        with open(path, newline="", encoding="utf-8-sig", errors="surrogateescape") as file:
            rows = [row[:2] for row in csv.reader(file, strict=True) if row]
    except csv.Error as error:
        raise ValueError(f"{path}: is not a csv of predictions ({error}); name the file that a run wrote") from error
    if rows[:1] != [["id", "label"]]:
        raise ValueError(f"{path}: is not a csv of predictions; an evaluation of recognition writes one")
    labels = [predictions.keys[label] for label in predictions.labels]
    if rows[1:] != [list(row) for row in zip(predictions.ids, labels, strict=True)]:
        raise ValueError(
            f"{path}: has other videos or labels than {path.with_suffix('.npz').name} beside it, which has the scores; "
            "restore the file that the run wrote, and choose videos by --subset"
        )
