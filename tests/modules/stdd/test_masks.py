"""Window shift masks: the order of windows, the four patterns, and the law of what is drawn."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from modules.stdd.masks import (
    check_masks,
    dropped_of_window,
    evaluation_shifts,
    frame_order,
    kept_places,
    shift_masks,
    to_window_order,
    training_shifts,
)
from tests.modules.stdd.loops import dropped_slots, window_order


def whole(clips, frames):
    return torch.ones(clips, frames, dtype=torch.bool)


def shifts_of(masks):
    """Return the pattern of every window, int64 `[...,W]`, of masks that drop one to three of four."""
    windows = masks.unflatten(-1, (-1, 4))
    dropped = int(windows[(0,) * (windows.dim() - 1)].sum())
    patterns = torch.tensor([dropped_slots(dropped, shift) for shift in range(4)])
    same = (windows.unsqueeze(-2) == patterns).all(dim=-1)
    assert (same.sum(dim=-1) == 1).all()
    return same.to(torch.int64).argmax(dim=-1)


@pytest.mark.parametrize("grid", [2, 4, 6, 14])
def test_window_order(grid):
    places = torch.arange(grid * grid, dtype=torch.float32).view(1, 1, -1, 1)
    assert to_window_order(places, grid).flatten().tolist() == window_order(grid)


def test_the_four_patterns_of_half():
    """They drop the top, the right, the bottom and the left side of a window."""
    masks = shift_masks(torch.arange(4).view(1, 1, 4, 1), windows=1, dropped=2)
    top_left, top_right, bottom_left, bottom_right = range(4)
    sides = [{top_left, top_right}, {top_right, bottom_left}, {bottom_left, bottom_right}, {top_left, bottom_right}]
    assert [set(frame.nonzero().flatten().tolist()) for frame in masks[0, 0]] == sides


@given(st.floats(0, 0.99), st.integers(1, 16), st.integers(1, 49))
def test_the_number_dropped_is_that_of_the_whole_clip(rate, frames, windows):
    patches = 4 * windows
    assert dropped_of_window(rate) == math.floor(rate * frames * patches) // (frames * patches // 4)


@given(
    layers=st.integers(1, 3),
    lengths=st.lists(st.integers(1, 9), min_size=1, max_size=3),
    windows=st.integers(1, 5),
    dropped=st.integers(1, 3),
    shuffle=st.booleans(),
    spatial_repeat=st.booleans(),
    seed=st.integers(0, 2**32),
)
def test_the_law_of_training_masks(layers, lengths, windows, dropped, shuffle, spatial_repeat, seed):
    """Every window of every real frame has one of the four patterns. Over a clip's frames, a window uses them equally
    often (up to one if their number is no multiple of four); all windows change likewise from frame to frame, and with
    `spatial_repeat` all are alike."""
    frame_mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    generator = torch.Generator().manual_seed(seed)
    shifts = training_shifts(
        layers, frame_mask, windows, shuffle=shuffle, spatial_repeat=spatial_repeat, generator=generator
    )
    masks = shift_masks(shifts, windows, dropped)
    assert masks.shape == (layers, len(lengths), max(lengths), 4 * windows)
    assert check_masks(masks, layers, 4 * windows) == dropped
    for clip, length in enumerate(lengths):
        patterns = shifts_of(masks[:, clip, :length])  # [A,T,W]
        for layer in patterns:
            counts = torch.stack([(layer == pattern).sum(dim=0) for pattern in range(4)])  # [4,W]
            assert counts.min() >= length // 4
            assert counts.max() <= -(-length // 4)
            steps = (layer[1:] - layer[:-1]) % 4
            assert (steps == steps[:, :1]).all()
            if not shuffle:
                assert (steps == 1).all()
            if spatial_repeat:
                assert (layer == layer[:, :1]).all()


@given(st.integers(0, 2**32), st.integers(1, 10), st.integers(0, 3))
def test_an_order_is_a_permutation_of_the_real_frames(seed, frames, padding):
    numbers = torch.rand(2, 1, frames + padding, generator=torch.Generator().manual_seed(seed))
    frame_mask = torch.arange(frames + padding) < torch.tensor([[frames], [1]])
    order = frame_order(numbers, frame_mask)
    assert order.shape == (2, 2, frames + padding)
    assert (order[:, 0, :frames].sort().values == torch.arange(frames)).all()
    assert torch.equal(order[:, 0, :frames], numbers[:, 0, :frames].argsort(dim=-1).argsort(dim=-1))
    assert (order[:, 1, 0] == 0).all()


def test_layers_and_clips_are_drawn_apart():
    shifts = training_shifts(4, whole(5, 8), 9, shuffle=True, spatial_repeat=True)
    assert len(shifts.flatten(2).flatten(0, 1).remainder(4).unique(dim=0)) == 20
    by_window = training_shifts(1, whole(1, 8), 200, shuffle=False, spatial_repeat=False)
    assert len(by_window[0, 0, 0].unique()) == 4
    assert training_shifts(1, whole(1, 8), 200, shuffle=False, spatial_repeat=True).shape == (1, 1, 8, 1)


def test_a_generator_decides_the_masks():
    draw = [
        training_shifts(
            3, whole(2, 8), 4, shuffle=True, spatial_repeat=False, generator=torch.Generator().manual_seed(seed)
        )
        for seed in (1, 1, 2)
    ]
    assert torch.equal(draw[0], draw[1])
    assert not torch.equal(draw[0], draw[2])


@given(st.integers(0, 2**63 - 1), st.integers(1, 12), st.integers(0, 4))
def test_evaluation_depends_on_the_seed_and_the_real_frames_alone(seed, frames, padding):
    before = torch.get_rng_state()
    alone = evaluation_shifts(3, whole(1, frames), seed)
    padded = evaluation_shifts(3, torch.arange(frames + padding) < torch.tensor([[frames], [1]]), seed)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(padded[:, :1, :frames], alone)
    assert (alone.squeeze(-1).sort().values == torch.arange(frames)).all()


def test_evaluation_without_a_seed_draws_nothing():
    assert torch.equal(evaluation_shifts(2, whole(3, 5), None), torch.arange(5)[:, None].expand(2, 3, 5, 1))


@given(st.integers(0, 3), st.integers(0, 2**32))
def test_kept_places_are_those_not_dropped_in_their_order(dropped, seed):
    shifts = torch.randint(4, (2, 3, 4, 5), generator=torch.Generator().manual_seed(seed))
    masks = shift_masks(shifts, 5, dropped)
    kept = kept_places(masks, dropped)
    for mask, places in zip(masks.flatten(0, 2), kept.flatten(0, 2), strict=True):
        assert places.tolist() == [place for place in range(20) if not mask[place]]


@pytest.mark.parametrize(
    ("masks", "message"),
    [
        (torch.zeros(2, 1, 4, 16), r"must be bool \[2,B,T,16\] .* not float32 \[2, 1, 4, 16\]"),
        (torch.zeros(3, 1, 4, 16, dtype=torch.bool), r"not bool \[3, 1, 4, 16\]"),
        (torch.zeros(2, 4, 16, dtype=torch.bool), r"not bool \[2, 4, 16\]"),
        (torch.zeros(2, 1, 4, 8, dtype=torch.bool), r"not bool \[2, 1, 4, 8\]"),
        (torch.ones(2, 1, 4, 16, dtype=torch.bool), r"same number of patches, 0 to 3, .* not \[4\]"),
        (torch.arange(16).expand(2, 1, 4, 16) < 6, r"not \[0, 2, 4\]"),
    ],
)
def test_masks_that_do_not_fit(masks, message):
    with pytest.raises(ValueError, match=message):
        check_masks(masks, 2, 16)
