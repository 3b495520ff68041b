"""Scores with a bag of prompts: a plain loop, properties, blocks, and what is kept for the gradient."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from modules.bag import Bag, bag_scores, first_occurrences, frames_of, make_bag
from modules.frame_rows import FrameRows

SCALE = 20.0


def numbers(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def inputs(b: int = 3, t: int = 4, k: int = 5, m: int = 6, e: int = 8, seed: int = 0) -> tuple[Tensor, Tensor, Bag]:
    """Return frames `[B,T,E]`, their mask and a bag, both with some that do not count; the first of each does."""
    frame_mask = numbers(seed + 1, b, t) > -0.5
    mask = numbers(seed + 2, k, m) > -0.5
    frame_mask[:, 0] = mask[:, 0] = True
    return 3 * numbers(seed, b, t, e), frame_mask, make_bag(2 * numbers(seed + 3, k, m, e), mask)


def by_a_loop(frames: Tensor, frame_mask: Tensor, bag: Bag, mean: str) -> Tensor:
    """Return the scores as the equations say, with one Python number after the other."""
    scores = torch.zeros(len(frames), len(bag.prompts))
    for b in range(len(frames)):
        real = [f / f.norm() for f, own in zip(frames[b], frame_mask[b], strict=True) if own]
        for k in range(len(bag.prompts)):
            all_prompts = zip(bag.prompts[k], bag.mask[k], strict=True)
            prompts = [p for p, own in all_prompts if own or mean == "padded"]
            a = [[SCALE * float(f @ p) for p in prompts] for f in real]
            over_prompts = np.mean([max(row[m] for row in a) for m in range(len(prompts))])
            over_frames = np.mean([max(row) for row in a])
            scores[b, k] = (over_prompts + over_frames) / 2
    return scores


@pytest.mark.parametrize("mean", ["padded", "masked"])
def test_scores_by_a_plain_loop(mean):
    frames, frame_mask, bag = inputs()
    assert not frame_mask.all()
    assert not bag.mask.all()
    found = bag_scores(frames, frame_mask, bag, SCALE, mean)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, by_a_loop(frames, frame_mask, bag, mean), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("mean", ["padded", "masked"])
@pytest.mark.parametrize("at_once", [1, 3 * 4 * 6 * 2, 3 * 4 * 6 * 5, 10**9])
def test_blocks_of_any_size_give_the_same_scores_and_gradients(mean, at_once):
    frames, frame_mask, bag = inputs()
    results = []
    for size in (at_once, 3 * 4 * 6 * 3):
        leaf, scale = frames.clone().requires_grad_(), torch.tensor(SCALE, requires_grad=True)
        scores = bag_scores(leaf, frame_mask, bag, scale, mean, at_once=size)
        (scores * numbers(9, 3, 5)).sum().backward()
        results.append((scores.detach(), leaf.grad, scale.grad))
    for found, expected in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("mean", ["padded", "masked"])
def test_the_gradient_is_that_of_finite_differences(mean):
    frames, frame_mask, bag = inputs()

    def loss(values: Tensor) -> Tensor:
        return (bag_scores(values, frame_mask, bag, SCALE, mean) * numbers(9, 3, 5)).sum()

    leaf = frames.clone().requires_grad_()
    loss(leaf).backward()
    assert leaf.grad[~frame_mask].abs().max() == 0
    direction = numbers(8, *frames.shape)
    step = 1e-2
    slope = (loss(frames + step * direction) - loss(frames - step * direction)) / (2 * step)
    assert float((leaf.grad * direction).sum()) == pytest.approx(float(slope), rel=1e-2, abs=1e-2)


def test_padding_may_be_zeros_and_its_gradient_is_zero():
    frames, frame_mask, bag = inputs()
    leaf = frames.masked_fill(~frame_mask[..., None], 0).requires_grad_()
    scores = bag_scores(leaf, frame_mask, bag, SCALE)
    torch.testing.assert_close(scores, bag_scores(frames, frame_mask, bag, SCALE))
    scores.sum().backward()
    assert leaf.grad.isfinite().all()
    assert leaf.grad[~frame_mask].abs().max() == 0


@settings(max_examples=12)
@given(seed=st.integers(0, 10**6), b=st.integers(1, 3), t=st.integers(1, 5), k=st.integers(1, 4), m=st.integers(1, 5))
def test_properties(seed, b, t, k, m):
    frames, frame_mask, bag = inputs(b, t, k, m, 6, seed)
    generator = torch.Generator().manual_seed(seed)
    frame_order, order = torch.randperm(t, generator=generator), torch.randperm(m, generator=generator)
    scale = torch.tensor(SCALE)
    for mean in ("padded", "masked"):
        scores = bag_scores(frames, frame_mask, bag, scale, mean)
        # The order of frames and prompts does not matter.
        shuffled = Bag(bag.prompts[:, order], bag.mask[:, order])
        found = bag_scores(frames[:, frame_order], frame_mask[:, frame_order], shuffled, scale, mean)
        torch.testing.assert_close(found, scores, atol=1e-4, rtol=1e-4)
        # A repeat of all prompts changes nothing: in a padded mean if it counts, in a masked mean in any case.
        for repeat in (bag.mask, torch.zeros_like(bag.mask)):
            twice = Bag(bag.prompts.repeat(1, 2, 1), torch.cat([bag.mask, repeat], dim=1))
            torch.testing.assert_close(bag_scores(frames, frame_mask, twice, scale, mean), scores, atol=1e-4, rtol=1e-4)
        # Padding frames count nowhere.
        longer = torch.cat([frames, numbers(seed, b, 2, 6)], dim=1)
        padded = torch.cat([frame_mask, torch.zeros(b, 2, dtype=torch.bool)], dim=1)
        torch.testing.assert_close(bag_scores(longer, padded, bag, scale, mean), scores, atol=1e-4, rtol=1e-4)
        # The best possible score is s, as no cosine is above 1.
        assert scores.max() <= SCALE * (1 + 1e-5)


def test_one_frame_and_one_prompt():
    """One frame: the mean and the maximum over prompts, halved. One prompt: the same with frames."""
    frames, _, bag = inputs(t=1)
    cosines = torch.einsum("be,kme->bkm", torch.nn.functional.normalize(frames[:, 0], dim=-1), bag.prompts)
    scores = bag_scores(*frames_of(frames[:, 0]), bag, SCALE)
    torch.testing.assert_close(scores, SCALE * (cosines.mean(2) + cosines.amax(2)) / 2)
    frames, frame_mask, bag = inputs(m=1)
    every = torch.ones_like(frame_mask)
    cosines = torch.einsum("bte,ke->btk", torch.nn.functional.normalize(frames, dim=-1), bag.prompts[:, 0])
    torch.testing.assert_close(bag_scores(frames, every, bag, SCALE), SCALE * (cosines.mean(1) + cosines.amax(1)) / 2)


def test_scores_are_in_fp32_under_autocast():
    frames, frame_mask, bag = inputs()
    expected = bag_scores(frames, frame_mask, bag, SCALE)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(bag_scores(frames, frame_mask, bag, SCALE), expected)


def test_rows_that_a_bag_scores():
    frames, frame_mask, _ = inputs()
    assert frames_of(FrameRows(frames, frame_mask)) == (frames, frame_mask)
    one = frames_of(frames[:, 0])
    assert one.frames.shape == (3, 1, 8)
    assert one.frame_mask.all()
    for rows in (frames, Bag(frames, frame_mask)):
        with pytest.raises(ValueError, match="a bag of prompts scores one vector of a clip or of each of its frames"):
            frames_of(rows)


def test_the_first_of_equal_prompts_counts():
    features = numbers(0, 2, 3, 4)
    repeated = torch.cat([features, features[:, :2], features[:, 1:2].flip(0)], dim=1)
    expected = torch.tensor([[1, 1, 1, 0, 0, 1]] * 2, dtype=torch.bool)
    assert torch.equal(first_occurrences(repeated), expected)
    # With these, a masked mean is that of the prompts without their repeats.
    frames, frame_mask, _ = inputs(e=4)
    alone = make_bag(features, torch.ones(2, 3))
    bag = make_bag(repeated[:, :5], expected[:, :5])
    torch.testing.assert_close(
        bag_scores(frames, frame_mask, bag, SCALE, "masked"), bag_scores(frames, frame_mask, alone, SCALE)
    )


class Largest(TorchDispatchMode):
    """Notes the number of values of the largest tensor that an operation makes."""

    values = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple) else (result,):
            if isinstance(tensor, Tensor) and tensor.untyped_storage().data_ptr() not in self.known:
                self.values = max(self.values, tensor.numel())
        return result

    def __init__(self, *known: Tensor) -> None:
        super().__init__()
        self.known = {tensor.untyped_storage().data_ptr() for tensor in known}


@pytest.mark.parametrize("mean", ["padded", "masked"])
def test_memory_is_bounded(mean):
    """No tensor has the scores of all frames with all prompts, and only the places of maxima are kept."""
    b, t, k, m, e = 4, 8, 20, 16, 8
    frames, frame_mask, bag = inputs(b, t, k, m, e)
    frames.requires_grad_()
    saved: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    at_once = b * t * m * 3  # three classes of twenty
    with torch.autograd.graph.saved_tensors_hooks(note, lambda t: t), Largest(*bag) as largest:
        scores = bag_scores(frames, frame_mask, bag, torch.tensor(SCALE, requires_grad=True), mean, at_once)
        scores.sum().backward()
    assert largest.values == at_once < b * t * k * m
    for tensor in bag:
        saved.pop(tensor.untyped_storage().data_ptr(), None)
    places = 8 * b * k * (m + t)
    masks_and_frames = 4 * frames.numel() * 4 + k * (b * t + 2 * m) + 8 * b * k * 4
    assert places <= sum(saved.values()) <= places + masks_and_frames
