"""recall@k against its definition, and the effort that is chosen on texts."""

import numpy as np
import pytest

from modules.tokenizer import Tokenizer
from search.engines.exact import TorchExact
from search.recall import (
    Recall,
    best_scores,
    measure_recall,
    nonsense_texts,
    pick_clips,
    probe_texts,
    recall_of,
    tune,
)


class FirstWindows(TorchExact):
    """An approximate engine: it searches only the first `effort` windows."""

    efforts = (1, 2, 4, 8, 16, 32)
    effort = 32

    def _search(self, queries, k, allowed):
        scores, ids = TorchExact._search(self, queries, self.count, allowed)
        scores[ids >= self.effort] = -np.inf  # its ids are 0, 1, ...
        order = np.argsort(-scores, axis=1)[:, :k]
        return np.take_along_axis(scores, order, 1), np.take_along_axis(ids, order, 1)


def two_engines(count: int = 32):
    random = np.random.default_rng(0)
    ids, vectors = np.arange(count), random.standard_normal((count, 8)).astype(np.float16)
    engines = FirstWindows(8), TorchExact(8)
    for engine in engines:
        engine.add(ids, vectors)
    return *engines, random.standard_normal((40, 8)).astype(np.float32)


def test_recall_is_the_share_of_the_best_that_is_found():
    truth = np.array([[0.9, 0.8, 0.7, 0.6], [0.9, 0.8, 0.8, 0.7], [0.5, 0.4, -np.inf, -np.inf], [-np.inf] * 4])
    found = np.array([[0.9, 0.7, 0.5, 0.4], [0.9, 0.8, 0.8, 0.7], [0.5, -np.inf, -np.inf, -np.inf], [-np.inf] * 4])
    assert recall_of(found, truth).tolist() == [0.5, 1.0, 0.5, 1.0]


@pytest.mark.parametrize("effort", [4, 16, 32])
def test_recall_of_an_engine_that_searches_a_part(effort):
    engine, exact, texts = two_engines()
    engine.effort = effort
    best = exact.search(texts, 10)[1]
    expected = float((best < effort).mean())  # ids are in the order of the engine
    assert measure_recall(engine, exact, texts, texts[:0]) == Recall(pytest.approx(expected), None, 40, 0)


def test_a_clip_of_the_index_does_not_find_itself():
    _, exact, texts = two_engines()
    (part,) = exact._parts
    vectors = part.vectors.numpy()
    clips, own = pick_clips(part.ids, vectors, 8)
    assert len(own) == 8
    scores = best_scores(exact, clips, own=own)
    for query, number, row in zip(clips, own, scores, strict=True):
        others = sorted((float(query @ v) for i, v in enumerate(vectors.astype(np.float32)) if i != number))
        np.testing.assert_allclose(row, others[::-1][:10], rtol=1e-4)
    assert measure_recall(exact, exact, texts, clips, own) == Recall(1.0, 1.0, 40, 8)


def test_the_least_effort_that_reaches_the_target():
    engine, exact, texts = two_engines()
    for target, least in ((0.01, 1), (0.3, None), (1.0, 32)):
        reached = tune(engine, exact, texts, target)
        assert reached >= target
        assert least in (None, engine.effort)
        chosen = engine.effort
        if chosen > 1:
            engine.effort = chosen // 2
            below = measure_recall(engine, exact, texts, texts[:0]).text
            assert below is not None
            assert below < target


def test_a_target_out_of_reach_takes_the_greatest_effort():
    engine, exact, texts = two_engines(64)
    assert tune(engine, exact, texts, 1.0) < 1
    assert engine.effort == 32


@pytest.mark.parametrize("target", [0.0, 1.1, float("nan")])
def test_targets_out_of_range(target):
    engine, exact, texts = two_engines()
    with pytest.raises(ValueError, match="out of range"):
        tune(engine, exact, texts, target)
    with pytest.raises(ValueError, match="there are none"):
        tune(engine, exact, texts[:0])


def test_the_sentences_to_probe_with_differ():
    texts = probe_texts()
    assert len(set(texts)) == len(texts) == 200


def test_sentences_without_a_meaning():
    texts = nonsense_texts()
    assert texts == nonsense_texts()
    assert len(set(texts)) == 200
    assert {len(text.split()) for text in texts} == set(range(4, 13))
    tokenizer = Tokenizer()
    for text in texts:
        assert len(tokenizer.words(text)) == len(text.split()), "each word is one token"
