"""Metrics equal plain loops: over all orders for ties, over the full matrix for many captions per video."""

import itertools
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.tasks.retrieval_metrics import RECALL_AT, count_better, retrieval_metrics, summarise, twin_accuracy

ROOT = Path(__file__).parents[3]


def naive_summary(scores: np.ndarray, right: list[int]) -> dict[str, float]:
    """Average over every order of tied candidates by listing all orders."""
    places = []  # for each query, a list of equally likely ranks
    for row, own in zip(scores, right, strict=True):
        ranks = []
        for order in itertools.permutations(range(len(row))):
            ranking = sorted(order, key=lambda c: -row[c])  # stable: ties stay as in `order`
            ranks.append(ranking.index(own) + 1)
        places.append(ranks)
    metrics = {f"R@{k}": 100 * np.mean([np.mean([rank <= k for rank in ranks]) for ranks in places]) for k in RECALL_AT}
    means = [np.mean(ranks) for ranks in places]
    return metrics | {"MdR": np.median(means), "MnR": np.mean(means)}


@given(st.integers(1, 5), st.integers(1, 5), st.integers(0, 10_000))
@settings(max_examples=40)
def test_ties_are_averaged_over_all_orders(n, candidates, seed):
    generator = np.random.default_rng(seed)
    scores = generator.integers(0, 3, (n, candidates)).astype(np.float32)  # few values, many ties
    right = generator.integers(0, candidates, n)
    got = summarise(*count_better(torch.tensor(scores), torch.tensor(right)))
    assert got == pytest.approx(naive_summary(scores, right.tolist()))


def test_a_model_with_equal_scores_is_at_chance():
    metrics = summarise(*count_better(torch.zeros(10, 10), torch.arange(10)))
    assert metrics["R@1"] == pytest.approx(10)
    assert metrics["MnR"] == pytest.approx(5.5)


@given(st.integers(1, 7), st.integers(0, 10_000), st.integers(1, 9), st.integers(0, 4))
@settings(max_examples=80)
def test_many_captions_per_video_in_any_block_size(n_videos, seed, block, each):
    """`each` captions of every video, or with 0 different numbers."""
    generator = np.random.default_rng(seed)
    more = generator.integers(0, n_videos, 6) if each == 0 else np.tile(np.arange(n_videos), each - 1)
    video_of_caption = np.concatenate([np.arange(n_videos), more])
    generator.shuffle(video_of_caption)
    scores = generator.integers(0, 6, (len(video_of_caption), n_videos)).astype(np.float32)

    text = summarise(*count_better(torch.tensor(scores), torch.tensor(video_of_caption)))
    best = np.full((n_videos, n_videos), -np.inf, np.float32)  # query video x candidate video
    for query in range(n_videos):
        for caption, owner in enumerate(video_of_caption):
            best[query, owner] = max(best[query, owner], scores[caption, query])
    video = summarise(*count_better(torch.tensor(best), torch.arange(n_videos)))

    got = retrieval_metrics(lambda c, v: torch.tensor(scores[np.ix_(c, v)]), video_of_caption, n_videos, block)
    assert got["text_to_video"] == pytest.approx(text)
    assert got["video_to_text"] == pytest.approx(video)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_a_score_that_is_not_finite_is_an_error(bad):
    scores = torch.zeros(4, 4)
    scores[2, 1] = bad
    with pytest.raises(ValueError, match="1 of 4 queries"):
        retrieval_metrics(lambda c, v: scores[c][:, v], np.arange(4), 4)


def test_a_video_without_caption_is_an_error():
    with pytest.raises(ValueError, match="at least one caption"):
        retrieval_metrics(lambda c, v: torch.zeros(len(c), len(v)), np.array([0, 0, 2]), 3)


def test_never_asks_for_the_whole_matrix():
    shapes, pairs = set(), 0

    def similarity(captions, videos):
        nonlocal pairs
        shapes.add((len(captions), len(videos)))
        pairs += len(captions) * len(videos)
        return torch.zeros(len(captions), len(videos))

    retrieval_metrics(similarity, np.repeat(np.arange(100), 5), 100, block=5)
    assert shapes == {(5, 5)}  # one shape, so that equal rows get equal scores
    assert pairs == 500 * 100 + 500 * 5  # each pair once, besides the tiles with the captions' own videos


@pytest.mark.parametrize("shuffled", [False, True])
@pytest.mark.parametrize("block", [16, 64, 100, 512])
def test_equal_rows_tie_in_every_tile(block, shuffled):
    """Check cosines in fp32, which are rounded: copies of a video and of a caption tie wherever they stand."""
    generator = torch.Generator().manual_seed(0)
    owner = np.repeat(np.arange(300), 3)
    if shuffled:
        np.random.default_rng(0).shuffle(owner)
    videos = torch.nn.functional.normalize(torch.randn(100, 64, generator=generator), dim=-1).repeat(3, 1)
    captions = torch.nn.functional.normalize(videos[owner] + 0.01, dim=-1)
    scores = captions @ videos.T
    text = summarise(*count_better(scores, torch.tensor(owner)))
    best = torch.stack([scores[owner == video].amax(dim=0) for video in range(300)], dim=1)
    video = summarise(*count_better(best, torch.arange(300)))
    got = retrieval_metrics(lambda c, v: captions[c] @ videos[v].T, owner, 300, block)
    assert got == {"text_to_video": text, "video_to_text": video}
    assert got["text_to_video"]["R@1"] == pytest.approx(100 / 3)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_scores_of_every_type(dtype):
    scores = torch.randint(0, 9, (3000, 1500), generator=torch.Generator().manual_seed(0)).to(dtype)
    owner = np.arange(3000) % 1500
    got = retrieval_metrics(lambda c, v: scores[c][:, v], owner, 1500)
    assert got == retrieval_metrics(lambda c, v: scores[c][:, v].float(), owner, 1500)


def test_finite_scores_with_an_infinite_sum_have_ranks():
    scores = torch.full((4, 4), 3e38)
    assert retrieval_metrics(lambda c, v: scores[c][:, v], np.arange(4), 4)["text_to_video"]["MnR"] == 2.5
    assert count_better(scores, torch.arange(4))[1].tolist() == [3] * 4


LARGE_GALLERY = """
import resource

import numpy as np
import torch

from engine.tasks.retrieval_metrics import retrieval_metrics, text_to_video_metrics, video_to_text_metrics
from engine.tasks.postprocessing import dual_softmax, qb_norm
from modules.rows import take
from modules.similarity import scaled_product, unit

n_captions, n_videos, n_bank, scale = 50_000, 10_000, 5000, torch.tensor(100.0).log()
owner = np.repeat(np.arange(n_videos), n_captions // n_videos)
generator = torch.Generator().manual_seed(0)
torch.set_grad_enabled(False)
videos = torch.randn(n_videos, 512, generator=generator)
captions = unit(videos[owner] + 8 * torch.randn(n_captions, 512, generator=generator))
videos, bank = unit(videos), unit(torch.randn(n_bank, 512, generator=generator))

def similarity(c, v):
    return scaled_product(take(captions, c), take(videos, v), scale)

for_captions, for_videos = dual_softmax(similarity, n_captions, n_videos, 1.0)
banked = qb_norm(similarity, lambda b, v: scaled_product(take(bank, b), take(videos, v), scale), n_bank, n_videos, 0.2)
metrics = [
    *retrieval_metrics(similarity, owner, n_videos).values(),
    text_to_video_metrics(for_captions, owner, n_videos),
    video_to_text_metrics(for_videos, owner, n_videos),
    text_to_video_metrics(banked, owner, n_videos),
]
assert all(5 < each["R@1"] < 95 for each in metrics), metrics
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


@pytest.mark.slow
def test_a_large_gallery_in_two_gigabytes():
    """Check 50,000 captions and 10,000 videos with all post-processing; the whole matrix alone would take 2 GB."""
    done = subprocess.run(
        [sys.executable, "-c", LARGE_GALLERY],
        cwd=ROOT, env=os.environ | {"CUDA_VISIBLE_DEVICES": ""}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert int(done.stdout) * 1024 < 2e9


def test_no_queries_is_an_error():
    with pytest.raises(ValueError, match="no queries"):
        summarise(np.array([]), np.array([]))


@pytest.mark.parametrize("block", [1, 3, 100])
def test_twin_accuracy_against_a_loop(block):
    generator = np.random.default_rng(1)
    scores = generator.integers(0, 3, (9, 6)).astype(np.float32)
    video_of_caption = generator.integers(0, 6, 9)
    twin_of = np.array([1, 0, -1, 4, 3, -1])
    points = []
    for caption, video in enumerate(video_of_caption):
        if twin_of[video] >= 0:
            own, twin = scores[caption, video], scores[caption, twin_of[video]]
            points.append(1.0 if own > twin else 0.5 if own == twin else 0.0)
    got = twin_accuracy(lambda c, v: torch.tensor(scores[np.ix_(c, v)]), video_of_caption, twin_of, block)
    assert got == pytest.approx(100 * np.mean(points))


def test_no_twins_is_an_error():
    with pytest.raises(ValueError, match="no captioned video has a twin"):
        twin_accuracy(lambda c, v: torch.zeros(len(c), len(v)), np.arange(2), np.array([-1, -1]))
