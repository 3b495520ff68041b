"""All engines against a loop over all windows: search, filters, removal, replacement, bad input.

An engine whose package is not installed is skipped; torch's exact search always runs. Qdrant runs in its client's
local mode, where the client itself stands in for the server. Shapes: N windows, E embedding.
"""

from collections.abc import Callable
from importlib.util import find_spec

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from search.engines.base import NOTHING, Engine
from search.engines.exact import FaissExact, TorchExact, build_exact
from search.engines.ivf import IVF
from search.engines.qdrant import Qdrant

SIZE = 16  # E


def faiss_exact(size: int) -> Engine:
    pytest.importorskip("faiss", reason="faiss is not installed: pip install faiss-cpu")
    return FaissExact(size)


def ivf(size: int) -> Engine:
    """Return an engine that is not tuned, so that it searches all lists."""
    pytest.importorskip("faiss", reason="faiss is not installed: pip install faiss-cpu")
    return IVF(size)


def qdrant(size: int) -> Engine:
    client = pytest.importorskip("qdrant_client", reason="Qdrant's client is not installed: pip install qdrant-client")
    return Qdrant(client.QdrantClient(":memory:"), "test", size)


ENGINES: dict[str, Callable[[int], Engine]] = {
    "torch": TorchExact,
    "faiss": faiss_exact,
    "ivf": ivf,
    "qdrant": qdrant,
}
every_engine = pytest.mark.parametrize("build", ENGINES.values(), ids=ENGINES.keys())


# What Qdrant's local mode says about an effort: it compares all vectors.
pytestmark = pytest.mark.filterwarnings("ignore:Local mode performs exact")


@pytest.fixture(autouse=True)
def many_lists(monkeypatch):
    """Divide even the few windows of a test into lists."""
    monkeypatch.setattr("search.engines.ivf.TRAINED_ON", 4)


def made_vectors(count: int, seed: int = 0, size: int = SIZE) -> np.ndarray:
    vectors = np.random.default_rng(seed).standard_normal((count, size))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float16)


def made_ids(count: int, seed: int = 0) -> np.ndarray:
    """Return distinct ids, in no order, as the index has them: file * 2^20 + window; some are beyond 2^53."""
    numbers = np.random.default_rng(seed).permutation(3 * count)[:count].astype(np.int64)
    return (numbers << 20) + numbers % 7 + (numbers % 2 << 60)


def found_by_loop(stored: dict[int, np.ndarray], query: np.ndarray, k: int, allowed=None) -> list[tuple[float, int]]:
    """Return (score, id) of the best windows, straight from the definition, in double precision."""
    scored = []
    for number, vector in stored.items():
        if allowed is None or number in allowed:
            scored.append((-float(query.astype(np.float64) @ vector.astype(np.float64)), number))
    return [(-score, number) for score, number in sorted(scored)[:k]]


def check_search(engine: Engine, stored: dict[int, np.ndarray], k: int, allowed=None, seed: int = 9) -> None:
    """Check ids, scores, their order and the padding of two queries. No two scores of the test lie closer than 1e-6."""
    queries = np.random.default_rng(seed).standard_normal((2, engine.size)).astype(np.float32)
    wanted = None if allowed is None else np.array(sorted(allowed), np.int64)
    scores, ids = engine.search(queries, k, wanted)
    assert (scores.dtype, ids.dtype, scores.shape, ids.shape) == (np.float32, np.int64, (2, k), (2, k))
    for query, row_scores, row_ids in zip(queries, scores, ids, strict=True):
        expected = found_by_loop(stored, query, k, allowed)
        assert row_ids.tolist() == [number for _, number in expected] + [NOTHING] * (k - len(expected))
        np.testing.assert_allclose(row_scores[: len(expected)], [score for score, _ in expected], atol=1e-5)
        assert (row_scores[len(expected) :] == -np.inf).all()


@every_engine
def test_search_with_and_without_a_filter(build):
    engine, ids, vectors = build(SIZE), made_ids(90), made_vectors(90)
    engine.add(ids[:50], vectors[:50])
    engine.add(ids[50:], vectors[50:])
    stored = dict(zip(ids.tolist(), vectors, strict=True))
    assert engine.count == 90
    check_search(engine, stored, 10)
    check_search(engine, stored, 100)
    check_search(engine, stored, 10, set(ids[::3].tolist()))
    check_search(engine, stored, 10, {ids[4].item(), 5})  # the engine does not know 5
    check_search(engine, stored, 3, {5})
    check_search(engine, stored, 3, set())
    engine.close()


@every_engine
def test_removal_and_replacement(build):
    engine, ids, vectors = build(SIZE), made_ids(60), made_vectors(60)
    engine.add(ids, vectors)
    engine.remove(np.array([ids[3], 5, ids[40]]))
    stored = {n: v for n, v in zip(ids.tolist(), vectors, strict=True) if n not in (ids[3], ids[40])}
    assert engine.count == 58
    check_search(engine, stored, 60)
    newer = made_vectors(3, seed=1)
    engine.add(ids[2:5], newer)  # two known, one removed before
    stored |= dict(zip(ids[2:5].tolist(), newer, strict=True))
    assert engine.count == 59
    check_search(engine, stored, 60)
    engine.remove(ids)
    assert engine.count == 0
    check_search(engine, {}, 3)
    engine.add(ids[:1], vectors[:1])
    check_search(engine, {ids[0].item(): vectors[0]}, 3)
    engine.close()


@every_engine
def test_an_empty_engine(build):
    engine = build(SIZE)
    nothing = np.empty(0, np.int64)
    engine.add(nothing, made_vectors(0))
    engine.remove(np.array([3]))
    assert engine.count == 0
    check_search(engine, {}, 4)
    check_search(engine, {}, 4, {3})
    scores, ids = engine.search(np.empty((0, SIZE), np.float32), 4)
    assert scores.shape == ids.shape == (0, 4)
    engine.close()


@every_engine
def test_equal_scores_come_by_id(build):
    engine = build(SIZE)
    ids = np.array([7, 3, 5, 4])
    engine.add(ids, np.repeat(made_vectors(1), 4, axis=0))
    assert engine.search(made_vectors(1).astype(np.float32), 4)[1].tolist() == [[3, 4, 5, 7]]
    engine.close()


@every_engine
@pytest.mark.parametrize(
    ("ids", "vectors", "message"),
    [
        (np.array([1, 2]), made_vectors(3), r"vectors float16 \[2, 16\], not float16 \[3, 16\]"),
        (np.array([1]), made_vectors(1, size=8), r"not float16 \[1, 8\]"),
        (np.array([1]), made_vectors(1).astype(np.float32), "not float32"),
        (np.array([1, 1]), made_vectors(2), "an id comes twice"),
        (np.array([-1]), made_vectors(1), "id -1 is negative"),
        (np.array([1.0]), made_vectors(1), r"ids int64 \[n\], not float64"),
        (np.array([8, 9]), np.stack([made_vectors(1)[0], np.full(SIZE, np.nan, np.float16)]), "the first under id 9"),
    ],
)
def test_what_cannot_be_added(build, ids, vectors, message):
    engine = build(SIZE)
    with pytest.raises(ValueError, match=message):
        engine.add(ids, vectors)
    assert engine.count == 0
    engine.close()


@every_engine
def test_what_cannot_be_searched(build):
    engine = build(SIZE)
    engine.add(np.array([1]), made_vectors(1))
    query = np.ones((1, SIZE), np.float32)
    for queries, k, allowed, message in [
        (query[:, :8], 1, None, r"queries float32 \[Q, 16\], not float32 \[1, 8\]"),
        (query[0], 1, None, r"not float32 \[16\]"),
        (query.astype(np.float64), 1, None, "not float64"),
        (query * np.inf, 1, None, "not finite"),
        (query, 0, None, "k 0 is out of range"),
        (query, 1, np.array([0.5]), "not float64"),
    ]:
        with pytest.raises(ValueError, match=message):
            engine.search(queries, k, allowed)
    engine.close()


@settings(max_examples=12)
@given(st.lists(st.tuples(st.booleans(), st.sets(st.integers(0, 11), max_size=6)), max_size=6), st.integers(1, 14))
@pytest.mark.parametrize("build", ENGINES.values(), ids=ENGINES.keys())
def test_any_order_of_additions_and_removals(build, steps, k):
    engine, stored = build(4), {}
    for number, (adds, windows) in enumerate(steps):
        ids = np.array(sorted(windows), np.int64)
        if adds:
            vectors = made_vectors(len(ids), seed=number, size=4)
            engine.add(ids, vectors)
            stored |= dict(zip(ids.tolist(), vectors, strict=True))
        else:
            engine.remove(ids)
            stored = {number: vector for number, vector in stored.items() if number not in windows}
    assert engine.count == len(stored)
    check_search(engine, stored, k)
    check_search(engine, stored, k, {1, 4, 9})
    engine.close()


def test_blocks_of_torch(monkeypatch):
    monkeypatch.setattr("search.engines.exact.BLOCK", 7)
    engine, ids, vectors = TorchExact(SIZE), made_ids(40), made_vectors(40)
    engine.add(ids, vectors)
    stored = dict(zip(ids.tolist(), vectors, strict=True))
    for k in (1, 5, 10, 40):
        check_search(engine, stored, k)
        check_search(engine, stored, k, set(ids[::2].tolist()))


@pytest.mark.parametrize("build", [TorchExact, faiss_exact], ids=["torch", "faiss"])
@pytest.mark.parametrize(("count", "size"), [(14, 24), (700, 512)])
def test_copies_have_one_score_wherever_they_stand(build, count, size):
    """Else copies of a video come in the order of rounding, which differs between engines and processors."""
    few = made_vectors(5, size=size)
    which = np.random.default_rng(1).integers(0, 5, count)
    ids = made_ids(count)
    engine = build(size)
    engine.add(ids, few[which])
    of_id = dict(zip(ids.tolist(), which.tolist(), strict=True))
    queries = made_vectors(3, seed=2, size=size).astype(np.float32)
    for allowed in (None, ids[: count // 2]):
        for asked in (queries, queries[:1]):
            scores, found = engine.search(asked, count // 3, allowed)
            for row, numbers in zip(scores, found, strict=True):
                groups = [of_id[number] for number in numbers.tolist()]
                assert len(set(zip(groups, row.tolist(), strict=True))) == len(set(groups))
                runs = [numbers[np.array(groups) == group].tolist() for group in set(groups)]
                assert all(run == sorted(run) for run in runs)


def test_which_exact_engine(monkeypatch):
    assert type(build_exact(SIZE)) is (FaissExact if find_spec("faiss") else TorchExact)
    monkeypatch.setattr("search.engines.exact.find_spec", lambda name: None)
    assert type(build_exact(SIZE)) is TorchExact


def test_parts_of_torch(monkeypatch):
    """Vectors lie in parts; removing empties and closes gaps in them, and adding fills the last one."""
    monkeypatch.setattr("search.engines.exact.PART", 8)
    monkeypatch.setattr("search.engines.exact.BLOCK", 3)
    engine, ids, vectors = TorchExact(SIZE), made_ids(40), made_vectors(40)
    engine.add(ids[:30], vectors[:30])
    assert [part.count for part in engine._parts] == [8, 8, 8, 6]
    engine.remove(np.concatenate([ids[:8], ids[9:11], ids[28:30]]))
    assert [part.count for part in engine._parts] == [6, 8, 4]
    engine.add(ids[30:], vectors[30:])
    assert [part.count for part in engine._parts] == [6, 8, 8, 6]
    kept = [8, *range(11, 28), *range(30, 40)]
    stored = {int(ids[place]): vectors[place] for place in kept}
    assert engine.count == len(stored)
    for k in (1, 5, 10, 40):
        check_search(engine, stored, k)
        check_search(engine, stored, k, set(ids[::2].tolist()))
