"""Changes between frames and the dynamics nets on them: loops over frames and patches, starts, gradients, stillness."""

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from modules.stop.dynamics import DynamicsNet
from modules.stop.frame_changes import frame_changes
from modules.stop.timing import FrameTiming
from modules.stop.tokens import layer_norm
from tests.modules.stop import plain_parts as plain
from tests.modules.stop import stop_reference as slow


def net_of(width: int, *, sees: str = "tokens", seed: int | None = None) -> DynamicsNet:
    net = DynamicsNet(width, sees=sees).double()
    if seed is not None:
        slow.randomise(net, seed)
    return net


def everywhere(tokens: Tensor) -> Tensor:
    return torch.ones(tokens.shape[:2], dtype=torch.bool)


def timing_of(frame_mask: Tensor) -> FrameTiming:
    return FrameTiming.of(frame_mask, torch.float64)


def energy(net: DynamicsNet, tokens: Tensor, frame_mask: Tensor | None = None) -> Tensor:
    timing = timing_of(everywhere(tokens) if frame_mask is None else frame_mask)
    return net(frame_changes(slow.in_sequences(tokens), timing))


def changes(normal: Tensor, frame_mask: Tensor) -> Tensor:
    return frame_changes(normal, timing_of(frame_mask)).values


@settings(max_examples=25)
@given(
    seed=st.integers(0, 10**6),
    grid=st.integers(2, 4),
    frames_of_clip=st.lists(st.integers(2, 4), min_size=1, max_size=3),
    width=st.integers(1, 5),
    sees=st.sampled_from(["tokens", "changes"]),
)
def test_equals_loops_over_frames_and_patches(seed, grid, frames_of_clip, width, sees):
    """Every clip gives the same result as alone, although all are convolved as one."""
    tokens, frame_mask = slow.padded_clips(seed, frames_of_clip, grid * grid, width)
    net = net_of(width, sees=sees, seed=seed)
    with torch.no_grad():
        found = energy(net, tokens, frame_mask)
        for clip, frames in enumerate(frames_of_clip):
            real = tokens[clip, :frames]
            if sees == "changes":
                real = real[1:] - real[:-1]
            features = plain.dynamics_features(net, real, grid, repeat_ends=sees == "tokens")
            expected = (features**2).mean(dim=-1)
            torch.testing.assert_close(found[clip, : len(expected)], expected, atol=1e-9, rtol=1e-9)


@settings(max_examples=25)
@given(seed=st.integers(0, 10**6), frames_of_clip=st.lists(st.integers(1, 5), min_size=1, max_size=4))
@pytest.mark.parametrize("by_frame", [False, True])
def test_changes_are_between_real_neighbours_and_else_zero(seed, frames_of_clip, by_frame):
    tokens, frame_mask = slow.padded_clips(seed, frames_of_clip, 4, 3)
    found = changes(slow.in_sequences(tokens, tokens.shape[1] if by_frame else 1), frame_mask)
    assert found.shape == (len(frames_of_clip), 1 + max(frames_of_clip), 4, 3)
    for clip, frames in enumerate(frames_of_clip):
        for place in range(found.shape[1]):
            inside = 0 < place < frames
            expected = tokens[clip, place] - tokens[clip, place - 1] if inside else torch.zeros(4, 3)
            assert torch.equal(found[clip, place], expected.to(found))


@pytest.mark.parametrize("count", [1, 3])
def test_the_gradient_of_changes_is_right(count):
    torch.manual_seed(0)
    tokens = torch.randn(2, count, 1 + 2 * 3 // count, 2, dtype=torch.float64, requires_grad=True)
    frame_mask = torch.tensor([[True, True, True], [True, True, False]])
    assert torch.autograd.gradcheck(lambda tokens: changes(tokens, frame_mask), tokens)


def test_starts_as_a_central_time_difference():
    tokens, _ = slow.padded_clips(1, [5], 9, 4)
    found = energy(net_of(4), tokens)
    for i in range(5):
        difference = (tokens[:, min(i + 1, 4)] - tokens[:, max(i - 1, 0)]) / 2
        torch.testing.assert_close(found[:, i], difference.square().mean(-1), atol=1e-12, rtol=1e-9)


def test_starts_as_the_identity():
    tokens, _ = slow.padded_clips(1, [4], 9, 4)
    found = energy(net_of(4, sees="changes"), tokens)
    torch.testing.assert_close(found, tokens.diff(dim=1).square().mean(-1), atol=1e-12, rtol=1e-9)


def test_channels_never_mix():
    """The energy is the sum of the energies of single channels."""
    tokens, _ = slow.padded_clips(2, [3], 9, 4)
    net = net_of(4, seed=0)
    alone = sum(energy(net, tokens * (torch.arange(4) == channel)) for channel in range(4))
    torch.testing.assert_close(energy(net, tokens), alone, atol=1e-12, rtol=1e-9)


@pytest.mark.parametrize("sees", ["tokens", "changes"])
def test_a_still_clip_gives_exactly_zero_whatever_was_learned(sees):
    tokens, _ = slow.padded_clips(4, [1], 9, 4)
    net = net_of(4, sees=sees, seed=3)
    assert energy(net, tokens.expand(-1, 5, -1, -1)).abs().max() == 0
    assert {name for name, _ in net.named_parameters()} == {"conv.weight"}


@pytest.mark.parametrize("by_frame", [False, True])
@pytest.mark.parametrize("sees", ["tokens", "changes"])
@pytest.mark.parametrize("which", ["energy", "linear", "both"])
def test_gradients_of_the_energy_and_of_linears(which, sees, by_frame):
    """Includes the kernels of N_s and N_t, and padding."""
    torch.manual_seed(0)
    net = net_of(3, sees=sees, seed=4)
    tokens = torch.randn(2, 4 if by_frame else 1, 5 if by_frame else 17, 3, dtype=torch.float64, requires_grad=True)
    timing = timing_of(torch.tensor([[True] * 4, [True] * 2 + [False] * 2]))
    linear = torch.randn(2, 3, dtype=torch.float64, requires_grad=True)

    def measured(tokens, _, linear):  # gradcheck changes the net's weight in its place
        found = frame_changes(tokens, timing)
        energy, projected = net(found), found.linear(linear)
        return {"energy": energy, "linear": projected, "both": (energy, projected)}[which]

    assert torch.autograd.gradcheck(measured, (tokens, net.conv.weight, linear))


def test_a_linear_sees_the_changes_in_the_gaps():
    tokens, frame_mask = slow.padded_clips(1, [4, 2], 4, 3)
    weight = torch.randn(2, 3, dtype=torch.float64)
    found = frame_changes(slow.in_sequences(tokens), timing_of(frame_mask)).linear(weight)
    assert found.shape == (2, 3, 4, 2)
    torch.testing.assert_close(found[0], tokens[0].diff(dim=0) @ weight.t(), atol=1e-12, rtol=1e-9)
    torch.testing.assert_close(found[1, :1], tokens[1, :2].diff(dim=0) @ weight.t(), atol=1e-12, rtol=1e-9)
    assert not found[1, 1:].any()


def test_without_padding_nothing_is_masked_and_nothing_differs():
    tokens, frame_mask = slow.padded_clips(1, [4, 4], 4, 3)
    whole = timing_of(frame_mask)
    assert not whole.padded
    assert timing_of(torch.tensor([[True, False]])).padded
    masked = dataclasses.replace(whole, padded=True)
    net = net_of(3, seed=1)
    found = [net(frame_changes(slow.in_sequences(tokens), timing)) for timing in (whole, masked)]
    assert torch.equal(*found)


def test_in_half_precision_the_energy_is_fp32_and_the_rest_comes_in_the_precision_of_products():
    tokens, frame_mask = slow.padded_clips(5, [4, 3], 9, 8)
    tokens, net = tokens.float().requires_grad_(), DynamicsNet(8, sees="tokens")
    weight = torch.randn(3, 8, requires_grad=True)

    def measured() -> tuple[Tensor, Tensor]:
        found = frame_changes(layer_norm(slow.in_sequences(tokens)), timing_of(frame_mask))
        return net(found), found.linear(weight)

    with torch.autocast("cpu", torch.bfloat16):
        half = measured()
    whole = measured()
    assert [part.dtype for part in half] == [torch.float32, torch.bfloat16]
    for ours, exact in zip(half, whole, strict=True):
        torch.testing.assert_close(ours[:, :1].float(), exact[:, :1], atol=5e-2, rtol=5e-2)
    leaves = (tokens, weight, net.conv.weight)
    gradients = [torch.autograd.grad(sum(part.float().sum() for part in parts), leaves) for parts in (half, whole)]
    for ours, exact in zip(*gradients, strict=True):
        assert ours.dtype == torch.float32
        torch.testing.assert_close(ours, exact, atol=5e-2 * exact.abs().max().item(), rtol=0)
