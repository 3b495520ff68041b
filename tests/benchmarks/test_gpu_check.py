"""The check of a GPU: what passes, fails or hangs is told, none stops the others, and its commands exist."""

import json
import os
import time

import pytest
import torch

from benchmarks import epoch, gpu_check, growth, methods
from benchmarks.gpu_check import OUTPUT, ROOT, Check, Settings, all_checks, main, run_check, run_checks
from engine.cli import parse_flags
from modules.methods import METHODS

WRITES = "import sys, pathlib; pathlib.Path(sys.argv[1]).write_text(sys.argv[2])"
# A child that would outlive its parent; both write their process ids.
HANGS = (
    "import subprocess, sys, os, time; "
    "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)']); "
    "print(os.getpid(), child.pid, flush=True); time.sleep(60)"
)
MADE = [
    Check("good", ("-c", "print('some lines'); print('3 passed in 1 s')"), 60, prints=r"\b\d+ passed"),
    Check("nothing ran", ("-c", "print('3 skipped in 1 s')"), 60, prints=r"\b\d+ passed"),
    Check("fails", ("-c", "import sys; print('a reason'); sys.exit('the last words')"), 60),
    Check("hangs", ("-c", HANGS), 1.5),
    Check("measures", ("-c", WRITES, OUTPUT, '{"ms": 7}'), 60, lambda measured: f"{measured['ms']} ms"),
    Check("writes other numbers", ("-c", WRITES, OUTPUT, '{"s": 7}'), 60, lambda measured: f"{measured['ms']} ms"),
    Check("writes nothing", ("-c", "", OUTPUT), 60),
]


def gone(process: int) -> bool:
    """Return whether a process has ended; one that nobody has waited for yet counts as ended."""
    try:
        with open(f"/proc/{process}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def test_each_outcome_has_a_line_and_a_place_in_the_file(tmp_path, capsys):
    output = tmp_path / "new" / "check.json"
    outcomes = run_checks(MADE, Settings(output=str(output)), {"hardware": "a GPU"})
    assert [outcome.passed for outcome in outcomes] == [True, False, False, False, True, False, False]
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(MADE)
    assert lines[0].split()[:2] == ["ok", "good"]
    assert lines[0].endswith("s  3 passed in 1 s")
    assert lines[1].startswith("FAILED  nothing ran")
    assert lines[2].endswith("exit status 1: the last words")
    assert lines[3].endswith("stopped after 2 s")
    assert lines[4].endswith("7 ms")
    assert "KeyError" in lines[5]
    assert "FileNotFoundError" in lines[6]
    written = json.loads(output.read_text())
    assert written["hardware"] == "a GPU"
    assert written["checks"][4]["measured"] == {"ms": 7}
    assert written["checks"][4]["output"] == ""
    assert written["checks"][2]["output"] == "a reason\nthe last words"
    assert 1 < written["checks"][3]["seconds"] < 30
    for process in written["checks"][3]["output"].split():
        until = time.monotonic() + 10
        while not gone(int(process)) and time.monotonic() < until:
            time.sleep(0.01)
        assert gone(int(process)), "the whole group ends, workers included"


def test_the_rest_is_not_run_when_the_time_is_up(tmp_path):
    assert run_check(MADE[0], tmp_path, 0.0).summary == "no time left for it"
    assert run_check(MADE[3], tmp_path, 0.2).summary == "stopped after 0 s"


def test_without_a_gpu_one_sentence_says_so(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.chdir(tmp_path)
    assert main([]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("error: torch ")
    assert printed.err.endswith(" sees no GPU here: run this on a machine with one\n")
    assert printed.err.count("\n") == 1
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize(("only", "code"), [("good,measures", 0), ("good, fails", 1), ("", 1)])
def test_the_exit_status_says_what_happened(only, code, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(gpu_check, "default_device", lambda: torch.device("cpu"))
    monkeypatch.setattr(gpu_check, "all_checks", lambda: [MADE[0], MADE[2], MADE[4]])
    assert main(["--only", only, "--output", str(tmp_path / "check.json")]) == code
    assert f"{3 - (only != '') - code} of {3 - (only != '')} checks passed" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--only", "growth,steps"], "--only 'steps' is not one of: kernels against twins, "),
        (["--seconds", "0"], "--seconds 0 is out of range"),
        (["--output", ""], "--output is empty; name a json file"),
    ],
)
def test_wrong_commands(flags, message, capsys):
    assert main(flags) == 2
    assert message in capsys.readouterr().err


def test_the_commands_exist():
    """Every benchmark's flags parse, every test file is there, and every method has a step."""
    checks = {check.name: check for check in all_checks()}
    assert len(checks) == len(all_checks())
    assert {f"step of {name}" for name in METHODS} <= checks.keys()
    kinds = {"methods": (methods.Settings, ""), "epoch": (epoch.Settings, "stop"), "growth": (growth.Settings, "")}
    tests = set()
    for check in checks.values():
        assert check.command[0] == "-m"
        package, _, name = check.command[1].partition(".")
        if package == "pytest":
            tests |= {word for word in check.command if word.startswith("tests/")}
        else:
            assert package == "benchmarks"
            settings, method = kinds[name]
            values = parse_flags({"benchmark": settings}, method, check.command[2:])
            assert values["output"] == OUTPUT
            assert not values.get("chart")
            assert values.get("memory_search") != values.get("compile") or name != "methods"
    assert all((ROOT / name).exists() for name in tests)
    assert "tests/dataloaders/test_transforms.py" in tests


def test_summaries_are_made_of_what_the_benchmarks_write():
    cost = {"step": 180.2, "clips_per_second": 711.0, "ceiling_share": 0.2, "floor_ratio": 1.73, "peak_memory_gb": 32.1}
    cost |= {"evaluation_clips_per_second": 1683.0, "largest_batch": 512}
    assert cost.keys() <= set(methods.Cost.__dataclass_fields__)
    assert gpu_check.summary_of_step({"methods": [cost]}) == (
        "180.2 ms, 711 clips/s, 20% of the ceiling, 1.73 times the floor, evaluation 1683 clips/s, 32.1 GB, "
        "largest batch 512"
    )
    training = {"clips_per_second": 700.0, "shares": {"data": 0.012}}
    assert training.keys() <= set(epoch.EpochTime.__dataclass_fields__)
    assert gpu_check.summary_of_epoch({"training": training, "evaluation_clips": 1000, "evaluation": [9.0, 5.25]}) == (
        "700 clips/s, waiting for data 1.2%, evaluation of 1000 clips 5.2 s"
    )
    points = [
        {"attention": attention, "frames": frames, "step": float(frames * cost)}
        for attention, cost in (("frame", 2), ("joint", 3))
        for frames in (4, 64)
    ]
    assert gpu_check.summary_of_growth({"points": points}) == "ms per frame at T = 64: frame 2.00, joint 3.00"
