"""The benchmark of the search: the geometry of its vectors, and the command's rows."""

import json

import numpy as np
import pytest

from benchmarks.made_vectors import make_world
from benchmarks.search import Settings, main


def test_two_cones():
    world = make_world(4000, 64, 200)
    windows = world.vectors.astype(np.float32)
    for vectors in (windows, world.texts, world.clips):
        np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=2e-3)
    videos = windows.reshape(200, 20, 64)
    own = (world.texts * windows[world.own]).sum(axis=1)
    means = {
        0.45: windows[::20] @ windows[10::20].T,
        0.78: videos[:, 0] @ videos[:, 9].T * np.eye(200) * 200,
        0.14: world.texts @ windows.T,
        0.37: own,
    }
    for expected, cosines in means.items():
        assert cosines.mean() == pytest.approx(expected, abs=0.03)
    clips = (world.clips * windows[world.own]).sum(axis=1).mean()
    assert clips == pytest.approx(0.78, abs=0.03)


def test_the_world_is_the_same_each_time():
    one, other = make_world(100, 16, 5), make_world(100, 16, 5)
    for name in ("vectors", "texts", "clips", "own"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name))


def test_the_whole_command(tmp_path, capsys):
    output = tmp_path / "a/search.json"
    small = ["--windows", "100,200", "--embedding", "16", "--queries", "6", "--only", "torch"]
    assert main([*small, "--output", str(output)]) == 0
    written = json.loads(output.read_text())
    assert [(row["engine"], row["windows"], row["effort"]) for row in written["rows"]] == [
        ("torch", 100, None),
        ("torch", 200, None),
    ]
    assert all(row["text_recall"] == row["clip_recall"] == 1 for row in written["rows"])
    assert min(row["wall_ms"] for row in written["rows"]) > 0
    assert "recall@10 against exact search" in capsys.readouterr().out


def test_all_engines(tmp_path):
    pytest.importorskip("faiss", reason="faiss is not installed: pip install faiss-cpu")
    pytest.importorskip("qdrant_client", reason="Qdrant's client is not installed: pip install qdrant-client")
    output = tmp_path / "search.json"
    assert main(["--windows", "1000", "--embedding", "16", "--queries", "40", "--output", str(output)]) == 0
    rows = json.loads(output.read_text())["rows"]
    assert [row["engine"] for row in rows if row["engine"] != "ivf"] == ["exact", "torch", "qdrant, local mode"]
    lists = [row for row in rows if row["engine"] == "ivf"]
    assert [row["chosen"] for row in lists] == [False] * (len(lists) - 1) + [True]
    assert lists[0]["text_recall"] < lists[-1]["text_recall"]
    assert all(row["text_recall"] == row["clip_recall"] == 1 for row in rows if row["engine"] != "ivf")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--windows", "10,x"], "--windows '10,x' is not a list such as 10000,1000000 of at least 100"),
        (["--only", "annoy"], "--only 'annoy' is no engine: choose from exact, torch, ivf, qdrant"),
        (["--qdrant", "localhost"], "is not of the form qdrant://HOST"),
        (["--qdrant", "qdrant://h/mine"], "names a collection"),
        (["--target", "0"], "--target 0 is out of range"),
    ],
)
def test_wrong_commands(flags, message, capsys):
    assert main(flags) == 2
    assert message in capsys.readouterr().err


def test_a_package_that_is_missing(monkeypatch):
    monkeypatch.setattr("benchmarks.search.find_spec", lambda name: None)
    with pytest.raises(ValueError, match="--only exact needs faiss: install it"):
        Settings(only="exact,torch")
    Settings(only="torch")
