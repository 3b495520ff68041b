"""Prompts of every visual block: which row has which, and their initial values."""

import math

import pytest
import torch

from modules.deep_prompts import prompt_context, uniform_prompts
from tests.tiny import TINY, tiny_clip


@pytest.mark.parametrize(("rows", "of_row"), [(1, [0] * 6), (3, [0, 1, 2, 0, 1, 2]), (6, range(6))])
def test_prompts_of_frames_serve_all_clips(rows, of_row):
    block = tiny_clip().visual.blocks[0]
    prompts, x = torch.randn(rows, 2, TINY.vision_width), torch.randn(6, 5, TINY.vision_width)
    with torch.no_grad():
        ours = block(x, prompt_context(block, prompts, 6))
        expected = torch.stack([block(torch.cat([x[n], prompts[of_row[n]]]).unsqueeze(0))[0, :5] for n in range(6)])
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("patch_size", [32, 8])
def test_uniform_prompts_have_vpts_bound(patch_size):
    largest = uniform_prompts(40, 64, patch_size=patch_size).abs().max().item()
    bound = math.sqrt(6 / (3 * patch_size**2 + 64))
    assert 0.99 * bound < largest <= bound
