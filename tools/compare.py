"""Compares two runs of action recognition on the same videos, or the fusions and views of one run.

    python -m tools.report compare A/predictions.csv B/predictions.csv    top-1 of both, and whether they differ
    python -m tools.report compare A/predictions.csv                      each fusion of the views, and each view alone
    python -m tools.report compare A/predictions.csv B/predictions.csv --subset half.txt --fusion softmax

The saved scores suffice: no model runs. The scores are in predictions.npz, so copy it together with the csv.
The test is McNemar's (Psychometrika 12, 1947), exact and two-sided: only videos that one run gets right and the other
wrong say which run is better, and if neither is, each of them is a fair coin's toss. A video whose highest score is
shared by several classes counts as wrong there; in top-1 it counts by expectation.
"""

import argparse
import math
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from dataloaders.quoting import shorten, some
from engine.messages import print_error, print_result
from engine.tasks.predictions import Predictions, read_predictions, read_subset
from engine.tasks.recognition_metrics import FUSIONS, Array, predicted, recognition_metrics, tied_at_top
from tools.report import METRICS, markdown, number


def mcnemar(only_first: int, only_second: int) -> float:
    """Return the two-sided p-value of McNemar's exact test.

    With n = only_first + only_second, it is the probability that n tosses of a fair coin are at least as uneven.

    Args:
        only_first: number of videos that the first run gets right and the second wrong.
        only_second: number of videos the other way round.
    """
    n = only_first + only_second
    term = tail = 1  # binomial coefficients as whole numbers, which have any size and no rounding
    for k in range(1, min(only_first, only_second) + 1):
        term = term * (n - k + 1) // k
        tail += term
    return min(1.0, 2 * tail / 2**n)  # of an even split, both tails have the middle term


def align(first: Predictions, second: Predictions) -> Predictions:
    """Return the second run's predictions with videos and classes in the order of the first.

    Raises ValueError if the runs differ in their videos, in a video's label, or in their classes.
    """
    _check_same("classes", first.keys, second.keys)
    if first.keys != second.keys:
        second = second.of_classes(first.keys)
    _check_same("videos", first.ids, second.ids)
    if first.ids != second.ids:
        row = {video: at for at, video in enumerate(second.ids)}
        if len(row) < len(second.ids):
            raise ValueError("the runs list a video twice, in different orders, so its scores cannot be matched")
        second = second.of_videos(np.array([row[video] for video in first.ids], dtype=np.int64))
    if len(wrong := np.flatnonzero(first.labels != second.labels)):
        own, other = (run.keys[run.labels[wrong[0]]] for run in (first, second))
        raise ValueError(
            f"the runs disagree on the label of {len(wrong)} videos, first {shorten(first.ids[wrong[0]])}: "
            f"{shorten(own)} and {shorten(other)}; compare runs on the same lists"
        )
    return second


def _check_same(what: str, first: Sequence[str], second: Sequence[str]) -> None:
    """Raise ValueError if two runs have different names of videos or classes; their order may differ."""
    if sorted(first) == sorted(second):
        return
    parts = []
    for which, names, others in (("the first", first, second), ("the second", second, first)):
        if only := sorted(set(names) - set(others)):
            parts.append(f"{len(only)} only in {which} ({some(only, 2)})")
    raise ValueError(
        f"the runs have different {what}: {', '.join(parts) or f'{len(first)} and {len(second)}'}; compare runs on the "
        "same lists, or name what both have by --subset"
    )


def table(rows: Sequence[tuple[str, Predictions, Array]]) -> str:
    """Return a table with the accuracies of each row: a name, the predictions, and scores `[N,K]`."""
    metrics = [
        recognition_metrics(scores, run.labels, run.reversed_of, run.ids)["recognition"] for _, run, scores in rows
    ]
    names = [name for name in METRICS if any(name in values for values in metrics)]
    body = [
        [label, str(len(run.ids)), *(number(values.get(name, math.nan), 2) for name in names)]
        for (label, run, _), values in zip(rows, metrics, strict=True)
    ]
    return markdown(["", "videos", *(METRICS[name] for name in names)], body)


def of_one_run(run: Predictions, fusion: str) -> str:
    """Return the table of one run: the fusions of its views that the saved scores allow, and every view alone."""
    if run.n_views == 1:
        return table([("1 view", run, run.scores(fusion))])
    rows: list[tuple[str, Predictions, Array]] = []
    for how in [fusion] if fusion else run.possible_fusions():
        rows.append((how + (" (the run's own)" if how == run.fusion else ""), run, run.scores(how)))
    rows += [(f"view {view + 1} alone", run, run.views[:, view]) for view in range(run.n_views)]
    return table(rows)


def of_two_runs(names: Sequence[str], runs: Sequence[Predictions], fusion: str) -> str:
    """Return the table of two aligned runs and the result of the test."""
    scores = [run.scores(fusion) for run in runs]
    labels = [f"{name}, {_views(run, fusion)}" for name, run in zip(names, runs, strict=True)]
    lines = [table(list(zip(labels, runs, scores, strict=True)))]
    first, second = (
        recognition_metrics(each, run.labels)["recognition"]["top1"] for each, run in zip(scores, runs, strict=True)
    )
    ties = [tied_at_top(each) for each in scores]
    right = [(predicted(each) == run.labels) & ~tied for each, run, tied in zip(scores, runs, ties, strict=True)]
    only_first, only_second = int((right[0] & ~right[1]).sum()), int((right[1] & ~right[0]).sum())
    lines += [
        "",
        f"difference of top-1, second minus first: {second - first:+.2f} points",
        f"right in the first run only: {only_first} videos, in the second only: {only_second}",
        f"McNemar's exact test, two-sided: p = {mcnemar(only_first, only_second):.3g}",
    ]
    if tied := int((ties[0] | ties[1]).sum()):
        lines.append(f"{tied} videos have several best classes in a run; there they count as wrong in the test")
    return "\n".join(lines)


def _views(run: Predictions, fusion: str) -> str:
    return "1 view" if run.n_views == 1 else f"{fusion or run.fusion} of {run.n_views} views"


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tools.report compare",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("files", type=Path, nargs="+", help="predictions.csv, or .npz, of one run or of two")
    parser.add_argument("--fusion", choices=FUSIONS, default="", help="of the views (default: each run's own)")
    parser.add_argument("--subset", type=Path, help="text file with ids of videos or keys of classes, one a line")
    arguments = parser.parse_args(argv)
    try:
        if len(arguments.files) > 2:
            raise ValueError(f"{arguments.files[2]}: compare takes one or two files of predictions")
        runs = [read_predictions(path) for path in arguments.files]
        if arguments.subset:
            runs = [read_subset(arguments.subset, run) for run in runs]
        if len(runs) == 1:
            print_result(of_one_run(runs[0], arguments.fusion))
            return 0
        runs = [runs[0], align(*runs)]
        names = [path.resolve().parent.name for path in arguments.files]
        if names[0] == names[1]:
            names = [str(path) for path in arguments.files]
        print_result(of_two_runs(names, runs, arguments.fusion))
    except (ValueError, OSError) as error:
        print_error(error)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
