"""The comparison of the methods: its figures, its table, its files and its mistakes."""

import json
import os
from collections.abc import Callable
from dataclasses import replace
from functools import partialmethod
from typing import Any

import pytest
import torch
import torch._dynamo
from torch import nn
from torch._dynamo.utils import counters

from benchmarks import methods
from benchmarks.ceilings import Ceilings
from benchmarks.methods import COMPILED_PHASES, PHASES, Cost, draw_costs, format_costs, main
from benchmarks.operations import count_step
from modules.clip_weights import architecture_of
from modules.methods import METHODS
from tests.small_data import SmallData, write_small_data


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> SmallData:
    return write_small_data(tmp_path_factory.mktemp("benchmark"), 1, 1)


@pytest.fixture
def one_process(monkeypatch):
    """Measure in this process, so that patches hold for the measurements too."""

    def run(function: Callable[..., Any], *arguments: Any) -> Any:
        return function(*arguments)

    monkeypatch.setattr(methods, "in_own_process", run)


def test_the_whole_command(data, tmp_path, capsys, one_process):
    flags = ["--only", "stop,vpt", "--pretrained_clip_name", str(data.clip), "--frames", "2", "--max_words", "8"]
    files = ["--output", str(tmp_path / "a/b.json"), "--chart", str(tmp_path / "c/d.png")]
    assert main([*flags, "--repeats", "2", "--ceiling_seconds", "0.05", *files]) == 0
    printed = capsys.readouterr().out
    written = json.loads((tmp_path / "a/b.json").read_text())
    assert written["settings"]["batch_size"] >= 2
    assert written["commit"] in printed
    precision = written["settings"]["precision"]
    assert set(written["ceilings"]["matrix"]) == {"fp32", "bf16", "fp16"}
    assert [cost["method"] for cost in written["methods"]] == ["stop", "vpt"]
    for cost in written["methods"]:
        assert cost["gflop_step"] * 1e9 == count_step(cost["method"], architecture_of(str(data.clip)), 2, 8)
        assert cost["step_range"][0] <= cost["step"] <= cost["step_range"][1]
        assert cost["clips_per_second"] == pytest.approx(1e3 * written["settings"]["batch_size"] / cost["step"])
        reached = cost["clips_per_second"] * cost["gflop_step"] / 1e3
        assert cost["ceiling_share"] == pytest.approx(reached / written["ceilings"]["matrix"][precision])
        assert list(cost["phases"]) == list(PHASES)
        assert min(cost["phases"].values()) >= 0
        assert cost["floor_ratio_range"][0] <= cost["floor_ratio"] <= cost["floor_ratio_range"][1]
        assert cost["peak_memory_gb"] > 0
        assert f"{cost['floor_ratio']:.2f}" in printed
    assert (tmp_path / "c/d.png").read_bytes().startswith(b"\x89PNG")


def test_a_method_with_options(data, capsys, one_process, monkeypatch):
    monkeypatch.setattr(methods, "measure_ceilings", lambda *_: Ceilings({"fp32": 1.0}, {"fp32": 128}, 1.0))
    flags = ["--pretrained_clip_name", str(data.clip), "--frames", "2", "--max_words", "8", "--precision", "fp32"]
    assert main([*flags, "--repeats", "1", "--only", "vpt --prompt_length 3", "--output=", "--chart="]) == 0
    row = capsys.readouterr().out.splitlines()[-1]
    operations = count_step("vpt", architecture_of(str(data.clip)), 2, 8, prompt_length=3)
    assert row.split()[:3] == ["vpt", "--prompt_length", "3"]
    assert f" {operations / 1e9:.1f} " in row


def test_what_was_measured_stays_if_a_later_method_fails(monkeypatch, tmp_path, one_process):
    def measure(name, *_):
        if name == "dgl":
            raise ArithmeticError
        return replace(COST, method=name)

    monkeypatch.setattr(methods, "measure_ceilings", lambda *_: Ceilings(dict.fromkeys(("fp32",), 1.0), {"fp32": 1}, 1))
    monkeypatch.setattr(methods, "measure_method", measure)
    flags = ["--only", "vpt,stop,dgl", "--precision", "fp32", "--chart=", "--output", str(tmp_path / "costs.json")]
    with pytest.raises(ArithmeticError):
        main(flags)
    assert [cost["method"] for cost in json.loads((tmp_path / "costs.json").read_text())["methods"]] == ["vpt", "stop"]


def test_a_measurement_has_its_own_process():
    assert methods.in_own_process(os.getpid) != os.getpid()


COST = Cost("stop", 7_500_000, 112.0, 229.0, dict.fromkeys(PHASES, 10.0), 50.0, (49.0, 52.0), 40.0, 1.25, (1.2, 1.3),
            40.0, 0.5, 90.0, 3.0, 512)  # fmt: skip


def test_the_table_and_the_chart(tmp_path):
    table = format_costs([COST, replace(COST, method="dgl", largest_batch=None)])
    head, first, second = table.splitlines()
    assert len(head) == len(first) == len(second)
    assert "50.0 (49.0-52.0)" in first
    assert first.split()[-1] == "512"
    assert second.split()[-1] == "-"
    draw_costs([COST], 2, "title", tmp_path / "chart.png")
    assert (tmp_path / "chart.png").stat().st_size > 1000


def test_methods_that_do_not_fit_the_clip_are_left_out_with_their_reason(monkeypatch, capsys, one_process):
    """A ViT-B/32 has an odd grid of patches, which STDD's windows of 2 x 2 do not cover."""
    monkeypatch.setattr(methods, "METHODS", {name: METHODS[name] for name in ("stdd", "vpt")})
    monkeypatch.setattr(methods, "measure_ceilings", lambda *_: Ceilings(dict.fromkeys(("fp32",), 1.0), {"fp32": 1}, 1))
    monkeypatch.setattr(methods, "measure_method", lambda name, *_: replace(COST, method=name))
    flags = ["--output", "", "--chart", "", "--precision", "fp32", "--pretrained_clip_name"]
    assert main([*flags, "ViT-B/32"]) == 0
    printed = capsys.readouterr().out
    assert "left out: stdd (--temporal stcross_attend needs an even grid" in printed
    assert [line.split()[0] for line in printed.splitlines()[-1:]] == ["vpt"]
    assert main([*flags, "ViT-B/16"]) == 0
    printed = capsys.readouterr().out
    assert "left out" not in printed
    assert [line.split()[0] for line in printed.splitlines()[-2:]] == ["stdd", "vpt"]


@pytest.mark.slow
def test_the_whole_command_compiled(data, tmp_path, capsys, monkeypatch, one_process):
    """One graph for training, on torch's own kernels, and none for evaluation, which is eager."""
    monkeypatch.setattr(nn.Module, "compile", partialmethod(nn.Module.compile, backend="aot_eager"))
    monkeypatch.setattr(methods, "compiler_error", lambda device: None)  # it would compile one more graph
    monkeypatch.setattr(methods, "measure_ceilings", lambda *_: Ceilings({"fp32": 1.0}, {"fp32": 128}, 1.0))
    torch._dynamo.reset()
    counters.clear()
    sizes = ["--pretrained_clip_name", str(data.clip), "--frames", "2", "--max_words", "8", "--precision", "fp32"]
    files = ["--output", str(tmp_path / "numbers.json"), "--chart", str(tmp_path / "chart.png")]
    flags = ["--only", "stop", *sizes, *files, "--batch_size", "2", "--repeats", "2"]
    assert main([*flags, "--compile", "--no-memory_search"]) == 0
    assert counters["stats"]["unique_graphs"] == 1
    printed = capsys.readouterr().out
    assert "fp32, compiled, batch 2" in printed
    assert all(phase in printed for phase in COMPILED_PHASES)
    assert "prompters" not in printed
    written = json.loads((tmp_path / "numbers.json").read_text())
    assert written["settings"]["compile"]
    assert not written["settings"]["memory_search"]
    (cost,) = written["methods"]
    assert list(cost["phases"]) == list(COMPILED_PHASES)
    assert min(cost["phases"].values()) > 0
    assert cost["evaluation_clips_per_second"] > 0
    assert cost["largest_batch"] is None
    assert (tmp_path / "chart.png").read_bytes().startswith(b"\x89PNG")


def test_without_a_compiler_one_sentence_says_so(data, capsys, monkeypatch, one_process):
    monkeypatch.setattr(methods, "compiler_error", lambda device: ValueError("--compile needs a compiler"))
    monkeypatch.setattr(methods, "measure_ceilings", lambda *_: Ceilings({"fp32": 1.0}, {"fp32": 128}, 1.0))
    sizes = ["--pretrained_clip_name", str(data.clip), "--max_words", "8", "--precision", "fp32"]
    flags = ["--only", "vpt", *sizes, "--compile"]
    assert main(flags) == 2
    assert capsys.readouterr().err.endswith("error: --compile needs a compiler\n")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--only", "stop,clip5clip"], "--only 'clip5clip' is not one of: stop"),
        (["--only", "stop,"], "--only '' is not one of: stop"),
        (["--only", "stop --merg 3"], "did you mean --merge?"),
        (["--only", "stop, stop --merge 9"], "--merge 9 merges 9 of the 13 tokens"),
        (["--batch_size", "-1"], "--batch_size -1 is out of range"),
        (["--frames", "0"], "--frames 0 is out of range"),
        (["--ceiling_seconds", "-1"], "--ceiling_seconds -1 is out of range"),
        (["--precision", "int8"], "--precision"),
        (["--frame", "3"], "did you mean --frames?"),
    ],
)
def test_wrong_commands(flags, message, capsys):
    assert main(flags) == 2
    printed = capsys.readouterr()
    assert printed.err.startswith("error: ")
    assert message in printed.err
    assert printed.out == ""
