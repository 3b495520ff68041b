"""The scripts of the benchmarks, of the GPU's check and of the search's demo pass flags that exist."""

import os
import subprocess
from pathlib import Path

import pytest

from benchmarks import data, epoch, gpu_check, methods, peers, search, search_moments
from engine.cli import parse_flags
from search.__main__ import make_parser
from tests.launch_scripts import commands_of, settings_of, write_recorder

ROOT = Path(__file__).parent.parent


@pytest.fixture
def recorder(tmp_path) -> tuple[Path, Path]:
    return write_recorder(tmp_path)


def test_the_flags_of_the_data_benchmark(recorder):
    make, measure = commands_of(ROOT / "scripts/benchmark_data.sh", recorder, "--clips", "3", DATA_PATH="/data/x")
    assert make == ["preprocess/make_moving_shapes.py", "--output_dir", "/data/x"]
    assert measure[:2] == ["-m", "benchmarks.data"]
    values = parse_flags({"benchmark": data.Settings}, "", measure[2:])
    assert (values["videos"], values["clips"]) == ("/data/x/videos", 3)


def test_the_flags_of_the_benchmark(recorder):
    (command,) = commands_of(ROOT / "scripts/benchmark.sh", recorder, "--only", "stop,dgl", "--frames", "3")
    assert command[:2] == ["-m", "benchmarks.methods"]
    values = parse_flags({"benchmark": methods.Settings}, "", command[2:])
    assert (values["only"], values["frames"]) == ("stop,dgl", 3)


def test_the_flags_of_the_epoch_benchmark(recorder):
    (command,) = commands_of(ROOT / "scripts/benchmark_epoch.sh", recorder, "--method", "dgl", "--steps", "9")
    assert command[:2] == ["-m", "benchmarks.epoch"]
    values = parse_flags({"benchmark": epoch.Settings}, "stop", command[2:])
    assert (values["method"], values["steps"]) == ("dgl", 9)


def test_the_flags_of_the_benchmark_of_peers(recorder):
    (command,) = commands_of(ROOT / "scripts/benchmark_peers.sh", recorder, "--only", "caches", "--repeats", "3")
    assert command[:2] == ["-m", "benchmarks.peers"]
    values = parse_flags({"benchmark": peers.Settings}, "", command[2:])
    assert (values["only"], values["repeats"]) == ("caches", 3)


def test_the_flags_of_the_benchmark_of_the_search(recorder):
    (command,) = commands_of(ROOT / "scripts/benchmark_search.sh", recorder, "--only", "torch", "--windows", "1000")
    assert command[:2] == ["-m", "benchmarks.search"]
    values = parse_flags({"benchmark": search.Settings}, "", command[2:])
    assert (values["only"], values["windows"]) == ("torch", "1000")


def test_the_flags_of_the_benchmark_of_moments(recorder, tmp_path):
    script, checkpoint = ROOT / "scripts/search_moments.sh", tmp_path / "runs" / "stop" / "last.safetensors"
    first = commands_of(script, recorder, "--pauses", "0", epochs="3")
    *_, train, measure = first
    assert settings_of(train)["output_dir"] == str(checkpoint.parent)
    assert settings_of(train)["epochs"] == 3
    assert measure[:2] == ["-m", "benchmarks.search_moments"]
    values = parse_flags({"benchmark": search_moments.Settings}, "", measure[2:])
    assert (values["pauses"], values["checkpoint"]) == ("0", str(checkpoint))
    checkpoint.parent.mkdir(parents=True)
    checkpoint.touch()
    for outside in ({}, {"checkpoint": str(checkpoint), "runs": str(tmp_path / "others")}):
        recorder[1].write_text("")
        make, measure = commands_of(script, recorder, **outside)  # the checkpoint is there already
        assert "make_moving_shapes" in make[0]
        assert measure[measure.index("--checkpoint") + 1] == str(checkpoint)


def test_the_demo_of_the_search(recorder):
    (command,) = commands_of(ROOT / "scripts/search_demo.sh", recorder, "--no_page", "--index", "x")
    assert command[:3] == ["-m", "search", "demo"]
    flags = make_parser().parse_args(command[2:])
    assert (flags.no_page, flags.index) == (True, "x")


@pytest.mark.parametrize("has_network", [True, False])
def test_what_the_demo_of_the_search_installs(tmp_path, has_network):
    """Run it with a Python that only writes down its arguments, and without a network fails at the second file."""
    for name in ("_install.sh", "search_demo.sh"):
        (tmp_path / "scripts").mkdir(exist_ok=True)
        (tmp_path / "scripts" / name).write_text((ROOT / "scripts" / name).read_text())
    for name in ("requirements.txt", "requirements-search.txt"):
        (tmp_path / name).touch()
    python = tmp_path / ".venv/bin/python"
    python.parent.mkdir(parents=True)
    fails = "" if has_network else 'case "$*" in *requirements-search*) exit 1 ;; esac'
    python.write_text(f'#!/bin/sh\necho "$*" >>"{tmp_path}/ran"\n{fails}\n')
    python.chmod(0o755)
    environment = {name: value for name, value in os.environ.items() if name != "PYTHON"}
    for _ in range(2):
        command = ["bash", str(tmp_path / "scripts/search_demo.sh"), "--no_page"]
        subprocess.run(command, env=environment, check=True, capture_output=True)
    ran = [line.split("/")[-1] for line in (tmp_path / "ran").read_text().splitlines()]
    demo, tried = "-m search demo --no_page", ["requirements-search.txt"]
    assert ran == ["requirements.txt", *tried, demo, *([] if has_network else tried), demo]


def test_the_flags_of_the_gpu_check(recorder):
    (command,) = commands_of(ROOT / "scripts/gpu_check.sh", recorder, "--only", "growth", "--seconds", "60")
    assert command[:2] == ["-m", "benchmarks.gpu_check"]
    values = parse_flags({"benchmark": gpu_check.Settings}, "", command[2:])
    assert (values["only"], values["seconds"]) == ("growth", 60)
