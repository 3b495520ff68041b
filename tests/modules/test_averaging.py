"""Averages of weights, against loops that follow the definitions word for word."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from modules.averaging import average_weights, patched, weighted_mean

RELEASE = list(range(2, 23))  # the epochs that STDD averages


def state(seed: int, **more: torch.Tensor) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {"a": torch.randn(3, 4, generator=generator), "b": torch.randn((), generator=generator), **more}


def members(*states: dict[str, torch.Tensor]) -> list[tuple[str, dict[str, torch.Tensor]]]:
    return [(f"member {number}", each) for number, each in enumerate(states)]


def naive(states: list[dict[str, torch.Tensor]], shares: list[float], name: str) -> torch.Tensor:
    total = torch.zeros(states[0][name].shape, dtype=torch.float64)
    for each, share in zip(states, shares, strict=True):
        total += share / sum(shares) * each[name].double()
    return total.float()


def shares_by_definition(how: str, epochs: list[int]) -> list[float]:
    shares = []
    for k, epoch in enumerate(epochs):
        if how == "swa":
            shares.append(1.0)
        elif how == "gwa":
            shares.append(torch.distributions.Normal(15.0, 10.0).log_prob(torch.tensor(float(epoch))).exp().item())
        else:
            place = torch.tensor((k + 0.5) / len(epochs), dtype=torch.float64)
            half = torch.tensor(0.5, dtype=torch.float64)
            shares.append(torch.distributions.Beta(half, half).log_prob(place).exp().item())
    return shares


@pytest.mark.parametrize("how", ["swa", "gwa", "bwa"])
@pytest.mark.parametrize("epochs", [RELEASE, [0, *RELEASE], [7], [0, 1]])
def test_weights_follow_the_densities(how, epochs):
    shares = shares_by_definition(how, epochs)
    assert average_weights(how, epochs) == pytest.approx([share / sum(shares) for share in shares], rel=1e-6)


@pytest.mark.parametrize("how", ["swa", "gwa", "bwa"])
def test_the_mean_is_that_of_a_loop(how):
    states = [state(seed) for seed in range(5)]
    result = weighted_mean(members(*states), average_weights(how, range(1, 6)))
    for name in states[0]:
        expected = naive(states, shares_by_definition(how, [1, 2, 3, 4, 5]), name)
        torch.testing.assert_close(result[name], expected, atol=1e-6, rtol=0)
        assert result[name].dtype == torch.float32


def test_the_exponential_average_is_its_recursion():
    states = [state(seed) for seed in range(4)]
    running = {name: tensor.double() for name, tensor in states[0].items()}
    for each in states[1:]:
        running = {name: 0.9 * tensor + 0.1 * each[name].double() for name, tensor in running.items()}
    result = weighted_mean(iter(members(*states)), average_weights("ewa", [3, 4, 5, 6]))
    for name, tensor in running.items():
        torch.testing.assert_close(result[name], tensor.float(), atol=1e-6, rtol=0)


@given(
    how=st.sampled_from(["swa", "gwa", "bwa", "ewa"]),
    epochs=st.sets(st.integers(0, 5000), min_size=1, max_size=40).map(sorted),
)
def test_weights_sum_to_one_and_are_never_negative(how, epochs):
    weights = average_weights(how, epochs)
    assert math.isclose(sum(weights), 1.0, rel_tol=1e-12)
    assert min(weights) >= 0
    assert len(weights) == len(epochs)


def test_which_members_count_most():
    gaussian, beta = (dict(zip(RELEASE, average_weights(how, RELEASE), strict=True)) for how in ("gwa", "bwa"))
    assert max(gaussian, key=gaussian.get) == 15
    assert beta[2] == pytest.approx(beta[22])
    assert beta[2] == max(beta.values())
    assert min(beta, key=beta.get) == 12
    # Far from the mean each density is 0 in floating point, but not the ratio of two.
    assert average_weights("gwa", [3000, 3001])[0] > 0.5


@given(st.lists(st.floats(-(2.0**90), 2.0**90, width=32), min_size=1, max_size=6), st.integers(1, 30))
def test_the_average_of_equal_weights_is_unchanged_to_the_bit(values, count):
    same = {"a": torch.tensor(values)}
    for how in ("swa", "gwa", "bwa", "ewa"):
        result = weighted_mean(members(*[same] * count), average_weights(how, range(1, count + 1)))
        assert torch.equal(result["a"], same["a"])


def test_half_precision_is_summed_in_double():
    states = [{"a": torch.tensor([2048.0, 1.0], dtype=torch.float16)} for _ in range(3000)]
    result = weighted_mean(members(*states), average_weights("swa", range(1, 3001)))
    assert torch.equal(result["a"], states[0]["a"])
    assert result["a"].dtype == torch.float16


@pytest.mark.parametrize("tensor", [torch.tensor([1, 2]), torch.tensor([True, False]), torch.tensor([1j, 2])])
def test_what_has_no_mean_is_kept_if_it_is_the_same(tensor):
    one, other = state(0, n=tensor), state(1, n=tensor.clone())
    result = weighted_mean(members(one, other), [0.5, 0.5])
    assert torch.equal(result["n"], tensor)
    assert list(result) == ["a", "b", "n"]
    other["n"] = torch.zeros_like(tensor)
    with pytest.raises(ValueError, match=r"^member 1: the tensor n \(\w+ \[2\]\) is another one than in member 0"):
        weighted_mean(members(one, other), [0.5, 0.5])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"c": torch.zeros(1)}, "member 0: has no tensor c, which member 1 has"),
        ({"a": torch.zeros(4, 3)}, r"member 1: the tensor a is float32 \[4, 3\], in member 0 float32 \[3, 4\]"),
        ({"a": torch.zeros(3, 4).half()}, r"member 1: the tensor a is float16 \[3, 4\], in member 0 float32"),
        ({"b": None}, "member 1: has no tensor b, which member 0 has"),
    ],
)
def test_members_that_differ_are_refused(change, message):
    other = {name: tensor for name, tensor in (state(1) | change).items() if tensor is not None}
    with pytest.raises(ValueError, match=message):
        weighted_mean(members(state(0), other), [0.5, 0.5])


def test_patching_moves_only_what_clip_has():
    average, clip = state(0, prompts=torch.ones(2)), state(1)
    for ratio in (0.0, 0.3, 1.0):
        result = patched(average, clip, ratio)
        for name in clip:
            expected = ratio * clip[name].double() + (1 - ratio) * average[name].double()
            torch.testing.assert_close(result[name], expected.float(), atol=1e-7, rtol=1e-6)
        assert result["prompts"] is average["prompts"]
    assert torch.equal(patched(average, clip, 0.0)["a"], average["a"])
    assert torch.equal(patched(average, clip, 1.0)["a"], clip["a"])
    assert patched({"prompts": average["prompts"]}, clip, 0.5) == {"prompts": average["prompts"]}
    with pytest.raises(ValueError, match=r"the tensor a is float32 \[3, 4\], in CLIP float32 \[1\]"):
        patched(average, {"a": torch.zeros(1)}, 0.5)
