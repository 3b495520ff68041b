"""A run survives killed processes, and a video that only one process cannot read stops all processes."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from engine.checkpoint import read_resume_point
from main_task_retrieval import main
from tests.processes import run_as_group
from tests.training_runs import METHODS, ROOT, assert_same_weights, launch, lines_of, run, training


@pytest.mark.parametrize(("what", "video"), [("--do_train", "video3.mp4"), ("--do_eval", "video12.mp4")])
def test_a_broken_video_on_one_process_stops_all(small_data, tmp_path, capfd, what, video):
    """Check that the other process does not wait for it, and that both name the file."""
    videos = tmp_path / "videos"
    videos.mkdir()
    for path in small_data.videos.iterdir():
        if path.name != video:
            (videos / path.name).symlink_to(path)
    (videos / video).write_bytes(b"this is no video")
    flags = training(small_data, tmp_path / "run", *METHODS["clip4clip"], "--features_path", str(videos))
    run_as_group(2, run, [what, *flags[1:]], 2)
    assert len(re.findall(rf"error: .*?{re.escape(video)}", capfd.readouterr().err)) == 2


def children_of(pid: int) -> list[int]:
    listed = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [int(child) for child in listed]


def wait_for_step(output: Path, step: int, process: subprocess.Popen) -> None:
    for _ in range(2000):
        assert process.poll() is None, "the run ended before it could be killed"
        if (output / "metrics.jsonl").is_file() and f'"step": {step}, "kind": "train"' in (
            output / "metrics.jsonl"
        ).read_text():
            return
        time.sleep(0.05)
    pytest.fail(f"step {step} never came")


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="finds the processes in /proc")
@pytest.mark.parametrize("restarts", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_one_process_is_killed(small_data, tmp_path, restarts):
    """Check that torchrun ends the job, or restarts it from its resume point, and that it never hangs."""
    more = [*METHODS["clip4clip"], "--save_every", "1", "--resume", "auto", "--epochs", "20"]
    flags = training(small_data, tmp_path / "killed", *more)
    command = launch(2, flags, f"--max_restarts={restarts}")
    with open(tmp_path / "output.txt", "w") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, env=os.environ | {"OMP_NUM_THREADS": "1"})
    wait_for_step(tmp_path / "killed", 6, process)
    os.kill(children_of(process.pid)[-1], signal.SIGKILL)
    code = process.wait(timeout=300)
    written = (tmp_path / "output.txt").read_text()
    if not restarts:
        assert code != 0
        assert "SIGKILL" in written
        return
    assert code == 0, written[-3000:]
    assert "resumed after step" in (tmp_path / "killed" / "log.txt").read_text()
    steps = [line["step"] for line in lines_of(tmp_path / "killed", "train")]
    assert steps == list(range(1, 101))


@pytest.mark.slow
def test_killed_at_twenty_random_moments(small_data, tmp_path):
    """Send SIGKILL anywhere, also during a save: the run always resumes, and ends with the undisturbed numbers."""
    more = ["--method", "stop", "--lr", "1e-3", "--frame_sampling", "segment", "--epochs", "12", "--save_every", "1"]
    assert main(training(small_data, tmp_path / "whole", *more)) == 0
    flags = training(small_data, tmp_path / "killed", *more, "--resume", "auto")
    command = [sys.executable, str(ROOT / "main_task_retrieval.py"), *flags]
    rng = np.random.default_rng(0)
    points = tmp_path / "killed" / "resume"
    kills = 0
    while kills < 20:
        with open(tmp_path / "output.txt", "a") as output:
            process = subprocess.Popen(command, stdout=output, stderr=output, env=os.environ | {"OMP_NUM_THREADS": "1"})
        before = {path.name for path in points.glob("step_*.pt")}
        while process.poll() is None and {path.name for path in points.glob("step_*.pt")} == before:
            time.sleep(0.01)  # until the first new point, so that every try makes progress
        time.sleep(rng.uniform(0, 0.5))
        if process.poll() is not None:
            break
        process.kill()
        process.wait()
        kills += 1
        for path in points.glob("step_*.pt"):
            read_resume_point(path)  # raises if one is damaged
    if kills == 20:
        assert subprocess.run(command, check=False).returncode == 0
    assert kills >= 10
    assert_same_weights(tmp_path / "killed", tmp_path / "whole")
    assert lines_of(tmp_path / "killed", "train") == lines_of(tmp_path / "whole", "train")
    assert lines_of(tmp_path / "killed", "test")[-1] == lines_of(tmp_path / "whole", "test")[-1]
