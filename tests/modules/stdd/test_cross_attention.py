"""A block with space-time cross attention, against loops."""

import copy
from functools import cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from modules.stdd.cross_attention import cross_attend, rows_of_kept
from modules.stdd.masks import kept_places, shift_masks
from tests.modules.stdd.loops import stca
from tests.tiny import tiny_clip

WINDOWS = 4


def random_case(seed, clips, frames, dropped):
    """Return tokens `[B,T,1+16,D]` in window order, masks `[B,T,16]`, and the rows that they keep."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(clips, frames, 1 + 4 * WINDOWS, 32, generator=generator)
    shifts = torch.randint(4, (1, clips, frames, WINDOWS), generator=generator)
    masks = shift_masks(shifts, WINDOWS, dropped)
    return x, masks[0], rows_of_kept(kept_places(masks, dropped)[0], 4 * WINDOWS)


@cache
def a_block():
    return tiny_clip().visual.blocks[0].double()


@settings(max_examples=15)
@given(
    st.integers(0, 99),
    st.integers(1, 4),
    st.integers(0, 3),
    st.sampled_from([(1,), (2,), (1, 2), (3, 1, 2)]),
    st.sampled_from([2, 3, 8, 16]),
)
@torch.no_grad()
def test_a_block_equals_a_loop(seed, frames, dropped, scales, fold):
    block, (x, masks, rows) = a_block(), random_case(seed, 2, frames, dropped)
    x = x.double()
    frame_mask = torch.ones(2, frames, dtype=torch.bool)
    found = cross_attend(block, x, frame_mask, rows, scales=scales, fold=fold)
    expected = torch.stack([stca(block, *clip, scales, fold) for clip in zip(x, masks, strict=True)])
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=1e-12)
    first = cross_attend(block, x, frame_mask, rows, scales=scales, fold=fold, first_only=True)
    torch.testing.assert_close(first, expected[:, :, :1], atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("first_only", [False, True])
def test_recomputed_it_has_the_same_gradient(first_only):
    """--activation_checkpointing computes the inside of the block again in the backward pass."""
    x, _, rows = random_case(0, 2, 3, 2)
    gradients = []
    for recompute in (False, True):
        block, tokens = copy.deepcopy(a_block()), x.double().requires_grad_()
        block.recompute = recompute
        out = cross_attend(
            block, tokens, torch.ones(2, 3, dtype=torch.bool), rows, scales=(1, 2), fold=8, first_only=first_only
        )
        probe = torch.randn(out.shape, generator=torch.Generator().manual_seed(1), dtype=out.dtype)
        gradients.append(torch.autograd.grad((out * probe).sum(), [tokens, *block.parameters()]))
    for plain, again in zip(*gradients, strict=True):
        assert plain.abs().max() > 0
        torch.testing.assert_close(again, plain)


def test_rows_of_class_tokens_and_kept_patches():
    kept = torch.tensor([[[0, 3], [1, 2]], [[2, 3], [0, 1]]])
    expected = [0, 1, 4, 5, 7, 8, 10, 13, 14, 15, 16, 17]
    assert rows_of_kept(kept, 4).tolist() == expected


@pytest.mark.parametrize("channel", [3, 20], ids=["mixed", "not mixed"])
@torch.no_grad()
def test_a_large_channel_costs_no_precision(channel):
    """CLIP has channels that are far larger than all others. They must not cancel in the product that scales share."""
    x, _, rows = random_case(0, 2, 4, 2)
    x[..., channel] += 300
    frame_mask = torch.ones(2, 4, dtype=torch.bool)
    block = a_block()
    expected = cross_attend(block, x.double(), frame_mask, rows, scales=(1, 2), fold=8)
    found = cross_attend(copy.deepcopy(block).float(), x, frame_mask, rows, scales=(1, 2), fold=8)
    expected[..., channel] -= 300
    found[..., channel] -= 300
    torch.testing.assert_close(found.double(), expected, atol=2e-4, rtol=0)
