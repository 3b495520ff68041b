"""Modules without values have the names, shapes and dtypes of drawn ones, and leave the random numbers alone."""

import pytest
import torch
from torch import nn

from modules.backbones import Backbone
from modules.clip import CLIP
from modules.undrawn import undrawn
from tests.tiny import TINY


@pytest.mark.parametrize("similarity", ["softmax", "sigmoid"])
def test_a_clip_is_that_on_the_cpu_without_values(similarity):
    backbone = Backbone(TINY, similarity=similarity)
    with undrawn():
        found = CLIP(backbone.architecture, backbone)
    drawn = CLIP(backbone.architecture, backbone)
    assert list(found.state_dict()) == list(drawn.state_dict())
    assert dict(found.named_parameters()).keys() == dict(drawn.named_parameters()).keys()
    for name, tensor in drawn.state_dict(keep_vars=True).items():
        other = found.state_dict(keep_vars=True)[name]
        assert (other.shape, other.dtype, other.requires_grad) == (tensor.shape, tensor.dtype, tensor.requires_grad)
        assert other.is_meta
    assert str(found) == str(drawn)


def test_no_random_number_is_drawn():
    before = torch.get_rng_state()
    with undrawn():
        nn.Linear(3, 4)
        nn.Embedding(3, 4)
        CLIP(TINY)
    assert torch.equal(torch.get_rng_state(), before)


def test_values_are_drawn_again_afterwards():
    with undrawn():
        assert nn.Linear(3, 4).weight.is_meta
    assert nn.Linear(3, 4).weight.abs().sum() > 0
    assert (torch.randn(3) * 0.0).tolist() == [0, 0, 0]


def test_a_product_of_tensors_is_computed_as_ever():
    with undrawn():
        assert (torch.empty(3, 1) * torch.empty(4)).shape == (3, 4)
