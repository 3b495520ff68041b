"""Predictions come back from their files unchanged, whatever videos and classes are called."""

import csv
from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.tasks.predictions import Predictions, read_predictions, read_subset, write_predictions
from engine.tasks.recognition_metrics import confusion, fuse, per_class, recognition_metrics

HOSTILE_IDS = ("-v_a.avi", "=SUM(A1)", 'a, "b".mp4', "[x] #1;(y) & z", " spaced ", "日本\udcff", "two\nlines", "'", "0")
HOSTILE_KEYS = ("-kick", "=sword", "kick, ball", '"hit"', "[a]", "draw#sword", "8")


def predictions(n_views: int = 3, fusion: str = "softmax", seed: int = 0) -> Predictions:
    """Return random scores of nine videos of seven classes with hostile names; the last class has no video."""
    generator = np.random.default_rng(seed)
    n, n_classes = len(HOSTILE_IDS), len(HOSTILE_KEYS)
    views = generator.normal(size=(n, n_views, n_classes)).astype(np.float32)
    return Predictions(
        ids=HOSTILE_IDS,
        labels=np.arange(n) % (n_classes - 1),
        keys=HOSTILE_KEYS,
        names=tuple(key.strip("-=[]") for key in HOSTILE_KEYS),
        views=views,
        fusion=fusion,
        reversed_of=np.array([1, 0, -1, 4, 3, -1, -1]),
        of_features=views[:, 0] * 2 if fusion == "features" else None,
    )


def assert_same(one: Predictions, other: Predictions) -> None:
    for field in fields(Predictions):
        own, others = getattr(one, field.name), getattr(other, field.name)
        assert np.array_equal(own, others) if isinstance(own, np.ndarray) else own == others, field.name


@pytest.mark.parametrize("fusion", ["logits", "softmax", "features"])
@pytest.mark.parametrize("ending", ["csv", "npz"])
def test_what_is_written_comes_back(tmp_path, fusion, ending):
    run = predictions(fusion=fusion)
    write_predictions(tmp_path / "new folder", run)
    again = read_predictions(tmp_path / "new folder" / f"predictions.{ending}")
    assert_same(again, run)
    assert torch.equal(again.scores(), run.scores())
    assert not list(tmp_path.rglob("*.partial"))


def read_rows(path):
    with open(path, newline="", encoding="utf-8", errors="surrogateescape") as file:
        return list(csv.DictReader(file, strict=True))


def test_the_csv_has_the_best_classes_of_every_video(tmp_path):
    run = predictions()
    write_predictions(tmp_path, run)
    rows, scores = read_rows(tmp_path / "predictions.csv"), run.scores().numpy()
    assert [row["id"] for row in rows] == list(run.ids)
    for row, label, own in zip(rows, run.labels, scores, strict=True):
        assert row["label"] == run.keys[label]
        best = sorted(range(7), key=lambda c: -own[c])[:5]
        assert [row[f"class {place}"] for place in range(1, 6)] == [run.keys[c] for c in best]
        assert [float(row[f"score {place}"]) for place in range(1, 6)] == pytest.approx(own[best], rel=1e-5)
    top1 = recognition_metrics(scores, run.labels)["recognition"]["top1"]
    assert np.mean([float(row["right"]) for row in rows]) * 100 == pytest.approx(top1)


def test_a_tie_is_partly_right(tmp_path):
    run = replace(predictions(1), views=np.zeros((9, 1, 7), np.float32))
    write_predictions(tmp_path, run)
    assert {float(row["right"]) for row in read_rows(tmp_path / "predictions.csv")} == {0.1429}
    with np.load(tmp_path / "confusion.npz") as file:
        assert file["tied"] == 9


def test_classes_and_confusions_have_their_own_files(tmp_path):
    run = predictions()
    write_predictions(tmp_path, run)
    rows = read_rows(tmp_path / "per_class.csv")
    assert [row["class"] for row in rows] == list(run.keys)
    for row, result in zip(rows, per_class(run.scores(), run.labels), strict=True):
        assert int(row["videos"]) == result.videos
        assert row["top1"] == ("" if result.top1 is None else f"{result.top1:.3f}")
        assert row["mistaken for"] == ("" if result.mistaken_for is None else run.keys[result.mistaken_for])
    assert rows[-1]["videos"] == "0"
    with np.load(tmp_path / "confusion.npz") as file:
        assert (file["confusion"] == confusion(run.scores(), run.labels)).all()
        assert tuple(file["keys"]) == run.keys
        assert tuple(file["names"]) == run.names
        assert file["tied"] == 0


def test_every_fusion_is_computed_from_the_file(tmp_path):
    run = predictions(fusion="features")
    write_predictions(tmp_path, run)
    again = read_predictions(tmp_path / "predictions.csv")
    assert again.possible_fusions() == ["logits", "softmax", "features"]
    assert torch.equal(again.scores("logits"), fuse(run.views, "logits"))
    assert torch.equal(again.scores("softmax"), fuse(run.views, "softmax"))
    assert torch.equal(again.scores(), torch.tensor(run.of_features, dtype=torch.float64))
    assert predictions(fusion="logits").possible_fusions() == ["logits", "softmax"]
    with pytest.raises(ValueError, match="--view_fusion features"):
        predictions(fusion="logits").scores("features")
    assert predictions(n_views=1).possible_fusions() == ["softmax"]


@given(st.permutations(range(7)), st.integers(1, 7), st.sampled_from(["softmax", "features"]))
@settings(max_examples=25)
def test_a_subset_of_classes_is_a_run_with_these_classes_alone(order, count, fusion):
    run, columns = predictions(fusion=fusion), order[:count]
    rows = [row for row, label in enumerate(run.labels) if label in columns]
    chosen = run.of_classes([run.keys[c] for c in columns])
    assert chosen.ids == tuple(run.ids[row] for row in rows)
    assert chosen.keys == tuple(run.keys[c] for c in columns)
    assert [chosen.keys[label] for label in chosen.labels] == [run.keys[run.labels[row]] for row in rows]
    assert np.array_equal(chosen.views, run.views[rows][:, :, columns])
    for own, other in enumerate(chosen.reversed_of):
        there = run.reversed_of[columns[own]]
        assert other == (columns.index(there) if there in columns else -1)
    if fusion == "features":
        assert np.array_equal(chosen.of_features, run.of_features[rows][:, columns])


def subset(tmp_path, content: bytes) -> Predictions:
    path = tmp_path / "subset.txt"
    path.write_bytes(content)
    return read_subset(path, predictions())


def test_a_file_names_a_subset(tmp_path):
    assert subset(tmp_path, b"\xef\xbb\xbf=SUM(A1)\r\n\n spaced \n-v_a.avi\n").ids == (
        "-v_a.avi",
        "=SUM(A1)",
        " spaced ",
    )
    assert subset(tmp_path, b"draw#sword\n-kick").keys == ("-kick", "draw#sword")
    assert subset(tmp_path, "日本".encode() + b"\xff\n").ids == ("日本\udcff",)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"\n \n", "is empty"),
        (b"-kick\nkick\n", "'kick' is no id of a video and no key of a class"),
        (b"-kick\n-v_a.avi\n", "name either ids or classes"),
        (b"-kick\n-kick\n", "names '-kick' twice"),
    ],
)
def test_files_that_name_no_subset(tmp_path, content, message):
    with pytest.raises(ValueError, match=message):
        subset(tmp_path, content)


def test_a_subset_that_could_be_both_is_refused(tmp_path):
    path = tmp_path / "subset.txt"
    path.write_text("-kick\n")
    run = replace(predictions(), ids=(*HOSTILE_IDS[:8], "-kick"))
    with pytest.raises(ValueError, match="ids of videos and also keys of classes"):
        read_subset(path, run)
    with pytest.raises(OSError, match=r"--subset .*none\.txt: cannot be read"):
        read_subset(tmp_path / "none.txt", run)


def test_files_belong_together(tmp_path):
    write_predictions(tmp_path, predictions())
    path = tmp_path / "predictions.csv"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:-1]))
    with pytest.raises(ValueError, match=r"predictions\.csv: has other videos or labels than predictions\.npz"):
        read_predictions(path)
    assert read_predictions(tmp_path / "predictions.npz").ids == HOSTILE_IDS
    (tmp_path / "predictions.npz").unlink()
    with pytest.raises(FileNotFoundError, match=r"predictions\.npz: no such file.*copy both files"):
        read_predictions(path)
    with pytest.raises(FileNotFoundError, match=r"none\.csv: no such file; an evaluation"):
        read_predictions(tmp_path / "none.csv")
    with pytest.raises(FileNotFoundError, match=r"is a folder; name the predictions\.csv in it"):
        read_predictions(tmp_path)


@pytest.mark.parametrize(
    "content", [b"", b"id,label\n", b"PK\x03\x04 cut off", b"\x93NUMPY", "other", "array", "labels"]
)
def test_files_that_are_no_predictions(tmp_path, content):
    path = tmp_path / "predictions.npz"
    if content == "other":
        np.savez(path, scores=np.zeros(3))
    elif content == "array":
        np.save(tmp_path / "a.npy", np.zeros(3))
        (tmp_path / "a.npy").rename(path)
    elif content == "labels":
        write_predictions(tmp_path, predictions())
        with np.load(path) as file:
            np.savez(path, **(dict(file) | {"labels": np.arange(9)}))
    else:
        path.write_bytes(content)
    with pytest.raises(ValueError, match=r"predictions\.npz: does not hold the predictions of a run"):
        read_predictions(path)


def test_a_csv_of_something_else(tmp_path):
    write_predictions(tmp_path, predictions())
    for content in ("name,seed\n", "", 'id,label\n"a'):
        (tmp_path / "predictions.csv").write_text(content)
        with pytest.raises(ValueError, match=r"predictions\.csv: is not a csv of predictions"):
            read_predictions(tmp_path / "predictions.csv")


def test_nothing_is_written_for_scores_that_are_not_finite(tmp_path):
    run = predictions()
    run.views[4, 1, 2] = np.nan
    with pytest.raises(ValueError, match="row 4"):
        write_predictions(tmp_path / "run", run)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": np.arange(8)}, "labels of 9 videos"),
        ({"labels": np.full(9, 7)}, "numbers of the 7 classes"),
        ({"labels": np.zeros(9)}, "numbers of the 7 classes"),
        ({"views": np.zeros((9, 7), np.float32)}, "views of 9 videos"),
        ({"keys": ("a",) * 7}, "keys that differ"),
        ({"names": ("a",)}, "as many names"),
        ({"fusion": "median"}, "no fusion"),
        ({"fusion": "features"}, "needs the scores of the mean features"),
        ({"of_features": np.zeros((9, 6))}, "of_features of 9 videos"),
        ({"reversed_of": np.zeros(6)}, "reversed_of of 9 videos"),
    ],
)
def test_predictions_that_do_not_fit_together(change, message):
    with pytest.raises(ValueError, match=message):
        replace(predictions(), **change)
