"""The dynamics nets: against loops over frames and patches, what they start from, and exact stillness."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from modules.dynamics import DynamicsNet, hold_last_frame, layer_norm, repeat_ends
from tests.modules import stop_reference as slow


def net_of(width: int, grid: int, *, sees: str = "tokens", seed: int | None = None) -> DynamicsNet:
    net = DynamicsNet(width, grid, sees=sees).double()
    if seed is not None:
        slow.randomise(net, seed)
    return net


@settings(derandomize=True, deadline=None, max_examples=25)
@given(
    seed=st.integers(0, 10**6),
    grid=st.integers(2, 4),
    frames=st.integers(1, 4),
    width=st.integers(1, 5),
    sees=st.sampled_from(["tokens", "changes"]),
)
def test_equals_loops_over_frames_and_patches(seed, grid, frames, width, sees):
    tokens, _ = slow.padded_clips(seed, [frames], grid * grid, width)
    net = net_of(width, grid, sees=sees, seed=seed)
    with torch.no_grad():
        at_clip_ends = slow.dynamics_features(net, tokens[0], grid, repeat_ends=True)
        torch.testing.assert_close(net(repeat_ends(tokens))[0], at_clip_ends, atol=1e-9, rtol=0)
        beyond = torch.zeros_like(tokens[:, :1])
        nothing_beyond = slow.dynamics_features(net, tokens[0], grid, repeat_ends=False)
        torch.testing.assert_close(net(torch.cat([beyond, tokens, beyond], 1))[0], nothing_beyond, atol=1e-9, rtol=0)


def test_layer_norm_is_that_of_the_definition():
    tokens, _ = slow.padded_clips(0, [3], 4, 8)
    expected = slow.stack_frames([[slow.normalised(token) for token in frame] for frame in 7 * tokens[0] + 3])
    torch.testing.assert_close(layer_norm(7 * tokens + 3)[0], expected, atol=1e-9, rtol=0)


@settings(derandomize=True, deadline=None, max_examples=25)
@given(seed=st.integers(0, 10**6), frames_of_clip=st.lists(st.integers(1, 5), min_size=1, max_size=4))
def test_padding_frames_become_the_last_real_one(seed, frames_of_clip):
    tokens, frame_mask = slow.padded_clips(seed, frames_of_clip, 4, 3)
    held = repeat_ends(hold_last_frame(tokens, frame_mask))
    for clip, frames in enumerate(frames_of_clip):
        for place in range(held.shape[1]):
            nearest = min(max(place - 1, 0), frames - 1)
            assert torch.equal(held[clip, place], tokens[clip, nearest])


def test_starts_as_a_central_time_difference():
    tokens, _ = slow.padded_clips(1, [5], 9, 4)
    features = net_of(4, 3)(repeat_ends(tokens))
    for i in range(5):
        difference = (tokens[:, min(i + 1, 4)] - tokens[:, max(i - 1, 0)]) / 2
        torch.testing.assert_close(features[:, i], difference, atol=1e-12, rtol=0)


def test_starts_as_the_identity():
    tokens, _ = slow.padded_clips(1, [3], 9, 4)
    features = net_of(4, 3, sees="changes")(repeat_ends(tokens))
    torch.testing.assert_close(features, tokens, atol=1e-12, rtol=0)


def test_channels_never_mix():
    tokens, _ = slow.padded_clips(2, [3], 9, 4)
    net = net_of(4, 3, seed=0)
    changed = tokens.clone()
    changed[..., 2] = changed[..., 2].flip(1)
    moved = (net(repeat_ends(changed)) - net(repeat_ends(tokens))).abs().amax(dim=(0, 1, 2))
    assert moved[2] > 0.1
    assert moved[[0, 1, 3]].max() == 0


def test_no_change_gives_exactly_zero():
    net = net_of(4, 3, sees="changes", seed=3)
    assert net(torch.zeros(2, 5, 9, 4, dtype=torch.float64)).abs().max() == 0
    assert {name for name, _ in net.named_parameters()} == {"conv.weight"}


def test_a_still_clip_gives_zero_whatever_was_learned():
    tokens, _ = slow.padded_clips(4, [1], 9, 4)
    still = tokens.expand(-1, 5, -1, -1)
    assert net_of(4, 3, seed=3)(repeat_ends(still)).abs().max() == 0
    assert net_of(4, 3, sees="changes", seed=3)(repeat_ends(still)).abs().max() > 0.1


@pytest.mark.parametrize("sees", ["tokens", "changes"])
def test_gradients(sees):
    torch.manual_seed(0)
    net = net_of(3, 2, sees=sees, seed=4)
    tokens = torch.randn(1, 4, 4, 3, dtype=torch.float64, requires_grad=True)

    def features(tokens, *parameters):
        names = [name for name, _ in net.named_parameters()]
        return torch.func.functional_call(net, dict(zip(names, parameters, strict=True)), (tokens,))

    assert torch.autograd.gradcheck(features, (tokens, *net.parameters()))
