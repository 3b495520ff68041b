"""A failed write names the reason and leaves the old file unharmed."""

import multiprocessing
import os
import resource
import subprocess
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from engine.distributed import Process
from engine.logger import RunLogger, append_row, log
from engine.writing import write_atomically, writing
from main_task_retrieval import main

TENSOR = torch.zeros(500_000)
WRITERS = {
    "torch": lambda partial: torch.save({"tensor": TENSOR}, partial),
    "safetensors": lambda partial: save_file({"tensor": TENSOR}, partial),
    "text": lambda partial: partial.write_text("x" * 2_000_000),
}


@pytest.fixture
def small_disk(tmp_path):
    """Mount a disk of one megabyte."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)], capture_output=True)
    if mounted.returncode:
        pytest.skip("making a small disk needs root")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.mark.parametrize("writer", WRITERS)
def test_the_error_names_a_full_disk(small_disk, writer):
    path = small_disk / "file"
    path.write_text("before")
    with pytest.raises(OSError, match=r"^\S*/file: could not be saved \(No space left on device\); what was"):
        write_atomically(path, WRITERS[writer])
    assert path.read_text() == "before"
    assert list(small_disk.iterdir()) == [path]


def _write_up_to_a_megabyte(path: Path, writer: str, answer) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, resource.RLIM_INFINITY))
    try:
        write_atomically(path, WRITERS[writer])
    except OSError as error:
        answer.send(str(error))


@pytest.mark.parametrize("writer", WRITERS)
def test_the_error_names_another_limit(tmp_path, writer):
    """Check the size limit for files, which is set in a separate process."""
    context = multiprocessing.get_context("fork")
    here, there = context.Pipe()
    process = context.Process(target=_write_up_to_a_megabyte, args=(tmp_path / "file", writer, there))
    process.start()
    process.join()
    assert here.recv().startswith(f"{tmp_path}/file: could not be saved (File too large);")
    assert not list(tmp_path.iterdir())


def test_another_error_keeps_its_message(tmp_path):
    def fails(partial):
        partial.write_text("half")
        raise RuntimeError("no such dtype\nand a long explanation")

    with pytest.raises(OSError, match=r"could not be saved \(no such dtype\);"):
        write_atomically(tmp_path / "new" / "file", fails)
    assert not list((tmp_path / "new").iterdir())


def write_to_a_full_disk(path: Path) -> None:
    with writing(path), open("/dev/full", "w") as file:
        file.write("x")


def test_the_error_names_the_file():
    with pytest.raises(OSError, match=r"^runs/log\.txt: could not be written \(No space left on device\); make room"):
        write_to_a_full_disk(Path("runs/log.txt"))


@pytest.mark.parametrize("name", ["log.txt", "metrics.jsonl"])
def test_a_lost_line_of_a_log_is_an_error(tmp_path, name):
    os.symlink("/dev/full", tmp_path / name)
    run = RunLogger(tmp_path, Process(0, 1, torch.device("cpu")))
    say = {"log.txt": lambda: log.info("a line"), "metrics.jsonl": lambda: run.metrics(1, "train", {"loss": 1.0})}
    with pytest.raises(OSError, match=rf"/{name}: could not be written \(No space left on device\)"):
        say[name]()
    run.close()


def test_a_lost_row_of_results_is_an_error(tmp_path):
    os.symlink("/dev/full", tmp_path / "results.csv")
    with pytest.raises(OSError, match=r"/results\.csv: could not be written \(No space left on device\); make room"):
        append_row(tmp_path / "results.csv", {"name": "stop"})


@pytest.mark.parametrize(("kilobytes", "name"), [(0, "run.lock"), (100, "last.safetensors"), (350, "step_00000001.pt")])
def test_a_run_on_a_full_disk_ends_with_one_sentence(small_disk, small_data, capsys, kilobytes, name):
    (small_disk / "others").write_bytes(bytes(1024 * (1024 - kilobytes)))
    flags = [*small_data.flags(), "--epochs", "1", "--batch_size", "20", "--lr", "1e-4"]
    assert main(["--do_train", *flags, "--output_dir", str(small_disk)]) == 2
    message = capsys.readouterr().err.splitlines()[-1]
    assert message.startswith(f"error: {small_disk}/")
    assert f"/{name}: could not be " in message
    assert "(No space left on device)" in message
