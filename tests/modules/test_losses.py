"""The loss against loops over its definition."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from modules.losses import symmetric_info_nce

SAME_VIDEOS = torch.tensor([4, 0, 4, 7, 0, 4])


def loss_by_loops(logits: torch.Tensor, videos: list[int]) -> float:
    """Of every pair, in both directions: the mean over its positives of minus the log of the softmax."""
    n, total = len(videos), 0.0
    for i in range(n):
        positives = [j for j in range(n) if videos[j] == videos[i]]
        for scores in (logits[i].tolist(), logits[:, i].tolist()):
            normaliser = math.log(sum(math.exp(score) for score in scores))
            total += sum(normaliser - scores[j] for j in positives) / len(positives)
    return total / (2 * n)


def test_it_is_the_mean_of_both_directions():
    torch.manual_seed(0)
    logits = torch.randn(5, 5) * 3
    assert float(symmetric_info_nce(logits)) == pytest.approx(loss_by_loops(logits, [0, 1, 2, 3, 4]), rel=1e-6)


@given(st.lists(st.integers(0, 5), min_size=1, max_size=9), st.integers(0, 2**32))
def test_all_pairs_of_a_video_are_positives(videos, seed):
    logits = 5 * torch.randn(len(videos), len(videos), generator=torch.Generator().manual_seed(seed))
    loss = symmetric_info_nce(logits, torch.tensor(videos))
    assert float(loss) == pytest.approx(loss_by_loops(logits, videos), rel=1e-5, abs=1e-6)


def test_without_a_video_twice_it_is_the_plain_loss():
    torch.manual_seed(0)
    logits = (torch.randn(6, 6) * 4).requires_grad_()
    losses = [symmetric_info_nce(logits), symmetric_info_nce(logits, torch.tensor([9, 0, 5, 3, 1, 2**40]))]
    torch.testing.assert_close(losses[0], losses[1])
    gradients = [torch.autograd.grad(loss, logits)[0] for loss in losses]
    torch.testing.assert_close(gradients[0], gradients[1])
    assert (symmetric_info_nce(logits, SAME_VIDEOS) - losses[0]).abs() > 0.01


@pytest.mark.parametrize("video_index", [None, SAME_VIDEOS])
def test_gradients(video_index):
    torch.manual_seed(0)
    logits = (torch.randn(6, 6, dtype=torch.float64) * 3).requires_grad_()
    assert torch.autograd.gradcheck(lambda rows: symmetric_info_nce(rows, video_index), logits)


def test_the_best_are_equal_logits_of_all_positives():
    """Where the minimum is: all the probability on the positives, as much on each."""
    logits = torch.where(SAME_VIDEOS[:, None] == SAME_VIDEOS, 0.0, -1e4).requires_grad_()
    loss = symmetric_info_nce(logits, SAME_VIDEOS)
    assert loss.item() == pytest.approx((3 * math.log(3) + 2 * math.log(2)) / 6, rel=1e-5)
    assert torch.autograd.grad(loss, logits)[0].abs().max() < 1e-6


def test_with_the_same_clip_in_all_pairs_of_a_video_it_is_the_plain_loss():
    torch.manual_seed(0)
    text, clips = torch.randn(6, 4), torch.randn(8, 4)[SAME_VIDEOS]
    torch.testing.assert_close(symmetric_info_nce(text @ clips.T, SAME_VIDEOS), symmetric_info_nce(text @ clips.T))


def test_half_precision_is_computed_in_single():
    torch.manual_seed(0)
    logits = (torch.randn(6, 6) * 30).bfloat16()
    for video_index in (None, SAME_VIDEOS):
        loss = symmetric_info_nce(logits, video_index)
        assert loss.dtype == torch.float32
        assert torch.equal(loss, symmetric_info_nce(logits.float(), video_index))


def test_no_knowledge_costs_log_batch():
    assert float(symmetric_info_nce(torch.zeros(8, 8))) == pytest.approx(math.log(8))


def test_oblong_logits_are_refused():
    with pytest.raises(ValueError, match=r"\(2, 3\)"):
        symmetric_info_nce(torch.zeros(2, 3))
    with pytest.raises(ValueError, match=r"video_index for each of the 3 pairs; got \(2,\)"):
        symmetric_info_nce(torch.zeros(3, 3), torch.zeros(2, dtype=torch.int64))
