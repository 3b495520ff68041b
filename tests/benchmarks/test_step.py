"""The benchmark's rows have every part of every method, which runs as in a step; times are only checked to be sane."""

import math
from dataclasses import dataclass
from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn

from benchmarks.common import random_batch
from benchmarks.step import (
    EVALUATION,
    REST,
    STEP,
    TEXT,
    Row,
    format_rows,
    main,
    map_tensors,
    measure,
    record_calls,
    remainder,
    tensors_in,
)
from engine.precision import autocast_for
from engine.tasks.contrastive import ContrastiveStep
from modules.methods import METHODS, build_method
from tests.tiny import TINY, fitting_options, tiny_clip

CPU = torch.device("cpu")
FRAMES, WORDS = 4, 8


def tiny_method(name: str):
    return build_method(name, tiny_clip(), **fitting_options(name, max_frames=FRAMES))


def batch_of(count: int, frame_captions: bool = False):
    torch.manual_seed(0)
    return random_batch(TINY, count, FRAMES, WORDS, CPU, frame_captions)


def parts_of(method) -> set[str]:
    """Return the children beside CLIP that have parameters; every method calls all of them in a step. Lists of bare
    parameters are not called."""
    bare = (nn.ParameterList, nn.ParameterDict)
    children = [(name, child) for name, child in method.named_children() if not isinstance(child, bare)]
    return {name for name, child in children if name != "clip" and any(True for _ in child.parameters())}


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("name", METHODS)
def test_rows_of_every_method(name, precision):
    method = tiny_method(name)
    before = {key: tensor.clone() for key, tensor in method.state_dict().items()}
    rows = measure(method, batch_of(2, method.reads_frame_captions), 1, precision)
    assert [row.name for row in rows[:3]] == [STEP, EVALUATION, TEXT]
    assert rows[-1].name == REST
    assert {row.name for row in rows[3:-1]} == parts_of(method)
    assert len(rows) == 4 + len(parts_of(method))
    for row in rows:
        for milliseconds in (row.forward, row.backward or 0.0, row.both):
            assert math.isfinite(milliseconds), row
            assert milliseconds >= 0, row
        assert (row.backward is None) == (row.name == EVALUATION)
    for row in [rows[0], *rows[3:-1]]:
        assert row.backward, f"{row.name} has no backward pass"
    assert all(torch.equal(tensor, before[key]) for key, tensor in method.state_dict().items())
    assert all(parameter.grad is None for parameter in method.parameters())
    assert not any(module._forward_pre_hooks for module in method.modules())


def test_a_repeated_call_gives_the_same_result():
    method = tiny_method("stop").eval()  # without dropout
    kept = []
    for prompter in method.intra:
        prompter.register_forward_hook(lambda module, arguments, output: kept.append(output))
    step, batch = ContrastiveStep(method, autocast_for("fp32", CPU)), batch_of(2)
    calls = record_calls(method, lambda: step(*batch))
    assert {name: len(made) for name, made in calls.items()} == {"intra": 2, "inter": 2}
    assert len(kept) == 2
    for call, original in zip(calls["intra"], kept[:2], strict=True):
        again = call()
        assert type(again) is type(original)
        for one, other in zip(tensors_in(again), tensors_in(original), strict=True):
            assert torch.equal(one, other)
            assert one.requires_grad == other.requires_grad
    tokens = [call.arguments[1] for call in calls["intra"]]
    assert [one.requires_grad for one in tokens] == [False, True], "only prompted tokens require a gradient"
    assert all(one.is_leaf for one in tokens)


def test_shared_modules_count_once_for_text_and_video():
    method = tiny_method("stop_released")
    token_ids = batch_of(2)[2]
    in_text = record_calls(method, lambda: method.encode_text(token_ids))
    assert {name: len(made) for name, made in in_text.items()} == {"latent": 1, "text_adapters": 2}
    rest = remainder(TEXT, Row("encode_text", 10.0, 4.0), [Row("latent", 3.0, 5.0)])
    assert rest == Row(TEXT, 7.0, 0.0)


def test_nested_containers_and_unused_modules():
    method = tiny_method("vpt")
    method.nested = nn.ModuleDict(
        {"used": nn.ModuleList([nn.Linear(2, 3)]), "unused": nn.ModuleList([nn.Linear(2, 3)])}
    )
    method.idle = nn.Linear(2, 2)
    used = method.nested["used"][0]
    calls = record_calls(method, lambda: used(input=torch.ones(1, 2)))
    assert list(calls) == ["nested"]
    assert [call.module for call in calls["nested"]] == [used]
    assert calls["nested"][0]().shape == (1, 3)


def test_tensors_are_found_in_all_results_of_modules():
    class Pair(NamedTuple):
        one: Tensor
        other: Tensor

    @dataclass(frozen=True)
    class Found:
        tensor: Tensor
        pair: Pair
        rest: list

    value = Found(torch.zeros(1), Pair(torch.ones(1), torch.full((1,), 2.0)), [{"three": torch.full((1,), 3.0)}, None])
    assert [tensor.item() for tensor in tensors_in((value, "text"))] == [0, 1, 2, 3]
    negative = map_tensors(torch.neg, value)
    assert isinstance(negative.pair, Pair)
    assert negative.rest[0]["three"].item() == -3


def test_table():
    rows = [Row(STEP, 10.0, 30.0), Row(EVALUATION, 8.0, None), Row("pixel", 1234.5, 0.0)]
    header, step, evaluation, pixel = format_rows(rows).splitlines()
    assert step.split() == ["whole", "step", "10.00", "30.00", "40.00", "100.0%"]
    assert evaluation.split() == ["evaluation", "forward", "8.00"]
    assert pixel.split() == ["pixel", "1234.50", "0.00", "1234.50", "3086.2%"]
    assert len(header) == len(step) == len(pixel)


def small_flags(small_data) -> list[str]:
    sizes = ["--batch_size", "1", "--max_frames", "3", "--max_words", "8", "--repeats", "1"]
    return ["--pretrained_clip_name", str(small_data.clip), *sizes]


def test_command_line(small_data, capsys):
    flags = ["--method", "stop_released", "--shared_latent_space", "linear", "--no-adapters"]
    assert main([*flags, *small_flags(small_data)]) == 0
    printed = capsys.readouterr().out
    names = [line[:28].strip() for line in printed.splitlines()]
    for name in (STEP, EVALUATION, TEXT, "latent", "pixel", "inter", REST):
        assert name in names, name
    assert "visual_adapters" not in printed
    assert "GFLOP per clip" in printed
    assert "clips per second in training" in printed


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--method", "clap"], "--method 'clap' is not one of: stop"),
        (["--repeats", "0"], "--repeats 0 is out of range"),
        (["--max_words", "80"], "--max_words 80 is out of range: it takes a number from 3 to 16"),
        (["--precision", "fp8"], "argument --precision: invalid choice"),
        (["--method", "stop", "--prompt_length", "3"], "--prompt_length is a setting of --method vpt, vop, vop_fc"),
        (
            ["--method", "vpt", "--prompt_length", "0"],
            "--prompt_length 0 is out of range",
        ),
        (["--pretrained_clip_name", "ViT-B/99"], "no CLIP weights at ViT-B/99"),
    ],
)
def test_mistakes(small_data, flags, message, capsys):
    assert main([*small_flags(small_data), *flags]) == 2
    errors = capsys.readouterr().err
    assert message in errors
    assert errors.count("\n") == 1
