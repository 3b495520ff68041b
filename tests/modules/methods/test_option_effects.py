"""An option that `OnlyWith` ties to another one has no effect without it: to refuse it takes nothing from anybody."""

import pytest
import torch

from modules.methods import METHODS, build_method, method_options
from tests.tiny import fitting_options, loss_of, tiny_batch, tiny_clip


def values_without(options, only):
    """Return the values of the other setting that switch a setting off."""
    other = options[only.name]
    values = other.choices or ([False, True] if other.type is bool else [other.type()])
    return [value for value in values if value not in only]


def changed(option):
    """Return another value than the default."""
    if option.type is bool:
        return not option.default
    if option.choices:
        return next(value for value in option.choices if value != option.default)
    return "1" if option.type is str else option.default / 2 if option.type is float else option.default + 1


CASES = [
    pytest.param(name, option, {only.name: value}, id=f"{name}-{option.name}-{only.name}-{value}")
    for name, method in METHODS.items()
    for options in [{option.name: option for option in method_options(method)}]
    for option in options.values()
    for only in option.only_with
    for value in values_without(options, only)
]


def results(name, options):
    """Return all that a method gives in training and evaluation, its gradient, and what its optimizer is told."""
    batch = tiny_batch()
    method = build_method(name, tiny_clip(), **(fitting_options(name) | options))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for _, parameter in method.trainable_parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    torch.manual_seed(2)  # of dropout and of masks
    loss = loss_of(method.train(), batch)
    extra = method.regulariser(batch[0], method(*batch)[1])
    (loss if extra is None else loss + extra).backward()
    gradients = [torch.zeros(()) if weight.grad is None else weight.grad for weight in method.parameters()]
    with torch.no_grad():
        scores = method.similarity(*method.eval()(*batch))
    groups = [
        (group["lr"], group["weight_decay"], len(group["params"])) for group in method.parameter_groups(1, 0.5, 0.1)
    ]
    return [loss.detach(), *gradients, scores], groups


@pytest.mark.parametrize(("name", "option", "without"), CASES)
def test_it_changes_nothing_without_the_other_one(name, option, without):
    plain, groups = results(name, without)
    passed, same_groups = results(name, without | {option.name: changed(option)})
    assert groups == same_groups
    for ours, theirs in zip(passed, plain, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-5)


def test_there_are_such_options():
    assert {name for name, *_ in (case.values for case in CASES)} >= {
        "stop",
        "clip4clip",
        "mug_stan",
        "stdd",
        "discovla",
    }


@pytest.mark.parametrize("name", METHODS)
def test_the_other_option_exists(name):
    options = {option.name: option for option in method_options(METHODS[name])}
    for option in options.values():
        for only in option.only_with:
            assert only.name in options
            assert not only.values or set(only.values) <= set(options[only.name].choices)
