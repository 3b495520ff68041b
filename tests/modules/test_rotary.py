"""Rotary positions: what they turn, and that they survive every way to build a tower."""

import pytest
import torch

from modules.clip import CLIP
from modules.rotary import RotaryPositions
from modules.undrawn import undrawn
from tests.backbones import FAMILIES
from tests.tiny import tiny_clip


def test_a_product_depends_on_how_far_apart_patches_are():
    rotary = RotaryPositions(first=1, grid=4, width=16, heads=2)
    query, key = torch.randn(2, 1, 1, 16)
    same = torch.cat([torch.randn(1, 1, 16), query.expand(1, 16, 16)], dim=1), key.expand(1, 17, 16)
    queries, keys = (rotary(x).unflatten(-1, (2, 8)).transpose(1, 2) for x in same)
    products = (queries @ keys.transpose(-1, -2))[0, :, 1:, 1:].unflatten(1, (4, 4)).unflatten(-1, (4, 4))
    torch.testing.assert_close(products[:, 0, 0, 1, 2], products[:, 2, 1, 3, 3])  # one row and two columns apart
    assert not torch.allclose(products[:, 0, 0, 1, 2], products[:, 0, 0, 2, 1], atol=1e-3)
    assert torch.equal(rotary(same[0])[:, :1], same[0][:, :1])


def test_the_frames_of_a_clip_are_turned_alike():
    rotary = RotaryPositions(first=0, grid=2, width=8, heads=1)
    x = torch.randn(3, 4, 8)
    torch.testing.assert_close(rotary(x.flatten(0, 1)[None]), rotary(x).flatten(0, 1)[None])
    with pytest.raises(RuntimeError):
        rotary(x[:, :3])


def test_heads_that_do_not_fit():
    with pytest.raises(ValueError, match="heads of a width that 4 divides, not 6"):
        RotaryPositions(first=1, grid=4, width=12, heads=2)


def test_a_tower_built_without_values_gets_its_turns_with_its_weights():
    drawn = tiny_clip(architecture=FAMILIES["pe"]).eval()
    assert not any("turns" in key for key in drawn.state_dict())
    with undrawn():
        loaded = CLIP(FAMILIES["pe"]).eval()
    loaded.load_state_dict(drawn.state_dict(), assign=True)
    pixels = torch.randn(2, 3, 32, 32)
    assert torch.equal(loaded.visual(pixels), drawn.visual(pixels))
