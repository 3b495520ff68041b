"""The engine that an index takes: exact, and beyond a limit the inverted file that is kept beside it."""

import json
import sys
from pathlib import Path

import pytest

from search.__main__ import main
from search.engines.base import Engine
from search.engines.exact import TorchExact
from search.engines.ivf import IVF
from search.index import Index
from search.recall import measure_recall, probe_texts
from search.store import Store
from tests.search.made_index import FILES, WINDOWS, make_index


@pytest.fixture
def made(encoder, tmp_path, monkeypatch) -> Path:
    """An index of 2000 made windows; the limit of exact search is 1000."""
    monkeypatch.setattr("search.engines.derived.EXACT_UP_TO", 1000)
    return make_index(tmp_path / "index", encoder)


def needs_faiss() -> None:
    pytest.importorskip("faiss", reason="faiss is not installed: pip install faiss-cpu")


def exact_of(index: Index) -> Engine:
    ids, vectors = index.vectors()
    engine = TorchExact(index.model.dimension)
    engine.add(ids, vectors)
    return engine


def lists_of(folder: Path) -> list[Path]:
    return sorted(folder.glob("ivf-*/ivf-*.faiss"))


def test_up_to_the_limit_search_is_exact(made, monkeypatch):
    monkeypatch.setattr("search.engines.derived.EXACT_UP_TO", FILES * WINDOWS)
    with Index.open(made) as index:
        assert index.engine.name == "exact"
        assert index.gallery.shape == (FILES * WINDOWS, index.model.dimension)
    assert not lists_of(made)


def test_beyond_it_the_lists_reach_the_target_on_texts(made):
    needs_faiss()
    with Index.open(made) as index:
        assert isinstance(index.engine, IVF)
        assert index.engine.count == FILES * WINDOWS
        assert index.engine.effort < index.engine.efforts[-1]
        texts = index.encoder.encode_texts(probe_texts())
        recall = measure_recall(index.engine, exact_of(index), texts, texts[:0]).text
        assert recall is not None
        assert recall >= 0.95
        hits = index.query("a red half", top=5)
        assert len(hits) == 5
        gallery = exact_of(index).search(index.vector_of("a red half")[None], FILES * WINDOWS)[0][0]
        assert hits[0].above == pytest.approx((hits[0].score - gallery.mean()) / gallery.std(), abs=0.01)


def test_a_filter_stays_exact(made):
    needs_faiss()
    with Index.open(made) as index:
        exact, query = exact_of(index), index.vector_of("a red half")
        assert isinstance(index.engine, IVF)
        index.engine.effort = 1
        for patterns in (["1*.mp4"], ["*.mp4"]):
            allowed = index.store.ids_in(index.model, patterns)
            expected = exact.search(query[None], 3, allowed)
            hits = index.query("a red half", patterns=patterns, top=3, per_file=3)
            assert [hit.window_id for hit in hits] == expected[1][0].tolist()
        assert index.query("a red half", patterns=["07.mp4"], top=1)[0].file == "/videos/07.mp4"


def test_it_is_kept_and_needs_neither_vectors_nor_model(made, monkeypatch):
    needs_faiss()
    with Index.open(made) as index:
        like = int(index.store.ids(index.model)[7])
        hits = index.query(like=like, top=3)
    (kept,) = lists_of(made)
    written = kept.stat().st_mtime_ns
    monkeypatch.delattr(Store, "matrix")
    monkeypatch.delattr("search.index.load_encoder")
    with Index.open(made) as index:
        assert index.query(like=like, top=3) == hits
    assert kept.stat().st_mtime_ns == written


def test_it_is_made_again_when_its_ids_do_not_fit(made, encoder):
    needs_faiss()
    with Index.open(made) as index:
        assert index.engine.count == FILES * WINDOWS
    (before,) = lists_of(made)
    with Store(made, write=True) as store:
        store.remove(store.files("/videos/00.mp4"))
    with Index.open(made) as index:
        assert index.engine.count == (FILES - 1) * WINDOWS
        assert {hit.file for hit in index.query("a red half", top=100)}.isdisjoint({"/videos/00.mp4"})
    (after,) = lists_of(made)
    assert after != before


def test_without_faiss_one_sentence(made, monkeypatch, caplog, capfd):
    monkeypatch.setitem(sys.modules, "faiss", None)
    with Index.open(made) as index:
        assert isinstance(index.engine, TorchExact)
        assert len(index.query(like=int(index.store.ids(index.model)[0]), top=3)) == 3
    assert [record.getMessage() for record in caplog.records] == [
        "Without faiss, torch compares all 2,000 windows with each query, which takes seconds: "
        "pip install -r requirements-search.txt"
    ]
    assert main(["status", "--index", str(made)]) == 0
    assert "search: exact, with torch" in (out := capfd.readouterr().out)
    assert "pip install" in out


def test_status_says_which_engine(made, monkeypatch, capfd):
    needs_faiss()

    def status() -> tuple[dict, str]:
        outputs = []
        for flags in (["--json"], []):
            assert main(["status", *flags, "--index", str(made)]) == 0
            outputs.append(capfd.readouterr().out)
        return json.loads(outputs[0])["models"][0]["engine"], outputs[1]

    engine, said = status()
    assert (engine["name"], engine["fits"], engine["lists"]) == ("ivf", False, 16)
    assert "approximate, 16 lists, which the next query makes" in said
    with Index.open(made) as index:
        effort = index.engine.effort  # type: ignore[attr-defined]
    capfd.readouterr()
    engine, said = status()
    assert (engine["fits"], engine["effort"], engine["texts"], engine["target"]) == (True, effort, 200, 0.95)
    assert engine["bytes"] == lists_of(made)[0].stat().st_size
    assert 0.95 <= engine["recall"] <= 1
    assert f"{effort} of 16 lists" in said
    assert f"recall@10 {engine['recall']:.3f} on 200 texts" in said
    monkeypatch.setattr("search.engines.derived.EXACT_UP_TO", FILES * WINDOWS)
    engine, said = status()
    assert engine == {"name": "exact", "library": "faiss", "bytes": 2 * FILES * WINDOWS * 24}
    assert "search: exact, with faiss, 0.1 MB in memory" in said


def test_a_model_takes_along_what_was_derived_for_it(made):
    needs_faiss()
    with Index.open(made) as index:
        assert index.bound > -1
    assert len({path.name.split("-")[0] for path in made.iterdir()} & {"ivf", "bound", "nonsense", "probes"}) == 4
    assert main(["forget", "--model", "vpt", "--index", str(made)]) == 0
    assert {path.name for path in made.iterdir()} <= {"index.sqlite", "index.sqlite-wal", "index.sqlite-shm"}
