"""Pictures of confusions: every name can be read, and what is dark is what is confused."""

import itertools
import sys
import warnings

import cv2
import numpy as np
import pytest

from engine.tasks.predictions import Predictions, write_predictions
from tools import confusion as tool
from tools.confusion import draw, main, mistakes, reversals_together


def write_run(folder, names: list[str], videos: int = 4, reversed_of=None, seed: int = 0) -> str:
    """Write a run that takes each second video of class c for class c + 1; return the path of its csv."""
    n_classes = len(names)
    labels = np.repeat(np.arange(n_classes), videos)
    guess = np.where(np.arange(len(labels)) % 2, (labels + 1) % n_classes, labels)
    views = np.eye(n_classes, dtype=np.float32)[guess][:, None]
    none = np.full(n_classes, -1)
    write_predictions(
        folder,
        Predictions(
            tuple(map(str, range(len(labels)))), labels, tuple(f"key {c}" for c in range(n_classes)), tuple(names),
            views, "logits", none if reversed_of is None else np.array(reversed_of),
        ),
    )  # fmt: skip
    return str(folder / "predictions.csv")


LONG = "Something colliding with something and both are being deflected"


@pytest.mark.parametrize("count", [2, 16, 60, 61])
def test_names_can_be_read(count):
    """Check that no text is outside of the picture and none of an axis' names overlap; long names and $ included."""
    names = [f"spinning counterclockwise {c}" for c in range(count)]
    names[0], names[1] = LONG, "$x_1 \\frac{ & [b] #"
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # constrained layout warns if there is no room
        figure = draw(np.roll(np.eye(count, dtype=np.int64), 1, axis=1), names, "a run: 0 % on the diagonal")
        figure.draw_without_rendering()
    axes = figure.axes[0]
    groups = [axes.get_yticklabels(), axes.get_xticklabels()] if count <= 60 else [axes.get_yticklabels()]
    for group in groups:
        assert len(group) == (count if count <= 60 else 20)
        boxes = [text.get_window_extent() for text in group]
        assert not any(one.overlaps(other) for one, other in itertools.pairwise(boxes))
    assert LONG[:39] + "…" in groups[0][0].get_text()
    texts = [*itertools.chain(*groups), *figure.texts, axes.xaxis.label, axes.yaxis.label]
    for text in (text for text in texts if text.get_text()):
        box = text.get_window_extent()
        assert figure.bbox.x0 <= box.x0 <= box.x1 <= figure.bbox.x1, text
        assert figure.bbox.y0 <= box.y0 <= box.y1 <= figure.bbox.y1, text


def test_the_matrix_is_dark_where_classes_are_predicted(tmp_path):
    picture = tmp_path / "confusion.png"
    assert main([write_run(tmp_path, [f"c{c}" for c in range(8)], videos=1), "--output", str(picture)]) == 0
    image = cv2.imread(str(picture))
    dark = cv2.inRange(image, (80, 0, 0), (140, 70, 30))  # the darkest blue
    count, _, stats, _ = cv2.connectedComponentsWithStats(dark)
    cells = [box for box in stats[1:count] if box[cv2.CC_STAT_AREA] > 300 and box[cv2.CC_STAT_HEIGHT] < 60]
    assert len(cells) == 8


def test_reversals_stand_together():
    assert reversals_together(np.array([3, -1, 4, 0, 2])) == [0, 3, 1, 2, 4]


def test_a_picture_of_pairs_keeps_reversals_in_place(tmp_path, monkeypatch):
    """Check that names and counts are moved alike."""
    drawn = {}

    def draw_and_keep(matrix, names, title):
        drawn.update(matrix=matrix, names=names)
        return draw(matrix, names, title)

    monkeypatch.setattr(tool, "draw", draw_and_keep)
    path = write_run(tmp_path, ["a", "b", "c", "d"], reversed_of=[2, -1, 0, -1])
    assert main([path, "--output", str(tmp_path / "x.png")]) == 0
    assert drawn["names"] == ["a", "c", "b", "d"]
    # half of a is taken for b, b for c, c for d, d for a
    assert drawn["matrix"].tolist() == [[2, 0, 2, 0], [0, 2, 0, 2], [0, 2, 2, 0], [2, 0, 0, 2]]


def test_mistakes_are_printed(tmp_path, capsys):
    matrix = np.array([[5, 0, 1], [3, 1, 0], [0, 0, 7]])
    assert mistakes(matrix, ["up", "down", "left"]) == [
        "    3 of 4     down  taken for  up",
        "    1 of 6     up  taken for  left",
    ]
    assert main([write_run(tmp_path, ["up", "down"]), "--output", str(tmp_path / "x.png")]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == str(tmp_path / "x.png")


def test_a_run_without_mistakes_and_a_class_without_videos(tmp_path):
    path = write_run(tmp_path, [f"c{c}" for c in range(70)], videos=1)
    (tmp_path / "subset.txt").write_text("".join(f"{n}\n" for n in range(0, 70, 2)))
    subset = ["--subset", str(tmp_path / "subset.txt")]
    assert main([path, *subset, "--output", str(tmp_path / "x.png")]) == 0


@pytest.mark.parametrize(("picture", "message"), [("x.txt", "ends in .png"), ("x.png", "needs matplotlib")])
def test_pictures_that_cannot_be_drawn(tmp_path, capsys, monkeypatch, picture, message):
    path = write_run(tmp_path, ["a", "b"])
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert main([path, "--output", str(tmp_path / picture)]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
