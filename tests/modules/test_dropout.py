"""Dropout of prompts: how much is dropped, what is left, and its gradient."""

import pytest
import torch

from modules.dropout import PromptDropout


@pytest.mark.parametrize("p", [0.1, 0.5, 0.99])
def test_each_value_is_dropped_with_the_probability_and_the_rest_scaled(p):
    torch.manual_seed(0)
    dropped = PromptDropout(p)(torch.full((400, 501), 3.0))
    share = (dropped == 0).double()
    for axis in (0, 1):  # and places do not matter: neither rows nor the four values of one number
        assert (share.mean(dim=axis) - p).abs().max() < 5 * (p * (1 - p) / share.shape[axis]) ** 0.5
    for four in range(4):
        assert abs(share.flatten()[four::4].mean() - p) < 5 * (p * (1 - p) / 50_000) ** 0.5
    kept = dropped[dropped != 0]
    torch.testing.assert_close(kept, torch.full_like(kept, 3 / (1 - p)), atol=0, rtol=1e-3)


def test_neighbours_are_dropped_independently():
    torch.manual_seed(0)
    dropped = (PromptDropout(0.5)(torch.ones(100_000)) == 0).double()
    for distance in (1, 2, 3, 4):
        both = (dropped[distance:] * dropped[:-distance]).mean()
        assert abs(both - 0.25) < 0.01


def test_the_gradient_goes_where_the_values_went():
    x = torch.rand(7, 11, requires_grad=True)
    dropped = PromptDropout(0.3)(x)
    dropped.sum().backward()
    torch.testing.assert_close(x.grad * x.detach(), dropped.detach())


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_the_type_stays(dtype):
    assert PromptDropout(0.3)(torch.ones(5, dtype=dtype)).dtype == dtype


def test_nothing_is_dropped_in_evaluation_nor_with_probability_zero():
    x = torch.randn(5)
    assert torch.equal(PromptDropout(0.9).eval()(x), x)
    assert torch.equal(PromptDropout(0.0)(x), x)


def test_a_seed_draws_the_same():
    runs = []
    for _ in range(2):
        torch.manual_seed(3)
        runs.append(PromptDropout(0.5)(torch.ones(99)))
    assert torch.equal(*runs)
