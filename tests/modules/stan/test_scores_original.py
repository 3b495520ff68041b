"""STAN's scores, their loss and their ranks against the original's numbers."""

import numpy as np
import pytest
import torch

from engine.tasks.retrieval_metrics import retrieval_metrics
from modules.losses import symmetric_info_nce
from tests.modules.stan.original import numbers, small_stan


def test_the_loss_of_cosines(reference):
    """The sum of both directions, which is twice ours, and its gradients. The stored scores have clips in rows."""
    case, method = numbers(reference)["nce"], small_stan(tau=0.01)
    text, video = case["text"].clone().requires_grad_(), case["video"].clone().requires_grad_()
    scores = method.similarity(text, video)
    torch.testing.assert_close(scores / case["scale"], case["sim"].T, atol=1e-6, rtol=1e-5)
    loss = 2 * symmetric_info_nce(scores)
    assert loss.item() == pytest.approx(case["loss"].item(), rel=1e-5)
    loss.backward()
    for ours, theirs in ((text.grad, case["grad_text"]), (video.grad, case["grad_video"])):
        assert (ours - theirs).abs().max() < 1e-5 * theirs.abs().max()


def test_ranks_without_ties_and_with(reference):
    """With equal videos the original counts each query once for each of them; here a tie has its expectation."""
    case, method = numbers(reference)["metric"], small_stan()
    video = case["video"].clone()

    def ranks() -> dict[str, float]:
        scores = method.similarity(case["text"], video).detach()
        return retrieval_metrics(lambda texts, videos: scores[texts][:, videos], np.arange(50), 50)["text_to_video"]

    found = ranks()
    assert {name.replace("@", ""): value for name, value in found.items()} == pytest.approx(case["out"])
    video[1:4] = video[:1]
    assert ranks()["R@1"] >= found["R@1"] - 4 * 100 / 50 > case["out_with_ties_videos_0_to_3_identical"]["R1"]
