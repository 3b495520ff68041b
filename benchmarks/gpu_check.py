"""Runs everything that needs a GPU in at most nine minutes: tests, kernels, training steps, an epoch, growth.

    bash scripts/gpu_check.sh
    bash scripts/gpu_check.sh --only "epoch and evaluation,growth"

Prints one line per check and writes results/gpu_check.json, with each check's command and measurements. Every check is
a separate process with a time limit; one that fails or hangs does not stop the others. Needs no network, data,
weights or ffmpeg. Exit status: 0 if all checks passed, 1 if some did not, 2 if there is no GPU or a flag is wrong.
"""

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import torch

from benchmarks.common import check_outputs, default_device, origin_of, parse_settings, write_json
from engine.errors import print_report
from modules.methods import METHODS
from modules.options import Checked, Range, one_of

ROOT = Path(__file__).parent.parent
KERNEL_TESTS = "tests/modules/kernels"
PYTEST = ("-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "gpu and not slow")
OUTPUT = "{output}"  # in a command: the json file that the check writes
OTHER_CLIP = {"stdd": ("--pretrained_clip_name", "ViT-B/16")}  # a ViT-B/32 has an odd grid of patches
MOST_OUTPUT = 4000  # characters kept of a failed check's output


@dataclass(frozen=True)
class Settings(Checked):
    """The flags."""

    only: Annotated[str, "names of checks to run, separated by commas; empty: all"] = ""
    seconds: Annotated[int, "time limit for all checks together; a check that does not fit in it fails", Range(1)] = 520
    output: Annotated[str, "json file for the results"] = "results/gpu_check.json"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.output:
            raise ValueError("--output is empty; name a json file")


@dataclass(frozen=True)
class Check:
    """A Python command that must end with status 0 within `limit` seconds.

    If the command has the argument OUTPUT, it must write a json file there, and `summary` makes one line of it. If
    `prints` is given, the last line of the output must match it, and is the summary.
    """

    name: str
    command: tuple[str, ...]  # arguments of Python
    limit: float
    summary: Callable[[dict[str, Any]], str] = str
    prints: str = ""


@dataclass(frozen=True)
class Outcome:
    """The result of one check."""

    name: str
    command: str
    limit: float
    passed: bool
    seconds: float
    summary: str
    measured: dict[str, Any] | None = None
    output: str = ""  # its end; of failed checks only

    def __str__(self) -> str:
        return f"{'ok' if self.passed else 'FAILED':<8}{self.name:<30}{self.seconds:>6.1f} s  {self.summary}"


def all_checks() -> list[Check]:
    """Return the checks, in order of importance: the last ones are dropped if time runs short."""

    def measure(name: str, limit: float, summary: Callable[[dict[str, Any]], str], *flags: str) -> Check:
        return Check(name, ("-m", *flags, "--output", OUTPUT), limit, summary)

    methods = ("benchmarks.methods", "--repeats", "3", "--ceiling_seconds", "1", "--chart=", "--only")
    return [
        Check("kernels against twins", (*PYTEST, KERNEL_TESTS), 150, prints=r"\b\d+ passed"),
        Check("other tests marked gpu", (*PYTEST, *gpu_tests()), 90, prints=r"\b\d+ passed"),
        measure("step of stop", 75, summary_of_step, *methods, "stop"),
        measure("step of stop compiled", 150, summary_of_step, *methods, "stop", "--compile", "--no-memory_search"),
        measure("epoch and evaluation", 120, summary_of_epoch, "benchmarks.epoch", "--steps", "60"),
        measure("growth", 90, summary_of_growth, "benchmarks.growth", "--precision", "bf16", "--chart="),
        *(
            measure(f"step of {name}", 75, summary_of_step, *methods, name, *OTHER_CLIP.get(name, ()))
            for name in METHODS
            if name != "stop"
        ),
    ]


def gpu_tests() -> list[str]:
    """Return the test files with tests marked gpu, except the kernels'. No other test file needs to be imported."""
    files = sorted((ROOT / "tests").rglob("test_*.py"))
    found = [str(path.relative_to(ROOT)) for path in files if "pytest.mark.gpu" in path.read_text()]
    return [name for name in found if not name.startswith(KERNEL_TESTS) and Path(name).stem != "test_gpu_check"]


def summary_of_step(measured: dict[str, Any]) -> str:
    """Return one line about a method in the json file of `benchmarks.methods`."""
    (cost,) = measured["methods"]
    largest = f", largest batch {cost['largest_batch']}" if cost["largest_batch"] else ""
    return (
        f"{cost['step']:.1f} ms, {cost['clips_per_second']:.0f} clips/s, {cost['ceiling_share']:.0%} of the ceiling, "
        f"{cost['floor_ratio']:.2f} times the floor, evaluation {cost['evaluation_clips_per_second']:.0f} clips/s, "
        f"{cost['peak_memory_gb']:.1f} GB{largest}"
    )


def summary_of_epoch(measured: dict[str, Any]) -> str:
    """Return one line about the json file of `benchmarks.epoch`."""
    training = measured["training"]
    return (
        f"{training['clips_per_second']:.0f} clips/s, waiting for data {training['shares']['data']:.1%}, evaluation of "
        f"{measured['evaluation_clips']} clips {measured['evaluation'][-1]:.1f} s"
    )


def summary_of_growth(measured: dict[str, Any]) -> str:
    """Return one line about the json file of `benchmarks.growth`: the longest clip of either attention."""
    most = max(point["frames"] for point in measured["points"])
    steps = [
        f"{point['attention']} {point['step'] / most:.2f}" for point in measured["points"] if point["frames"] == most
    ]
    return f"ms per frame at T = {most}: {', '.join(steps)}"


def run_check(check: Check, folder: Path, seconds_left: float) -> Outcome:
    """Run a check in a fresh process, for at most its limit and at most `seconds_left`; the json file goes to
    `folder`."""
    output, text = folder / "output.json", folder / "output.txt"
    output.unlink(missing_ok=True)
    outcome = Outcome(check.name, " ".join(["python", *check.command]), check.limit, False, 0.0, "no time left for it")
    limit = min(check.limit, seconds_left)
    if limit <= 0:
        return outcome
    begin = time.perf_counter()
    with open(text, "wb") as file:
        process = subprocess.Popen(
            [sys.executable, *(str(output) if word == OUTPUT else word for word in check.command)],
            cwd=ROOT, stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
        try:
            status = process.wait(limit)
        except subprocess.TimeoutExpired:
            status = None
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # the process and its workers
            process.wait()
    printed = text.read_text(errors="replace").strip()
    last = printed.rpartition("\n")[2]
    outcome = replace(outcome, seconds=time.perf_counter() - begin, output=printed[-MOST_OUTPUT:])
    if status is None:
        return replace(outcome, summary=f"stopped after {limit:.0f} s")
    if status != 0:
        return replace(outcome, summary=f"exit status {status}: {last[:200]}")
    if check.prints and not re.search(check.prints, last):
        return replace(outcome, summary=f"ended with {last[:200]!r}")
    if OUTPUT not in check.command:
        return replace(outcome, passed=True, summary=last, output="")
    try:
        measured = json.loads(output.read_text())
        summary = check.summary(measured)
    except (OSError, ValueError, KeyError, TypeError) as error:
        return replace(outcome, summary=f"wrote no such numbers ({type(error).__name__}: {error})")
    return replace(outcome, passed=True, summary=summary, measured=measured, output="")


def chosen(checks: Sequence[Check], only: str) -> list[Check]:
    """Return the checks named in `only`, all if it is empty; ValueError for an unknown name."""
    known = {check.name: check for check in checks}
    names = [name.strip() for name in only.split(",")] if only else list(known)
    for name in names:
        one_of("only", name, known)
    return [known[name] for name in names]


def run_checks(checks: Sequence[Check], settings: Settings, origin: dict[str, Any]) -> list[Outcome]:
    """Run the checks one after another; print a line and write the json file after each."""
    end = time.perf_counter() + settings.seconds
    outcomes: list[Outcome] = []
    with tempfile.TemporaryDirectory() as folder:
        for check in checks:
            outcomes.append(run_check(check, Path(folder), end - time.perf_counter()))
            print(outcomes[-1], flush=True)
            content = {"settings": asdict(settings), **origin, "checks": [asdict(outcome) for outcome in outcomes]}
            write_json(Path(settings.output), content)
    return outcomes


def main(argv: Sequence[str] | None = None) -> int:
    outcomes: list[Outcome] = []

    def report() -> str:
        settings = parse_settings(Settings, argv)
        checks = chosen(all_checks(), settings.only)
        if not torch.cuda.is_available():
            raise ValueError(f"torch {torch.__version__} sees no GPU here: run this on a machine with one")
        check_outputs(settings.output)
        origin, where = origin_of(default_device())
        print(where, flush=True)
        outcomes.extend(run_checks(checks, settings, origin))
        passed = sum(outcome.passed for outcome in outcomes)
        return f"{passed} of {len(outcomes)} checks passed; numbers and commands are in {settings.output}"

    return print_report(report) or int(not all(outcome.passed for outcome in outcomes))


if __name__ == "__main__":
    sys.exit(main())
