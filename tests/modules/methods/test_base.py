"""Tests of which parameters of a method count as new, wherever they are and however they were converted."""

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from modules.clip import CLIP
from modules.methods import METHODS, build_method
from modules.methods.base import Method
from tests.tiny import TINY, tiny_clip


class LowRank(nn.Module):
    """LoRA as a parametrization: W + B A."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.randn(2, weight.shape[1]))
        self.b = nn.Parameter(torch.zeros(weight.shape[0], 2))

    def forward(self, weight: Tensor) -> Tensor:
        return weight + self.b @ self.a


class Adapted(Method):
    """New parameters beside CLIP and inside it, in both ways, and one pre-trained weight that is trained too."""

    def __init__(self, clip: CLIP) -> None:
        super().__init__(clip)
        clip.requires_grad_(False)
        self.beside = nn.Linear(3, 3)
        layer = clip.visual.blocks[0].mlp.c_fc
        parametrize.register_parametrization(layer, "weight", LowRank(layer.weight))
        clip.text.extra = nn.Parameter(torch.ones(2, 2))
        clip.text.text_projection.requires_grad_(True)
        layer.parametrizations.weight.original.requires_grad_(True)


def names_by_group(method: Method) -> dict[str, list[str]]:
    names = {id(parameter): name for name, parameter in method.named_parameters()}
    groups = method.parameter_groups(1e-2, 1e-3, 0.2)
    for group in groups:
        assert group["lr"] == pytest.approx(1e-5 if group["name"].startswith("clip") else 1e-2)
    return {group["name"]: [names[id(parameter)] for parameter in group["params"]] for group in groups}


LAYER = "clip.visual.blocks.0.mlp.c_fc.parametrizations.weight."
EXPECTED = {
    "new, no decay": ["beside.bias"],
    "new": [f"{LAYER}0.a", f"{LAYER}0.b", "clip.text.extra", "beside.weight"],
    "clip": [f"{LAYER}original", "clip.text.text_projection"],
}


def moved_to_empty(method: Method) -> Method:
    return method.to("meta").to_empty(device="cpu")


def with_new_parameters(method: Method) -> Method:
    """Convert modules as torch will in future: every parameter becomes another object."""
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    try:
        return method.to(torch.float64)
    finally:
        torch.__future__.set_overwrite_module_params_on_conversion(False)


def with_assigned_state(method: Method) -> Method:
    method.load_state_dict({name: tensor.clone() for name, tensor in method.state_dict().items()}, assign=True)
    for name, parameter in method.named_parameters():
        parameter.requires_grad_(name in {name for names in EXPECTED.values() for name in names})
    return method


@pytest.mark.parametrize(
    "change",
    [
        lambda method: method,
        copy.deepcopy,
        lambda method: copy.deepcopy(copy.deepcopy(method)),
        lambda method: method.to(torch.bfloat16),
        lambda method: nn.Sequential(method).double()[0],
        moved_to_empty,
        with_new_parameters,
        with_assigned_state,
        lambda method: with_new_parameters(copy.deepcopy(method)),
    ],
)
def test_new_parameters_inside_clip_learn_as_new(change):
    method = change(Adapted(tiny_clip()))
    groups = names_by_group(method)
    assert groups == EXPECTED
    assert list(groups) == list(EXPECTED)


def test_on_the_meta_device():
    with torch.device("meta"):
        assert names_by_group(Adapted(CLIP(TINY))) == EXPECTED


def test_a_copy_does_not_know_the_parameters_of_the_original():
    method = Adapted(tiny_clip())
    copied = copy.deepcopy(method)
    assert method.is_pretrained(method.clip.visual.proj)
    assert not method.is_pretrained(copied.clip.visual.proj)
    assert copied.is_pretrained(copied.clip.visual.proj)
    assert not copied.is_pretrained(method.clip.visual.proj)


def test_pretrained_parameters_are_remembered_but_not_registered():
    method = Adapted(tiny_clip())
    assert not [name for name in method.state_dict() if "pretrained" in name]
    assert len(list(method.parameters())) == len({id(parameter) for parameter in method.parameters()})


@pytest.mark.parametrize("name", METHODS)
def test_in_every_method_the_pretrained_parameters_are_inside_clip(name):
    method = build_method(name, tiny_clip())
    for group, names in names_by_group(method).items():
        assert all(name.startswith("clip.") == group.startswith("clip") for name in names)
    for name, parameter in method.named_parameters():
        assert method.is_pretrained(parameter) == name.startswith("clip.")
