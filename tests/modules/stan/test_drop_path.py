"""Dropped paths: which rows, how often, and what remains."""

import pytest
import torch

from modules.stan.drop_path import DropPath
from modules.stan.temporal import TemporalAttention


def test_whole_rows_are_dropped_and_the_others_scaled():
    torch.manual_seed(0)
    rows = torch.randn(4000, 3, 2)
    dropped = DropPath(0.25)(rows)
    of_row = dropped / rows
    assert of_row.flatten(1).std(dim=1).max() < 1e-5
    kept = of_row[:, 0, 0] != 0
    torch.testing.assert_close(dropped[kept], rows[kept] / 0.75)
    assert kept.float().mean().item() == pytest.approx(0.75, abs=0.02)


def test_nothing_is_drawn_in_evaluation_or_at_rate_zero():
    rows, state = torch.randn(5, 3), torch.get_rng_state()
    assert torch.equal(DropPath(0.5).eval()(rows), rows)
    assert torch.equal(DropPath(0.0)(rows), rows)
    assert torch.equal(torch.get_rng_state(), state)


def test_half_precision_stays():
    assert DropPath(0.5)(torch.ones(4, 2, dtype=torch.bfloat16)).dtype == torch.bfloat16


@torch.no_grad()
def test_a_dropped_location_still_gets_the_bias():
    """A location keeps all of its frames or none: DropPath comes before the linear layer, whose bias stays."""
    torch.manual_seed(0)
    layer = TemporalAttention(8, 2, 0.5)
    torch.nn.init.normal_(layer.fc.weight)
    torch.nn.init.constant_(layer.fc.bias, 3.0)
    h = torch.randn(2, 3, 20, 8)
    added = layer(h, torch.ones(2, 3, dtype=torch.bool)) - h
    bare = ((added - 3.0).abs() < 1e-5).all(dim=-1)  # [B, T, L]
    assert torch.equal(bare, bare[:, :1].expand_as(bare))
    assert 5 < bare[:, 0].sum() < 35
