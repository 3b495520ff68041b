"""Only one run at a time works in a folder."""

import multiprocessing
import os
import platform
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
import torch

from engine.distributed import Process
from engine.run_folder import LOCK, one_run_at_a_time
from main_task_retrieval import main

ALONE = Process(0, 1, torch.device("cpu"))
FORK = multiprocessing.get_context("fork")


def _hold(folder: Path, with_a_worker: bool, answer) -> None:
    with one_run_at_a_time(folder, ALONE):
        worker = os.fork() if with_a_worker else 0
        if with_a_worker and worker == 0:
            time.sleep(60)
            os._exit(0)
        answer.send(worker)
        time.sleep(60)


@contextmanager
def another_run(folder: Path, with_a_worker: bool = False) -> Iterator[tuple[int, int]]:
    """Start a run that holds the folder; yield the ids of its process and of its worker."""
    here, there = FORK.Pipe()
    process = FORK.Process(target=_hold, args=(folder, with_a_worker, there))
    process.start()
    worker = here.recv()
    try:
        yield process.pid, worker
    finally:
        process.kill()
        process.join()
        if worker:
            os.kill(worker, signal.SIGKILL)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_second_run_is_refused_and_the_first_is_named(small_data, tmp_path, capsys):
    folder = tmp_path / "run"
    with another_run(folder) as (process, _):
        before = contents(folder)
        for task in ("--do_eval", "--do_train"):
            assert main([task, *small_data.flags(), "--output_dir", str(folder)]) == 2
            message = capsys.readouterr().err
            assert f"error: --output_dir {folder} is in use by another run (process {process} on " in message
            assert platform.node() in message
        assert contents(folder) == before
        assert list(before) == [LOCK]


def test_a_killed_process_releases_the_lock(tmp_path):
    """Check that its worker processes, which outlive it, do not hold the lock."""
    with another_run(tmp_path, with_a_worker=True) as (process, worker):
        os.kill(process, signal.SIGKILL)
        while f"process {process} on" in (tmp_path / LOCK).read_text():  # the system may take a moment
            os.kill(worker, 0)  # raises if it is gone
            with suppress(ValueError), one_run_at_a_time(tmp_path, ALONE):
                assert f"process {os.getpid()} on" in (tmp_path / LOCK).read_text()
                break
        os.kill(worker, 0)
    assert not list(tmp_path.iterdir())


def test_only_what_was_created_for_the_lock_is_deleted(tmp_path):
    folder = tmp_path / "new" / "run"
    with pytest.raises(RuntimeError), one_run_at_a_time(folder, ALONE):
        raise RuntimeError
    assert not list(tmp_path.iterdir())
    with one_run_at_a_time(folder, ALONE):
        (folder / "log.txt").touch()
    assert [path.name for path in folder.iterdir()] == ["log.txt"]


def test_a_deleted_lock_ends_and_its_holder_deletes_no_other_lock(tmp_path):
    """Delete a held lock, as a user may do for a machine that went down."""
    with another_run(tmp_path):
        (tmp_path / LOCK).unlink()
        with one_run_at_a_time(tmp_path, ALONE):
            assert f"process {os.getpid()} on" in (tmp_path / LOCK).read_text()
    with one_run_at_a_time(tmp_path, ALONE):
        (tmp_path / LOCK).unlink()
        (tmp_path / LOCK).write_text("another run's")
    assert (tmp_path / LOCK).read_text() == "another run's"


def test_only_the_main_process_locks(tmp_path):
    with one_run_at_a_time(tmp_path, Process(1, 2, torch.device("cpu"))):
        assert not list(tmp_path.iterdir())


def _count_inside(folder: Path, entered, most) -> None:
    for _ in range(30):
        try:
            with one_run_at_a_time(folder, ALONE):
                with entered.get_lock():
                    entered.value += 1
                    most.value = max(most.value, entered.value)
                time.sleep(0.001)
                with entered.get_lock():
                    entered.value -= 1
        except ValueError:
            time.sleep(0.001)


def test_no_two_runs_hold_the_lock_while_many_start_and_end(tmp_path):
    """Check the race at the end of a run: a run that opened the file just before its deletion must not hold a lock."""
    entered, most = FORK.Value("i", 0), FORK.Value("i", 0)
    runs = [FORK.Process(target=_count_inside, args=(tmp_path, entered, most)) for _ in range(4)]
    for run in runs:
        run.start()
    for run in runs:
        run.join()
    assert most.value == 1
    assert not list(tmp_path.iterdir())


def test_a_folder_inside_a_file_is_refused(tmp_path, small_data, capsys):
    (tmp_path / "file").touch()
    assert main(["--do_eval", *small_data.flags(), "--output_dir", str(tmp_path / "file" / "run")]) == 2
    assert "file is a file and not a folder; name another place" in capsys.readouterr().err
