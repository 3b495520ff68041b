"""Dual softmax and QB-Norm equal loops over the full matrix, written from the papers' equations."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.tasks.postprocessing import dual_softmax, qb_norm
from engine.tasks.retrieval_metrics import retrieval_metrics, text_to_video_metrics, video_to_text_metrics


def similarity_of(matrix: np.ndarray):
    return lambda rows, columns: torch.tensor(matrix[np.ix_(rows, columns)])


def rounded(similarity):
    """Round scores, so that equal numbers that were computed in different ways are equal."""
    return lambda rows, columns: torch.round(similarity(rows, columns), decimals=9)


def naive_dual_softmax(scores: np.ndarray, temperature: float) -> np.ndarray:
    """Return S[q,c] times the softmax of S[q,c] / t over all queries q, `[queries,candidates]`."""
    result = np.zeros_like(scores)
    for query, candidate in np.ndindex(scores.shape):
        total = sum(np.exp(other / temperature) for other in scores[:, candidate])
        result[query, candidate] = scores[query, candidate] * np.exp(scores[query, candidate] / temperature) / total
    return result


def naive_qb_norm(scores: np.ndarray, bank: np.ndarray, beta: float) -> tuple[np.ndarray, list[int]]:
    """Return the paper's scores, and the queries whose scores were normalised."""
    activated = {max(range(len(row)), key=lambda v: row[v]) for row in bank}  # `max` gives the first of equals
    result, normalised = scores.copy(), []
    for query, row in enumerate(scores):
        if max(range(len(row)), key=lambda v: row[v]) in activated:
            normalised.append(query)
            for video, score in enumerate(row):
                result[query, video] = np.exp(beta * score) / sum(np.exp(beta * other) for other in bank[:, video])
    return result, normalised


def many_captions(n_videos: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.random.Generator]:
    """Return scores with many ties `[N,V]`, each caption's video in random order `[N]`, and the generator."""
    generator = np.random.default_rng(seed)
    owner = np.concatenate([np.arange(n_videos), generator.integers(0, n_videos, 6)])
    generator.shuffle(owner)
    return generator.integers(-2, 4, (len(owner), n_videos)).astype(np.float64), owner, generator


@given(st.integers(1, 7), st.integers(0, 10_000), st.integers(1, 9), st.sampled_from([0.5, 1.0, 20.0]))
@settings(max_examples=40)
def test_dual_softmax_against_loops(n_videos, seed, block, temperature):
    scores, owner, _ = many_captions(n_videos, seed)
    everything = np.arange(len(owner)), np.arange(n_videos)
    for_captions, for_videos = dual_softmax(similarity_of(scores), len(owner), n_videos, temperature, block)
    for_captions_naive = naive_dual_softmax(scores, temperature)
    for_videos_naive = naive_dual_softmax(scores.T, temperature).T
    np.testing.assert_allclose(for_captions(*everything), for_captions_naive, rtol=1e-12)
    np.testing.assert_allclose(for_videos(*everything), for_videos_naive, rtol=1e-12)

    naive = retrieval_metrics(rounded(similarity_of(for_captions_naive)), owner, n_videos)
    got = text_to_video_metrics(rounded(for_captions), owner, n_videos, block)
    assert got == pytest.approx(naive["text_to_video"])
    naive = retrieval_metrics(rounded(similarity_of(for_videos_naive)), owner, n_videos)
    assert video_to_text_metrics(rounded(for_videos), owner, n_videos, block) == pytest.approx(naive["video_to_text"])


@given(st.integers(1, 7), st.integers(1, 8), st.integers(0, 10_000), st.integers(1, 9))
@settings(max_examples=40)
def test_qb_norm_against_loops(n_videos, n_bank, seed, block):
    scores, owner, generator = many_captions(n_videos, seed)
    bank = generator.integers(-2, 4, (n_bank, n_videos)).astype(np.float64)
    naive, normalised = naive_qb_norm(scores, bank, beta=0.7)
    rescored = qb_norm(similarity_of(scores), similarity_of(bank), n_bank, n_videos, 0.7, block)
    got = rescored(np.arange(len(owner)), np.arange(n_videos)).numpy()
    got[normalised] = np.exp(got[normalised])
    np.testing.assert_allclose(got, naive, rtol=1e-12)

    expected = text_to_video_metrics(rounded(similarity_of(naive)), owner, n_videos)
    assert text_to_video_metrics(rounded(rescored), owner, n_videos, block) == pytest.approx(expected)


def test_qb_norm_lowers_a_hub():
    """Check video 0, which attracts all captions and is the bank's best: every caption finds its own video again."""
    scores = np.array([[3.0, 0.0, 0.0], [3.0, 2.0, 0.0], [3.0, 0.0, 2.0]])
    bank = np.array([[3.0, 0.0, 0.5], [3.0, 0.5, 0.0]])
    assert text_to_video_metrics(similarity_of(scores), np.arange(3), 3)["R@1"] == pytest.approx(100 / 3)
    normalised = qb_norm(similarity_of(scores), similarity_of(bank), 2, 3, beta=1.0)
    assert text_to_video_metrics(normalised, np.arange(3), 3)["R@1"] == pytest.approx(100)


def test_a_query_whose_best_video_is_not_a_hub_keeps_its_scores():
    scores = np.array([[1.0, 2.0], [2.0, 1.0]])
    bank = np.array([[5.0, 0.0]])
    normalised = qb_norm(similarity_of(scores), similarity_of(bank), 1, 2, beta=1.0)(np.arange(2), np.arange(2))
    np.testing.assert_array_equal(normalised[0], scores[0])
    np.testing.assert_allclose(normalised[1], [2.0 - 5.0, 1.0 - 0.0])


def test_equal_scores_stay_at_chance():
    n = 37
    alike = similarity_of(np.full((n, n), 30.0, np.float32))
    for_captions, for_videos = dual_softmax(alike, n, n, 1.0, block=8)
    for metrics in (
        text_to_video_metrics(for_captions, np.arange(n), n, block=8),
        video_to_text_metrics(for_videos, np.arange(n), n, block=8),
        text_to_video_metrics(qb_norm(alike, alike, n, n, 0.2, block=8), np.arange(n), n, block=8),
    ):
        assert metrics["R@1"] == pytest.approx(100 / n)


def test_the_whole_range_of_clips_logits_keeps_its_order():
    """Check scores from 1 to 100; in fp32 the far candidates would all be 0 and tie."""
    scores = np.linspace(1, 100, 10, dtype=np.float32)[:, None] * np.ones((1, 2), np.float32)
    scores[:, 1] = 100
    for_captions, _ = dual_softmax(similarity_of(scores), 10, 2, 1.0)
    assert (for_captions(np.arange(10), np.array([0])).squeeze(1).diff() > 0).all()


def test_never_asks_for_the_whole_matrix():
    shapes = set()

    def similarity(captions, videos):
        shapes.add((len(captions), len(videos)))
        return torch.zeros(len(captions), len(videos))

    owner = np.repeat(np.arange(10), 5)
    for_captions, for_videos = dual_softmax(similarity, 50, 10, 1.0, block=4)
    text_to_video_metrics(for_captions, owner, 10, block=4)
    video_to_text_metrics(for_videos, owner, 10, block=4)
    text_to_video_metrics(qb_norm(similarity, similarity, 30, 10, 1.0, block=4), owner, 10, block=4)
    assert shapes == {(4, 10), (2, 10), (50, 4), (50, 2)}
