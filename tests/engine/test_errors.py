"""Errors of torch and the system become one sentence; the tests really kill a worker process."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import dataloaders.frames
from dataloaders.datasets import TrainingPairs
from dataloaders.frames import FrameReader
from dataloaders.samples import Sample
from engine.errors import explained, one_sentence, print_report
from main_task_retrieval import main

ROOT = Path(__file__).parent.parent.parent
WHO_DIES = "STOP_TEST_RANK_WHOSE_WORKER_DIES"
read_frames = dataloaders.frames.read_frames


def die_in_a_worker(*arguments, **more):
    """Read a video, or kill the worker process that runs this, as the kernel does when memory runs out."""
    if torch.utils.data.get_worker_info() is not None and os.environ.get("RANK", "0") == os.environ[WHO_DIES]:
        os.kill(os.getpid(), signal.SIGKILL)
    return read_frames(*arguments, **more)


@pytest.mark.parametrize("what", [["--do_eval"], ["--do_train", "--epochs", "1", "--batch_size", "4"]])
def test_a_worker_that_is_killed(small_data, tmp_path, monkeypatch, capsys, what):
    monkeypatch.setenv(WHO_DIES, "0")
    monkeypatch.setattr(dataloaders.frames, "read_frames", die_in_a_worker)
    flags = [*what, *small_data.flags(), "--num_thread_reader", "1", "--output_dir", str(tmp_path)]
    assert main(flags) == 2
    _, found, message = capsys.readouterr().err.rpartition("error: ")
    assert found
    assert message.count("\n") == 1
    assert message.startswith("a worker process that decodes videos (pid ")
    assert (
        "most likely because the machine ran out of memory: lower --num_thread_reader or --prefetch_factor" in message
    )


@pytest.mark.slow
@pytest.mark.parametrize("what", [["--do_eval"], ["--do_train", "--epochs", "1", "--batch_size", "4"]])
def test_all_processes_end_when_a_worker_is_killed(small_data, tmp_path, what):
    program = tmp_path / "program.py"
    program.write_text(
        f"import sys; sys.path.insert(0, {str(ROOT)!r})\n"
        "import dataloaders.frames\n"
        "from tests.engine.test_errors import die_in_a_worker, main\n"
        "dataloaders.frames.read_frames = die_in_a_worker\n"
        "sys.exit(main())\n"
    )
    flags = [*what, *small_data.flags(), "--num_thread_reader", "1", "--output_dir", str(tmp_path)]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", str(program)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", WHO_DIES: "1"}
    done = subprocess.run([*command, *flags], capture_output=True, text=True, env=environment, timeout=240, check=False)
    assert "exitcode  : 2" in done.stderr
    assert "error: a worker process that decodes videos (pid " in done.stderr
    assert "main_task_retrieval.py" not in done.stderr  # there is no traceback


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (ValueError("a sentence"), "^a sentence$"),
        (OSError("a sentence"), "^a sentence$"),
        (MemoryError("Unable to allocate 8.00 GiB"), "^the machine has no memory left: lower --batch_size"),
        (
            RuntimeError("[enforce fail at alloc_cpu.cpp:1] DefaultCPUAllocator: can't allocate memory: you tried to"),
            "^the machine has no memory left: lower --batch_size",
        ),
        (torch.OutOfMemoryError("CUDA out of memory."), "^the GPU has no memory left: pass --gradient_accumulation"),
        (
            RuntimeError("DataLoader worker (pid 12) is killed by signal: Killed. "),
            r"^a worker process that decodes videos \(pid 12\) was killed \(Killed\), most likely",
        ),
        (
            RuntimeError(
                "DataLoader worker (pid 12) is killed by signal: Bus error. It is possible that dataloader's workers "
                "are out of shared memory. Please try to raise your shared memory limit."
            ),
            r"^a worker process that decodes videos \(pid 12\) found no room in /dev/shm",
        ),
        (
            RuntimeError(
                "Caught RuntimeError in DataLoader worker process 0.\nOriginal Traceback (most recent call last):\n"
                "RuntimeError: unable to write to file </torch_1_2_3>: No space left on device (28)"
            ),
            "^a worker process that decodes videos found no room in /dev/shm",
        ),
        (RuntimeError("[../pair.cc:534] Connection closed by peer [127.0.0.1]:1"), "^another process of this run has"),
    ],
)
def test_known_errors_become_one_sentence(error, message, capsys):
    known = explained(error)
    assert known is not None
    assert re.search(message, str(known))

    def fails() -> str:
        raise error

    assert print_report(fails) == 2
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize("error", [RuntimeError("shapes do not fit"), AssertionError("never"), KeyError("name")])
def test_unknown_errors_are_bugs(error):
    assert explained(error) is None


def test_a_worker_error_is_printed_without_its_traceback(tmp_path):
    (tmp_path / "broken.mp4").write_bytes(b"this is no video")
    samples = [Sample("broken", tmp_path / "broken.mp4", ("a caption",))] * 2
    pairs = TrainingPairs(samples, lambda _: torch.zeros(1, 1, dtype=torch.int64), FrameReader(2, 8), True, 0)
    loader = torch.utils.data.DataLoader(pairs, batch_sampler=[[(0, 0), (0, 1)]], num_workers=1)
    with pytest.raises(ValueError, match="Original Traceback") as caught:
        next(iter(loader))
    assert one_sentence(caught.value).startswith(str(tmp_path / "broken.mp4"))
