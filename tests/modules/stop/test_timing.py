"""Places of frames and gaps in their clips, and when masks may be skipped."""

import math

import pytest
import torch

from modules.stop.timing import WAVES, FrameTiming, PlaceGain, waves

PADDED = torch.tensor([[True, True, True], [True, True, False]])


def test_a_place_counts_from_the_ends_of_its_own_clip():
    found = waves(PADDED, torch.float64)
    assert found.shape == (2, 3, 2 * WAVES)
    for clip, real in enumerate((3, 2)):
        for i in range(real):
            angles = [k * math.pi * (i + 1) / (real + 1) for k in range(1, WAVES + 1)]
            expected = [math.sin(a) for a in angles] + [math.cos(a) for a in angles]
            assert found[clip, i].tolist() == pytest.approx(expected, abs=1e-12)


def test_gaps_lie_between_two_real_frames():
    timing = FrameTiming.of(PADDED, torch.float32)
    assert timing.frames == 3
    assert timing.gap_mask.tolist() == [[True, True], [True, False]]
    assert timing.gap_place.shape == (2, 2, 2 * WAVES)


@pytest.mark.parametrize(("mask", "padded"), [(PADDED, True), (PADDED[:1], False), (PADDED[:1].to("meta"), True)])
def test_masks_are_skipped_only_where_the_host_knows_that_nothing_is_padding(mask, padded):
    assert FrameTiming.of(mask, torch.float32).padded is padded


def test_gains_start_near_one_and_keep_zero():
    torch.manual_seed(0)
    gain, place = PlaceGain(200), waves(PADDED, torch.float32)
    found = gain(torch.ones(2, 3, 1, 200), place)
    assert abs(found.mean() - 1) < 0.05
    assert 0.25 < found.std() < 0.45
    assert not gain(torch.zeros(2, 3, 1, 200), place).any()
