"""`python -m search recall`: its figures are those of search/recall.py, for texts and for clips apart."""

import json
import os
import sys
from pathlib import Path

import pytest

from search.__main__ import main
from search.engines.exact import TorchExact
from search.engines.ivf import IVF
from search.exporting import open_server
from search.index import Index
from search.recall import measure_recall, pick_clips, probe_texts
from search.store import Store
from tests.search.made_index import FILES, WINDOWS, make_index


@pytest.fixture
def made(encoder, tmp_path) -> Path:
    return make_index(tmp_path / "index", encoder)


def measured(capfd, *flags: object) -> dict:
    capfd.readouterr()
    assert main(["recall", "--json", *map(str, flags)]) == 0
    return json.loads(capfd.readouterr().out)


def needs_faiss() -> None:
    pytest.importorskip("faiss", reason="faiss is not installed: pip install faiss-cpu")


def test_what_the_inverted_file_would_lose(made, capfd):
    needs_faiss()
    found = measured(capfd, "--index", made)
    assert (found["engine"], found["is_used"], found["windows"]) == ("ivf", False, FILES * WINDOWS)
    assert (found["texts"], found["clips"]) == (200, 200)
    rows = found["rows"]
    assert [row["effort"] for row in rows] == [1, 2, 4, 8, 16][: len(rows)]
    assert (rows[-1]["text"], rows[-1]["clip"]) == (1, 1)
    assert next(row["effort"] for row in rows if row["text"] >= 0.95) == found["effort"]
    with Index.open(made) as index:
        ids, vectors = index.vectors()
        texts = index.encoder.encode_texts(probe_texts())
    exact, engine = TorchExact(vectors.shape[1]), IVF(vectors.shape[1])
    for one in (exact, engine):
        one.add(ids, vectors)
    for row in rows:
        engine.effort = row["effort"]
        recall = measure_recall(engine, exact, texts, *pick_clips(ids, vectors))
        assert (row["text"], row["clip"]) == pytest.approx((recall.text, recall.clip), abs=0.002)
        assert row["ms"] > 0
    assert not list(made.glob("ivf-*")), "an engine that no query uses is not kept"


def test_the_engine_that_queries_use(made, capfd, monkeypatch):
    needs_faiss()
    monkeypatch.setattr("search.engines.derived.EXACT_UP_TO", 1000)
    found = measured(capfd, "--index", made)
    assert (found["engine"], found["is_used"]) == ("ivf", True)
    with Index.open(made) as index:
        assert found["effort"] == index.engine.effort  # type: ignore[attr-defined]
    assert main(["recall", "--index", str(made)]) == 0
    out = capfd.readouterr().out
    assert f"\n*{found['effort']:8}  " in out
    assert f"what a query uses: {found['effort']}, chosen for 0.95" in out


def test_own_texts(made, tmp_path, capfd):
    needs_faiss()
    (tmp_path / "queries.txt").write_text("a red half\n\n  something green moves  \n")
    found = measured(capfd, "--index", made, "--queries", tmp_path / "queries.txt")
    assert (found["texts"], found["clips"]) == (2, 200)
    assert main(["recall", "--index", str(made), "--queries", str(tmp_path / "queries.txt")]) == 0
    lines = capfd.readouterr().out.splitlines()
    assert "2 texts, 200 clips" in lines[0]
    assert lines[1].split() == ["lists", "texts", "clips", "ms", "a", "query"]
    assert len(lines) == 3 + len(found["rows"])
    assert "searched exactly" in lines[-1]


def test_a_server(made, capfd, monkeypatch):
    """Qdrant's client in local mode plays the server; it compares all vectors, whatever the effort."""
    client = pytest.importorskip("qdrant_client").QdrantClient(":memory:")
    monkeypatch.setattr("search.engines.qdrant.connect", lambda address: client)
    monkeypatch.setattr(client, "close", lambda: None)
    assert main(["export", "--to", "qdrant://localhost", "--index", str(made)]) == 0
    found = measured(capfd, "--index", made, "--server", "qdrant://localhost")
    assert (found["engine"], found["is_used"], found["effort"]) == ("qdrant", True, 128)
    assert [(row["effort"], row["text"], row["clip"]) for row in found["rows"]] == [(32, 1, 1)]
    # Every other window leads elsewhere on the server, and so is not found there.
    monkeypatch.setattr("search.engines.qdrant.EFFORTS", (32, 128))
    with Store(made) as store:
        (model,) = store.models()
        ids, vectors = store.matrix(model)
    open_server("qdrant://localhost", model).add(ids[::2], -vectors[::2])
    rows = measured(capfd, "--index", made, "--server", "qdrant://localhost")["rows"]
    assert [row["effort"] for row in rows] == [32, 128]
    assert all(row["text"] < 0.99 and row["clip"] < 0.8 for row in rows)


@pytest.mark.parametrize(
    ("content", "part"),
    [
        (b"\n \n", "has no line with a query"),
        (b"\xff\xfe", "is no text in UTF-8"),
        (None, "no such file"),
        ("pipe", "no such file"),
    ],
)
def test_mistakes_in_the_queries(made, tmp_path, capfd, content, part):
    path = tmp_path / "queries.txt"
    if content == "pipe":
        os.mkfifo(path)
    elif content is not None:
        path.write_bytes(content)
    assert main(["recall", "--index", str(made), "--queries", str(path)]) == 2
    out, told = capfd.readouterr()
    assert not out
    assert part in told
    assert told.count("\n") == 1


def test_an_index_without_windows(encoder, tmp_path, capfd):
    with Store(tmp_path / "index", write=True) as store:
        store.add_model(encoder.key, "vpt", encoder.facts)
    assert main(["recall", "--index", str(tmp_path / "index")]) == 2
    assert "has no windows of the model vpt yet" in capfd.readouterr().err


def test_without_faiss(made, capfd, monkeypatch):
    monkeypatch.setitem(sys.modules, "faiss", None)
    for limit in (10**6, 1000):
        monkeypatch.setattr("search.engines.derived.EXACT_UP_TO", limit)
        assert main(["recall", "--index", str(made)]) == 2
        assert "the engine ivf needs faiss: pip install -r requirements-search.txt" in capfd.readouterr().err
