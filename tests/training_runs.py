"""Start short trainings on the small data, and compare their files."""

import json
import os
import re
import signal
import sys
from pathlib import Path

import torch
import torch._dynamo
from safetensors.torch import load_file

from engine.train import Training
from main_task_retrieval import main

ROOT = Path(__file__).parent.parent


METHODS = {
    "clip4clip": ["--method", "clip4clip", "--lr", "1e-3", "--coef_lr", "1"],
    "stop": ["--method", "stop", "--lr", "1e-3", "--prompt_dropout", "0", "--frame_sampling", "segment"],
}


def training(small_data, output: Path, *flags: str) -> list[str]:
    """Return the flags of a training with 20 pairs and 5 steps per epoch."""
    few = ["--epochs", "2", "--batch_size", "4", "--n_display", "1", "--output_dir", str(output)]
    return ["--do_train", *small_data.flags(), *few, *flags]


def run(flags: list[str], exit_code: int = 0) -> None:
    assert main(flags) == exit_code


def launch(processes: int, flags: list[str], *torchrun: str) -> list[str]:
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}", *torchrun]
    return [sys.executable, *launcher, str(ROOT / "main_task_retrieval.py"), *flags]


def lines_of(output: Path, kind: str) -> list[dict]:
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    measured = re.compile("time|clips_per_second|.*_share")
    return [
        {name: value for name, value in line.items() if not measured.fullmatch(name)}
        for line in lines
        if line["kind"] == kind
    ]


def assert_same_weights(first: Path, second: Path, **tolerance: float) -> None:
    ours, theirs = load_file(first / "last.safetensors"), load_file(second / "last.safetensors")
    assert ours.keys() == theirs.keys()
    for name in ours:
        if tolerance:
            mine, other = ours[name], theirs[name]
            if name.endswith("in_proj_bias"):
                # Skip the keys' third: softmax cancels it, so its gradient is only rounding, which Adam scales up.
                mine, other = (bias.view(3, -1)[[0, 2]] for bias in (mine, other))
            torch.testing.assert_close(mine, other, msg=lambda found, name=name: f"{name}: {found}", **tolerance)
        else:
            assert torch.equal(ours[name], theirs[name]), name


def interrupt_after(monkeypatch, step: int, number: signal.Signals = signal.SIGTERM) -> None:
    """Send the run's process a signal after `step` steps."""
    take_step = Training.take_step

    def and_then(self, batch):
        values = take_step(self, batch)
        if self.step == step:
            os.kill(os.getpid(), number)
        return values

    monkeypatch.setattr(Training, "take_step", and_then)
