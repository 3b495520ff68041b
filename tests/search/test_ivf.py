"""The inverted file: its lists, its effort, filters, and the file that is made again when it does not fit."""

import json
import logging
import os
import sys

import numpy as np
import pytest

from benchmarks.made_vectors import MadeWorld, make_world
from search.engines.derived import fingerprint, is_exact_enough, open_ivf
from search.engines.exact import TorchExact
from search.engines.ivf import IVF, choose_lists
from search.recall import measure_recall, tune

pytest.importorskip("faiss", reason="faiss is not installed: pip install faiss-cpu")

SIZE = 32


@pytest.fixture(scope="module")
def world() -> MadeWorld:
    return make_world(2000, SIZE, 60)


@pytest.fixture(scope="module")
def ids(world) -> np.ndarray:
    return np.arange(len(world.vectors), dtype=np.int64) << 20


@pytest.fixture(scope="module")
def exact(world, ids) -> TorchExact:
    engine = TorchExact(SIZE)
    engine.add(ids, world.vectors)
    return engine


def filled(world: MadeWorld, ids: np.ndarray) -> IVF:
    engine = IVF(SIZE)
    engine.add(ids, world.vectors)
    return engine


def test_the_number_of_lists():
    assert [choose_lists(count) for count in (1, 63, 128, 4096, 10**6)] == [1, 1, 2, 64, 1024]


def test_recall_grows_with_the_effort_to_all(world, ids, exact):
    engine = filled(world, ids)
    assert list(engine.efforts) == [1, 2, 4, 8, 16]
    assert engine.effort == 16
    recalls = []
    for effort in engine.efforts:
        engine.effort = effort
        recalls.append(measure_recall(engine, exact, world.texts, world.clips))
    texts = [recall.text for recall in recalls]
    assert texts == sorted(texts)
    assert texts[0] < 0.9
    assert texts[-1] == recalls[-1].clip == 1.0
    assert tune(engine, exact, world.texts, 0.9) >= 0.9
    assert 1 < engine.effort < 16


@pytest.mark.parametrize("step", [2, 16])
def test_a_filter_is_exact(world, ids, exact, step):
    engine = filled(world, ids)
    engine.effort = 1
    found, expected = (engine.search(world.texts, 10, ids[::step])[1] for engine in (engine, exact))
    assert (found == expected).all()


def test_a_sample_of_the_vectors(world, ids):
    engine = filled(world, ids)
    known = {row.tobytes() for row in world.vectors}
    for most, count in ((5000, 2000), (2000, 2000), (300, 300)):
        sample = engine.sample(most)
        assert sample.dtype == np.float32
        rows = {row.tobytes() for row in sample.astype(np.float16)}
        assert len(sample) == count
        assert rows <= known
        assert len(rows) >= 0.99 * count  # none twice, but for vectors that are equal
    assert len(IVF(SIZE).sample(10)) == 0


def test_later_windows_go_into_the_lists(world, ids, exact):
    engine = IVF(SIZE)
    engine.add(ids[:1500], world.vectors[:1500])
    engine.add(ids[1400:], world.vectors[1400:])
    assert engine.count == 2000
    found, expected = (engine.search(world.texts, 10)[1] for engine in (engine, exact))
    assert (found == expected).all()


def test_the_fingerprint(world, ids):
    known = fingerprint(ids, world.vectors)
    assert known == fingerprint(ids.copy(), np.asfortranarray(world.vectors))
    changed = world.vectors.copy()
    changed[7, 3] += np.float16(0.01)
    others = [fingerprint(ids + 1, world.vectors), fingerprint(ids, changed), fingerprint(ids[:-1], world.vectors[:-1])]
    assert len({known, *others}) == 4


@pytest.mark.parametrize(("count", "is_exact"), [(2_000_000, True), (2_000_001, False)])
def test_when_search_is_exact(count, is_exact):
    assert is_exact_enough(count) is is_exact


class Kept:
    """Opens the engine of a folder, and counts how often the windows were read."""

    def __init__(self, folder, world, ids):
        self.folder, self.world, self.ids, self.read = folder, world, ids, 0

    def open(self, stamp="first", size=SIZE, texts=None, target=0.9):
        def load():
            self.read += 1
            return self.ids, self.world.vectors

        self.engine, self.tuning = open_ivf(
            self.folder, stamp, size, load, self.world.texts if texts is None else texts, target
        )
        return self.engine


@pytest.fixture
def kept(tmp_path, world, ids) -> Kept:
    return Kept(tmp_path / "model", world, ids)


def test_the_file_is_read_while_it_fits(kept, world):
    first = kept.open()
    tuning, found = kept.tuning, first.search(world.texts, 10)
    assert (kept.read, tuning.texts, tuning.effort, tuning.target) == (1, 60, first.effort, 0.9)
    assert tuning.recall >= 0.9
    again = kept.open()
    assert (kept.read, kept.tuning, again.effort) == (1, tuning, first.effort)
    for one, other in zip(found, again.search(world.texts, 10), strict=True):
        np.testing.assert_array_equal(one, other)
    assert {path.name.split("-")[0] for path in kept.folder.iterdir()} == {"ivf", "ivf.json"}


def test_other_windows_make_it_again(kept):
    kept.open()
    (old,) = kept.folder.glob("*.faiss")
    killed = kept.folder / "ivf-0123.faiss.partial"
    killed.touch()
    kept.open(stamp="second")
    assert kept.read == 2
    assert kept.engine.count == 2000
    assert not old.exists()
    assert not killed.exists()
    kept.open(stamp="second")
    assert kept.read == 2


def test_other_texts_or_targets_choose_the_effort_again(kept, world):
    kept.open()
    written = next(kept.folder.glob("*.faiss")).stat()
    kept.open(target=1.0)
    assert (kept.read, kept.tuning.target) == (2, 1.0)
    kept.open(target=1.0, texts=world.texts[:30])
    assert (kept.read, kept.tuning.texts) == (3, 30)
    kept.open(target=1.0, texts=world.texts[:30])
    assert kept.read == 3
    assert next(kept.folder.glob("*.faiss")).stat().st_mtime_ns == written.st_mtime_ns


def cut(path):
    os.truncate(path, path.stat().st_size // 2)


def overwrite(path):
    path.write_bytes(b"x" * path.stat().st_size)


def write_text(text):
    return lambda path: path.write_text(text)


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("*.faiss", cut),
        ("*.faiss", overwrite),
        ("*.faiss", os.unlink),
        ("ivf.json", cut),
        ("ivf.json", write_text("[]")),
        ("ivf.json", os.unlink),
    ],
)
def test_a_damaged_file_is_made_again(kept, world, name, damage):
    found = kept.open().search(world.texts, 10)[1]
    damage(next(kept.folder.glob(name)))
    again = kept.open()
    assert kept.read == 2
    assert (again.search(world.texts, 10)[1] == found).all()
    kept.open()
    assert kept.read == 2


def test_a_broken_tuning_is_chosen_again(kept):
    kept.open()
    facts = kept.folder / "ivf.json"
    facts.write_text(json.dumps(json.loads(facts.read_text()) | {"tuning": {"effort": 1}}))
    kept.open()
    assert (kept.read, kept.tuning.recall >= 0.9) == (2, True)


def test_a_folder_that_cannot_be_written_costs_only_time(kept, world, caplog):
    kept.folder.write_text("a file is in the way")
    with caplog.at_level(logging.WARNING, "stop"):
        engine = kept.open()
    assert engine.count == 2000
    assert "were not kept, and are made again next time" in caplog.text


def test_without_texts_nothing_is_chosen(kept, world):
    with pytest.raises(ValueError, match="there are none"):
        kept.open(texts=world.texts[:0])


def test_lists_of_another_size_are_refused(tmp_path, world, ids):
    filled(world, ids).save(tmp_path / "lists")
    with pytest.raises(ValueError, match="of size 16"):
        IVF(16).load(tmp_path / "lists")
    with pytest.raises(OSError, match="cannot be written"):
        filled(world, ids).save(tmp_path / "nowhere" / "lists")


def test_without_faiss(monkeypatch):
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(ValueError, match="the engine ivf needs faiss: pip install -r"):
        IVF(SIZE)
