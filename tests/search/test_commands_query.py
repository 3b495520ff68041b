"""`python -m search query` from end to end: what it finds, its filters, and mistakes in a query."""

import csv
import json
import os
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from search import Index
from search.__main__ import main
from search.recall import nonsense_texts
from tests.search.commands import run_command
from tests.videos import write_video


@pytest.fixture
def run(trained, tmp_path, capfd):
    """Return a function that runs a command on the index of this test, and returns exit code, stdout and stderr."""
    return partial(run_command, tmp_path / "index", trained.checkpoint, capfd)


def captions(small_data) -> dict[str, str]:
    with open(small_data.folder / "MSRVTT_JSFUSION_test.csv", newline="") as file:
        return {row["video_id"]: row["sentence"] for row in csv.DictReader(file)}


def test_finds_what_the_evaluation_finds(run, trained, small_data, videos, tmp_path):
    """The recalls over the test clips as files are those of main_task_retrieval.py, to the digit."""
    code, _, told = run("index", videos)
    assert code == 0, told
    assert "7 files read, 7 windows" in told
    ranks = []
    with Index.open(tmp_path / "index") as index:
        for video_id, text in captions(small_data).items():
            hits = index.query(text, top=7)
            assert len(hits) == 7
            assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)
            ranks.append([Path(hit.file).stem for hit in hits].index(video_id))
    found = {f"t2v R@{k}": round(100 * float(np.mean(np.array(ranks) < k)), 3) for k in (1, 5)}
    found["t2v MnR"] = round(float(np.mean(ranks)) + 1, 3)
    assert found == {name: trained.metrics[name] for name in found}


@pytest.fixture
def long_file(tmp_path) -> Path:
    """A folder with one file of 24 s at 3 frames a second: red, green and blue halves, for 8 s each."""
    frames = np.random.default_rng(0).integers(0, 60, (72, 48, 64, 3), dtype=np.uint8)
    for number, colour in enumerate(((220, 30, 30), (30, 200, 40), (40, 60, 220))):
        frames[24 * number : 24 * number + 24, :, :32] = colour
    folder = tmp_path / "long"
    folder.mkdir()
    write_video(folder / "long.mp4", frames, fps=3)
    write_video(tmp_path / "green.mp4", frames[24:48], fps=3)
    return folder


def test_moments_in_one_long_file(run, long_file, tmp_path):
    assert run("index", long_file, "--window", "8")[0] == 0
    with Index.open(tmp_path / "index") as index:
        ids, _ = index.vectors()
        assert [(w.start, w.end) for w in index.windows(ids)] == [(0, 8), (4, 12), (8, 16), (12, 20), (16, 24)]
        hits = index.query(clip=tmp_path / "green.mp4")
        assert (hits[0].start, hits[0].end) == (8, 16)
        assert hits[0].score > 0.999
        assert [(hit.start, hit.end) for hit in hits[1:]] in ([(0, 8), (16, 24)], [(16, 24), (0, 8)])  # none overlaps
        assert hits[0].above > 0 > hits[-1].above
        part = index.query(clip=long_file / "long.mp4", start=16, end=24, per_file=1)
        assert [(hit.start, hit.window_id) for hit in part] == [(16, ids[-1])]
        assert index.query(like=int(ids[2]))[0].window_id == ids[2]
        away = index.query(like=int(ids[2]), without=[("green", 0.5)], also=[("red", 0.1)])
        assert away[0].score < 0.999
    code, out, _ = run("query", "--like", f"{ids[2] // 2**20}:2", "--json")
    assert code == 0
    assert json.loads(out)["hits"][0]["window_id"] == ids[2]


def test_filters(run, videos, tmp_path):
    os.utime(videos / "video11.mp4", (10**9, 10**9))  # in 2001
    run("index", videos)
    told = json.loads(run("query", "red", "--json")[1])
    with Index.open(tmp_path / "index") as index:
        (hit,) = index.query("red", top=1)
        assert told["fits_well"] == (index.standing(hit) >= index.bound)
        refused = [not index.fits_well(index.query(text, top=1)) for text in nonsense_texts()]
        assert np.mean(refused) == pytest.approx(0.95)
    assert json.loads(run("query", "red", "--without", "blue", "--json")[1])["fits_well"] is None
    assert run("query", "red", "--in", "below/*")[1].split() == [str(videos / "below" / "video10.mp4")]
    assert run("query", "red", "--before", "2002-01-01")[1].split() == [str(videos / "video11.mp4")]
    assert len(run("query", "red", "--after", "2002-01-01")[1].split()) == 6
    code, _, told = run("query", "red", "--in", "nowhere/*")
    assert code == 2
    assert "--in" in told


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        ([], "the query is empty"),
        (["  "], "no words"),
        (["red", "--after", "yesterday"], "--after yesterday is no date"),
        (["red", "--and", "a", "dog"], "put the text in quotes"),
        (["red", "--top", "0"], "--top"),
        (["red", "--after", "0001-01-01"], "--after 0001-01-01 is no date"),
        (["--like", "12:x"], "is no hit"),
        (["--like", "9" * 20 + ":0"], "no index has such a window"),
        (["--like", "9" * 5000], "is no hit"),
        (["--like", "999:1"], "has no window 999:1"),
        (["--clip", "missing.mp4"], "missing.mp4 does not exist"),
        (["--image", "missing.png"], "missing.png"),
        (["red", "--model", "stop"], "has no model 'stop'"),
        (["red", "--from", "1"], "pass a clip"),
        (["red", "--colour", "blue"], "unknown argument --colour; --help"),
        (["a", "red", "square"], "unknown argument red: put a text or a path that has spaces in quotes"),
        (["red", "--clipp", "a.mp4"], "unknown argument --clipp, did you mean --clip;"),
    ],
)
def test_mistakes_in_a_query(indexed, arguments, part, capfd):
    capfd.readouterr()
    assert main(["query", *arguments, "--index", str(indexed)]) == 2
    out, told = capfd.readouterr()
    assert not out
    assert part in told
    assert told.count("\n") == 1


@pytest.fixture(scope="module")
def indexed(trained, small_data, tmp_path_factory) -> Path:
    """An index of all small videos."""
    folder = tmp_path_factory.mktemp("indexed") / "index"
    flags = ["--index", str(folder), "--checkpoint", str(trained.checkpoint), "--jobs", "1"]
    assert main(["index", str(small_data.videos), *flags]) == 0
    return folder


def test_a_server_finds_the_same(indexed, capfd, monkeypatch):
    """Qdrant's client in local mode plays the server."""
    client = pytest.importorskip("qdrant_client").QdrantClient(":memory:")
    monkeypatch.setattr("search.engines.qdrant.connect", lambda address: client)
    monkeypatch.setattr(client, "close", lambda: None)
    flags = ["--index", str(indexed)]
    query = ["query", "a red half", "--json", "--top", "5", *flags]
    assert main(["export", "--to", "qdrant://localhost", *flags]) == 0
    assert main(query) == 0
    expected = json.loads(capfd.readouterr().out)["hits"]
    assert main([*query, "--server", "qdrant://localhost"]) == 0
    found = json.loads(capfd.readouterr().out)["hits"]
    assert [hit["window_id"] for hit in found] == [hit["window_id"] for hit in expected]
    assert main([*query, "--server", "localhost"]) == 2
    assert "pass qdrant://HOST" in capfd.readouterr().err
    assert main([*query, "--server", "qdrant://localhost/other"]) == 2
    assert "bring it up to date" in capfd.readouterr().err
