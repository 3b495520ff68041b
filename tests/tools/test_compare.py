"""Comparison of two runs from their saved scores: the test against all tosses of a coin, and what is refused."""

import itertools
import math
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.tasks.predictions import Predictions, write_predictions
from engine.tasks.recognition_metrics import recognition_metrics
from tools.compare import align, mcnemar
from tools.report import main


@pytest.mark.parametrize("n", range(9))
def test_mcnemar_equals_all_tosses_of_a_coin(n):
    heads = [sum(tosses) for tosses in itertools.product((0, 1), repeat=n)]
    for first in range(n + 1):
        uneven = [abs(2 * head - n) >= abs(2 * first - n) for head in heads]
        assert mcnemar(first, n - first) == pytest.approx(sum(uneven) / len(heads), abs=1e-15)


@given(st.integers(0, 700), st.integers(0, 700))
@settings(max_examples=20)
def test_mcnemar_of_many_videos_is_exact(first, second):
    n = first + second
    tail = Fraction(sum(math.comb(n, k) for k in range(min(first, second) + 1)), 2**n)
    assert mcnemar(first, second) == float(min(Fraction(1), 2 * tail))
    assert mcnemar(first, second) == mcnemar(second, first)


def run_of(right: list[bool], n_views: int = 1) -> Predictions:
    """Return a run that is right on some of ten videos of two classes, each the other's reversal."""
    labels = np.arange(10) % 2
    views = np.zeros((10, n_views, 2), np.float32)
    views[np.arange(10), :, labels] = np.where(right, 1, -1)[:, None]
    return Predictions(
        tuple(f"video, {n}" for n in range(10)), labels, ("Up", "Down"), ("up", "down"), views, "logits",
        np.array([1, 0]),
    )  # fmt: skip


FIRST, SECOND = run_of([True] * 4 + [False] * 6), run_of([False] + [True] * 9)


def compare(tmp_path, *runs: Predictions, flags: tuple[str, ...] = ()) -> int:
    paths = []
    for name, run in zip("abc", runs, strict=False):
        write_predictions(tmp_path / name, run)
        paths.append(str(tmp_path / name / "predictions.csv"))
    return main(["compare", *paths, *flags])


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.split("|")[1:-1]]


def test_two_runs(tmp_path, capsys):
    assert compare(tmp_path, FIRST, SECOND) == 0
    header, _, first, second, *text = capsys.readouterr().out.splitlines()
    assert cells(header) == ["", "videos", "top-1", "top-5", "mean class", "direction"]
    assert cells(first) == ["a, 1 view", "10", "40.00", "100.00", "40.00", "40.00"]
    assert cells(second) == ["b, 1 view", "10", "90.00", "100.00", "90.00", "90.00"]
    assert text[1:] == [
        "difference of top-1, second minus first: +50.00 points",
        "right in the first run only: 1 videos, in the second only: 6",
        f"McNemar's exact test, two-sided: p = {2 * (1 + 7) / 2**7:.3g}",
    ]


def test_a_run_that_knows_no_reversed_classes_has_no_direction(tmp_path, capsys):
    assert compare(tmp_path, FIRST, replace(SECOND, reversed_of=np.array([-1, -1]))) == 0
    header, _, first, second, *_ = capsys.readouterr().out.splitlines()
    assert [cells(line)[-1] for line in (header, first, second)] == ["direction", "40.00", "-"]


def test_other_orders_of_videos_and_classes_are_the_same_run(tmp_path, capsys):
    shuffled = SECOND.of_classes(["Down", "Up"]).of_videos(np.random.default_rng(0).permutation(10))
    again = align(FIRST, shuffled)
    assert again.ids == FIRST.ids
    assert np.array_equal(again.views, SECOND.views)
    assert np.array_equal(again.labels, SECOND.labels)
    assert np.array_equal(again.reversed_of, SECOND.reversed_of)
    compare(tmp_path, FIRST, SECOND)
    plain = capsys.readouterr().out
    compare(tmp_path, FIRST, shuffled)
    assert capsys.readouterr().out == plain


def test_a_tie_counts_as_wrong_in_the_test_and_half_in_top_1(tmp_path, capsys):
    tied = replace(SECOND, views=SECOND.views * (np.arange(10) > 4)[:, None, None])
    assert compare(tmp_path, FIRST, tied) == 0
    out = capsys.readouterr().out
    assert cells(out.splitlines()[3])[2] == "75.00"
    assert "right in the first run only: 4 videos, in the second only: 5" in out
    assert "5 videos have several best classes in a run" in out


def test_one_run_with_its_fusions_and_views(tmp_path, capsys):
    views = np.random.default_rng(0).normal(size=(10, 3, 2)).astype(np.float32)
    run = replace(FIRST, views=views, fusion="features", of_features=views[:, 2])
    assert compare(tmp_path, run) == 0
    rows = {cells(line)[0]: float(cells(line)[2]) for line in capsys.readouterr().out.splitlines()[2:]}

    def top1(scores) -> float:
        return recognition_metrics(scores, run.labels)["recognition"]["top1"]

    softmax = np.exp(views) / np.exp(views).sum(2, keepdims=True)
    assert rows == {
        "logits": top1(views.mean(1)),
        "softmax": top1(softmax.mean(1)),
        "features (the run's own)": top1(views[:, 2]),
        **{f"view {view + 1} alone": top1(views[:, view]) for view in range(3)},
    }
    assert compare(tmp_path, run, FIRST, flags=("--fusion", "softmax")) == 0
    assert [cells(line)[0] for line in capsys.readouterr().out.splitlines()[2:4]] == [
        "a, softmax of 3 views",
        "b, 1 view",
    ]


def test_a_subset_of_both_runs(tmp_path, capsys):
    (tmp_path / "half.txt").write_text("video, 9\nvideo, 0\n")
    assert compare(tmp_path, FIRST, SECOND, flags=("--subset", str(tmp_path / "half.txt"))) == 0
    out = capsys.readouterr().out
    assert [cells(line)[1:3] for line in out.splitlines()[2:4]] == [["2", "50.00"], ["2", "50.00"]]
    assert "p = 1\n" in out


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (SECOND.of_videos(np.arange(9)), "the runs have different videos: 1 only in the first (video, 9)"),
        (replace(SECOND, ids=(*SECOND.ids[:9], "x")), "1 only in the first (video, 9), 1 only in the second (x)"),
        (replace(SECOND, ids=(*SECOND.ids[:9], "video, 0")), "1 only in the first (video, 9)"),
        (replace(SECOND, keys=("Up", "Left")), "different classes: 1 only in the first (Down), 1 only in the second"),
        (replace(SECOND, labels=1 - SECOND.labels), "disagree on the label of 10 videos, first video, 0: Up and Down"),
    ],
)
def test_runs_on_other_lists_are_refused(tmp_path, capsys, other, message):
    assert compare(tmp_path, FIRST, other) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.err.count("\n") == 1
    assert captured.out == ""


def test_a_video_listed_twice_needs_one_order():
    twice = replace(FIRST, ids=("video, 1", *FIRST.ids[1:]))
    assert align(twice, twice).ids == twice.ids
    with pytest.raises(ValueError, match="list a video twice"):
        align(twice, twice.of_videos(np.arange(10)[::-1]))


def test_a_comparison_takes_one_or_two_files(tmp_path, capsys):
    assert compare(tmp_path, FIRST, FIRST, FIRST) == 2
    assert "compare takes one or two files" in capsys.readouterr().err
    assert main(["compare", str(tmp_path / "none.csv")]) == 2
    assert "none.csv: no such file" in capsys.readouterr().err


def test_runs_in_folders_of_one_name_are_told_apart(tmp_path, capsys):
    for name, run in (("x", FIRST), ("y", SECOND)):
        write_predictions(tmp_path / name / "run", run)
    paths = [str(tmp_path / name / "run" / "predictions.npz") for name in "xy"]
    assert main(["compare", *paths]) == 0
    assert [cells(line)[0] for line in capsys.readouterr().out.splitlines()[2:4]] == [f"{p}, 1 view" for p in paths]
