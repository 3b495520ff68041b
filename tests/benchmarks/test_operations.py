"""Counts of operations: by hand for bare CLIP, and the rules that torch's own counter lacks."""

from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.operations import _convolution_backward, count_forward, count_step
from modules.clip import ARCHITECTURES
from modules.methods import METHODS
from tests.tiny import TINY, fitting_options


@pytest.mark.parametrize("groups", [1, 4])
@pytest.mark.parametrize("input_wants", [True, False])
def test_each_gradient_of_a_convolution_costs_as_much_as_its_forward_pass(groups, input_wants):
    volume = torch.randn(2, 4, 3, 5, 5, requires_grad=input_wants)
    conv = torch.nn.Conv3d(4, 4, 3, padding=1, groups=groups, bias=False)
    counter = FlopCounterMode(
        display=False, custom_mapping={torch.ops.aten.convolution_backward: _convolution_backward}
    )
    with counter:
        out = conv(volume)
    forward = counter.get_total_flops()
    assert forward == 2 * out.numel() * (4 // groups) * 27
    with counter:
        out.sum().backward()
    assert counter.get_total_flops() == forward * (1 + input_wants)


def test_counts_of_bare_clip_follow_from_its_sizes():
    """CLIP4Clip: weights and activations need gradients, except those that embed pixels and words."""
    frames, words = 3, 8

    def tower(tokens: int, width: int) -> int:  # one layer forward
        return 2 * tokens * 12 * width * width + 2 * 2 * tokens * tokens * width

    patches, width = TINY.grid**2, TINY.vision_width
    tokens = 1 + patches
    pixels = 2 * patches * width * 3 * TINY.patch_size**2
    last = (
        2 * (2 * tokens * width * width + 10 * width * width) + 2 * 2 * tokens * width
    )  # the last layer computes one token
    visual = tower(tokens, width) + last + 2 * width * TINY.embed_dim
    width = TINY.text_width  # END is a query, and a key too
    last = 2 * (2 * words * width * width + 12 * width * width) + 2 * 2 * (words + 1) * width
    text = tower(words, width) + last + 2 * width * TINY.embed_dim
    assert count_forward("clip4clip", TINY, frames, words) == frames * (pixels + visual) + text
    assert count_step("clip4clip", TINY, frames, words) == 3 * (frames * visual + text) + frames * pixels


def test_frozen_weights_cost_nothing_in_the_backward_pass():
    architecture = replace(ARCHITECTURES["ViT-B/32"], vision_layers=4, text_layers=4)
    assert count_step("stop", architecture, 2, 8) < 0.8 * count_step("clip4clip", architecture, 2, 8)


def test_products_added_in_place_count(monkeypatch):
    found = count_step("stop", TINY, 3, 8)
    monkeypatch.setattr(torch.Tensor, "addmm_", lambda self, a, b: self.add_(a @ b))
    assert count_step("stop", TINY, 3, 8) == found


@pytest.mark.parametrize("name", METHODS)
def test_a_step_of_every_method_counts_more_than_its_forward_pass(name):
    options = fitting_options(name, max_frames=3, max_words=8)
    assert count_step(name, TINY, 3, 8, **options) > count_forward(name, TINY, 3, 8, **options)


def test_a_step_counts_the_captions_of_frames():
    """DiscoVLA reads one for each frame in training, unless their losses are off."""
    with_captions, without = (count_step("discovla", TINY, 3, 8, **more) for more in ({}, {"alpha": 0.0, "beta": 0.0}))
    caption = 2 * count_forward("clip4clip", TINY, 1, 8) - count_forward("clip4clip", TINY, 2, 8)
    assert with_captions - without > 3 * caption
