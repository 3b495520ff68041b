"""Draws which classes a run of action recognition takes for which, from the predictions that it saved.

    python -m tools.confusion runs/ucf101_stop/predictions.csv --output figs/confusion.png

Up to 60 classes are drawn as a matrix: a row is a class, a column is what its videos are taken for, and the colour is
the share of the row. Of classes that are each other's reversal, one follows the other, so a model that is blind to the
order of frames shows squares of 2 x 2. For more classes, the 20 most frequent mistakes are drawn. They are printed in
any case. Of classes with equal scores, the first counts as predicted.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from dataloaders.quoting import shorten
from engine.flags import PICTURES, check_file
from engine.messages import print_error, print_result
from engine.tasks.predictions import Predictions, read_predictions, read_subset
from engine.tasks.recognition_metrics import FUSIONS, confusion, worst_pairs

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOST_CLASSES = 60  # of a matrix; with more, names could not be read
MOST_PAIRS = 20
MOST_LETTERS = 40  # of a name; longer ones are cut
CELL = 0.24  # inches
LETTER = 0.085  # inches, the mean width of a letter of FONT points
FONT = 9


def reversals_together(reversed_of: np.ndarray) -> list[int]:
    """Return the classes in their order, but with each one's reversal, by int64 `[K]`, right behind it."""
    order: list[int] = []
    for own, other in enumerate(reversed_of.tolist()):
        if own not in order:
            order += [own] if other < 0 else [own, other]
    return order


def mistakes(matrix: np.ndarray, names: Sequence[str]) -> list[str]:
    """Return one line for each of the most frequent mistakes in a confusion matrix, int64 `[K,K]`."""
    videos = matrix.sum(axis=1)
    return [
        f"{matrix[own, other]:>5} of {videos[own]:<5} {shorten(names[own])}  taken for  {shorten(names[other])}"
        for own, other in worst_pairs(matrix, MOST_PAIRS)
    ]


def draw(matrix: np.ndarray, names: Sequence[str], title: str) -> "Figure":
    """Draw a confusion matrix, int64 `[K,K]`, or with many classes its worst pairs; ValueError without matplotlib."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ValueError("the picture needs matplotlib: pip install matplotlib") from error
    figure = Figure(layout="constrained")
    short = [f"{name[: MOST_LETTERS - 1]}…" if len(name) > MOST_LETTERS else name for name in map(shorten, names)]
    (draw_matrix if len(names) <= MOST_CLASSES else draw_pairs)(figure, matrix, short)
    figure.suptitle(title, fontsize=FONT + 2, parse_math=False)
    return figure


def draw_matrix(figure: "Figure", matrix: np.ndarray, names: Sequence[str]) -> None:
    """Draw a matrix `[K,K]` with a name on every row and column; a row without videos stays white."""
    from matplotlib import colormaps

    count, margin = len(names), max(map(len, names)) * LETTER + 0.8
    figure.set_size_inches(max(count * CELL, 2) + margin + 0.9, max(count * CELL, 2) + margin + 0.4)
    axes = figure.subplots()
    share = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    picture = axes.imshow(share, cmap=colormaps["Blues"], vmin=0, vmax=1)
    axes.set_xticks(range(count), names, rotation=90, fontsize=FONT, parse_math=False)
    axes.set_yticks(range(count), names, fontsize=FONT, parse_math=False)
    axes.set_xticks(np.arange(count + 1) - 0.5, minor=True)
    axes.set_yticks(np.arange(count + 1) - 0.5, minor=True)
    axes.grid(which="minor", color="0.85", linewidth=0.4)
    axes.tick_params(which="both", length=0)
    axes.set(xlabel="taken for", ylabel="class")
    figure.colorbar(picture, ax=axes, shrink=0.6, label="share of the class's videos")
    for row, column in zip(*np.nonzero(matrix), strict=True):
        ink = "white" if share[row, column] > 0.5 else "black"
        axes.text(column, row, str(matrix[row, column]), ha="center", va="center", fontsize=FONT - 3, color=ink)


def draw_pairs(figure: "Figure", matrix: np.ndarray, names: Sequence[str]) -> None:
    """Draw the most frequent mistakes as bars, the most frequent on top."""
    pairs, videos = worst_pairs(matrix, MOST_PAIRS), matrix.sum(axis=1)
    figure.set_size_inches(12, 1.2 + 0.3 * max(len(pairs), 2))
    axes = figure.subplots()
    counts = [int(matrix[pair]) for pair in pairs]
    bars = axes.barh(range(len(pairs)), counts, color="steelblue")
    axes.bar_label(bars, [f"{matrix[own, other]} of {videos[own]}" for own, other in pairs], padding=3, fontsize=FONT)
    labels = [f"{names[own]} → {names[other]}" for own, other in pairs]
    axes.set_yticks(range(len(pairs)), labels, fontsize=FONT, parse_math=False)
    axes.set(xlabel="videos of the first class that are taken for the second", xlim=(0, 1.15 * max(counts, default=1)))
    axes.invert_yaxis()


def title_of(run: Predictions, matrix: np.ndarray, name: str) -> str:
    share = 100 * np.trace(matrix) / max(int(matrix.sum()), 1)
    return f"{shorten(name)}: {share:.1f} % of {len(run.ids)} videos on the diagonal"


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("predictions", type=Path, help="predictions.csv, or .npz, of a run")
    parser.add_argument("--output", type=Path, default=Path("confusion.png"), help="the picture")
    parser.add_argument("--fusion", choices=FUSIONS, default="", help="of the views (default: the run's own)")
    parser.add_argument("--subset", type=Path, help="text file with ids of videos or keys of classes, one a line")
    arguments = parser.parse_args(argv)
    try:
        check_file("--output", arguments.output, PICTURES)
        run = read_predictions(arguments.predictions)
        if arguments.subset:
            run = read_subset(arguments.subset, run)
        order = reversals_together(run.reversed_of)
        matrix = confusion(run.scores(arguments.fusion), run.labels)[np.ix_(order, order)]
        names = [run.names[own] for own in order]
        figure = draw(matrix, names, title_of(run, matrix, arguments.predictions.resolve().parent.name))
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(arguments.output, dpi=150)
    except (ValueError, OSError) as error:
        print_error(error)
        return 2
    print_result("\n".join([*mistakes(matrix, names), str(arguments.output)]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
