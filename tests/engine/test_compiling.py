"""A compiled training (--compile) gives the same numbers as an eager one, in one graph."""

import subprocess
from functools import partialmethod
from pathlib import Path
from typing import Any

import pytest
import torch
import torch._dynamo
from torch import nn
from torch._dynamo.utils import counters

from engine.compiling import compile_forward
from engine.run import EXIT_INTERRUPTED
from main_task_retrieval import main
from modules.methods import METHODS as ALL_METHODS
from modules.methods import build_method
from tests.engine.one_training import named, one_batch, one_training
from tests.tiny import tiny_batch, tiny_clip
from tests.training_runs import METHODS, assert_same_weights, interrupt_after, launch, training


def steps_of(name: str, folder: Path, **settings: Any) -> tuple[list[dict[str, float]], dict[str, torch.Tensor]]:
    """Return loss and gradient norm of three steps with clips of different lengths, and the last step's gradients."""
    torch.manual_seed(0)
    run, values = one_training(name, torch.device("cpu"), folder, **settings), []
    with torch.no_grad():  # prompts that start at zero would hide the gradients of the tensors they are multiplied with
        for parameter in run.parameters.values():
            parameter.add_(0.02 * torch.randn_like(parameter))
    for seed in range(3):
        batch = one_batch(seed)
        batch["frame_mask"] = torch.arange(4) < torch.tensor([4, 1 + seed, 4 - seed, 3])[:, None]
        run.take_step(batch)
        values.append(run.results.values)
        run.task_step.method.eval()
        with torch.no_grad():  # as after an epoch
            run.task_step.method.encode_video(torch.rand(1 + seed, 4, 3, 32, 32), torch.ones(1 + seed, 4))
            run.task_step.method.encode_text(batch["token_ids"][: 1 + seed])
        run.task_step.method.train()
    return values, {name: parameter.grad for name, parameter in run.parameters.items()}


def assert_compiled_is_eager(monkeypatch, name: str, folder: Path, settings: dict[str, Any], graphs: int) -> None:
    """Compare compiled and eager steps without dropout, and check that there are `graphs` graphs without a break."""
    monkeypatch.setattr("engine.train.compiler_error", lambda device: None)  # it would compile one more graph
    options = {"prompt_dropout": 0.0} if "stop" in name else {}
    settings = {"precision": "fp32", **settings}
    values, gradients = steps_of(name, folder, **settings, options=dict(options))
    torch._dynamo.reset()
    counters.clear()
    compiled_values, compiled_gradients = steps_of(name, folder, **settings, options=dict(options), compile=True)
    assert counters["stats"]["unique_graphs"] == graphs
    assert not counters["graph_break"]
    assert compiled_gradients.keys() == gradients.keys()
    for ours, theirs in zip(compiled_values, values, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-4)
    for tensor, gradient in gradients.items():
        if gradient is None:  # the scorer of stop_released
            assert compiled_gradients[tensor] is None
        else:  # some gradients of stop_released are zero up to rounding
            torch.testing.assert_close(compiled_gradients[tensor], gradient, rtol=1e-4, atol=1e-6, msg=tensor)


COMPILED: list[Any] = [
    *(pytest.param(name, {}, 1, marks=[pytest.mark.slow] * (name != "stop")) for name in ALL_METHODS),
    pytest.param(
        "stop", {"gradient_accumulation_steps": 2, "activation_checkpointing": True}, 2, marks=pytest.mark.slow
    ),
]


@pytest.mark.parametrize(("name", "settings", "graphs"), COMPILED, ids=named)
def test_compiled_steps_equal_eager_ones(name, settings, graphs, tmp_path, monkeypatch):
    """Check graphs that run on torch's eager kernels."""
    monkeypatch.setattr(nn.Module, "compile", partialmethod(nn.Module.compile, backend="aot_eager"))
    assert_compiled_is_eager(monkeypatch, name, tmp_path, settings, graphs)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "settings", "graphs"), COMPILED, ids=named)
def test_compiled_steps_with_generated_kernels(name, settings, graphs, tmp_path, monkeypatch):
    assert_compiled_is_eager(monkeypatch, name, tmp_path, settings, graphs)


@pytest.mark.slow
def test_both_passes_of_a_part_draw_the_same_masks():
    """With --gradient_accumulation_steps a part is embedded without gradient, and again with it, in another graph."""
    torch._dynamo.reset()
    method, (video, frame_mask, _) = build_method("stdd", tiny_clip()).train(), tiny_batch()
    compile_forward(method)

    def frames(forward):
        torch.manual_seed(3)
        return forward(video, frame_mask, None)[1].frames

    with torch.no_grad():
        first = frames(method)
        assert (method(video, frame_mask, None)[1].frames - first).abs().max() > 1e-3  # drawn anew
    second = frames(method)
    assert second.requires_grad
    for found in (first, second):
        torch.testing.assert_close(found, frames(method.forward), atol=1e-5, rtol=1e-5)


@pytest.mark.slow
def test_a_run_may_be_resumed_with_compile(small_data, tmp_path, monkeypatch):
    """Resume an eager run with generated kernels, and check that names and weights are the same."""
    flags = ["--method", "vpt", "--lr", "1e-3"]
    assert main(training(small_data, tmp_path / "whole", *flags)) == 0
    with monkeypatch.context() as patched:
        interrupt_after(patched, 3)
        assert main(training(small_data, tmp_path / "cut", *flags)) == EXIT_INTERRUPTED
    assert main(training(small_data, tmp_path / "cut", *flags, "--resume", "auto", "--compile")) == 0
    assert "resumed after step 3 of 10" in (tmp_path / "cut" / "log.txt").read_text()
    assert_same_weights(tmp_path / "cut", tmp_path / "whole", atol=1e-5, rtol=0)


@pytest.mark.slow
def test_compiled_processes_change_nothing(small_data, tmp_path):
    """Check --compile under DistributedDataParallel, in parts and with recomputed blocks."""
    flags = [*METHODS["stop"], "--epochs", "1", "--prompt_depth", "1", "--activation_checkpointing"]
    assert main(training(small_data, tmp_path / "one", *flags)) == 0
    for parts in (1, 2):
        folder = tmp_path / f"two, parts {parts}"
        more = ["--gradient_accumulation_steps", str(parts), "--compile"]
        subprocess.run(launch(2, training(small_data, folder, *flags, *more)), check=True, timeout=900)
        assert_same_weights(folder, tmp_path / "one", atol=1e-5, rtol=0)


def test_a_missing_compiler_is_one_sentence(small_data, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("torch._inductor.config.cpp.cxx", ("no_such_compiler",))
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "cache"))
    torch._dynamo.reset()
    assert main(training(small_data, tmp_path / "run", *METHODS["clip4clip"], "--compile")) == 2
    written = capsys.readouterr().err
    assert "Traceback" not in written
    last = written.strip().splitlines()[-1]
    assert last.startswith("error: --compile needs a working C++ compiler (g++)")
    assert "no_such_compiler" in last
