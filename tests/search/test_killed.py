"""kill -9 during the commands that change an index: what is left is whole, and the same command ends as if nothing had
happened."""

import multiprocessing
import os
import shutil
import signal
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pytest

from search.__main__ import main
from search.store import Store
from tests.processes import run_as_group
from tests.search.test_resuming import assert_same, held

MOMENTS = 20


def die_after(statements: int) -> None:
    """Kill this process when a database of it has run so many statements."""
    left, prepare = iter(range(statements)), Store._prepare

    def count(statement: str) -> None:
        if next(left, None) is None:
            os.kill(os.getpid(), signal.SIGKILL)

    def prepare_and_count(self: Store, write: bool) -> None:
        self._connection.set_trace_callback(count)
        prepare(self, write)

    Store._prepare = prepare_and_count  # type: ignore[method-assign]


def run_and_die(command: list[str], statements: int) -> None:
    die_after(statements)
    main(command)


def run_as_ranks(command: list[str], dying: int, statements: int) -> None:
    """Run a command in two processes, one of which dies."""

    def run() -> None:
        if int(os.environ["RANK"]) == dying:
            die_after(statements)
        main(command)

    run_as_group(2, run)


def kill(run: Callable[..., None], *arguments: object) -> bool:
    """Run it in a process of its own; return whether it was killed."""
    process = multiprocessing.get_context("fork").Process(target=run, args=arguments, daemon=False)
    process.start()
    process.join()
    return process.exitcode != 0


@pytest.fixture
def command(videos, encoder, tmp_path, monkeypatch) -> Callable[..., list[str]]:
    """Return a function that gives the words of a command on the index of this test, whose model is loaded already."""
    monkeypatch.setattr("search.updating.load_encoder", lambda *source, **options: encoder)

    def words(name: str, *arguments: object, index: str = "index") -> list[str]:
        jobs = ["--jobs", "1", "--batch_size", "2"] if name in ("index", "refresh") else []
        return [name, *map(str, arguments), "--index", str(tmp_path / index), *jobs]

    return words


def moments(most: int, count: int, seed: int = 0) -> list[int]:
    """Return after how many statements to kill: random, without those that come too late."""
    return sorted(np.random.default_rng(seed).choice(np.arange(1, most), count, replace=False).tolist())


def change(videos: Path) -> None:
    """Do everything to a folder that a refresh has to find."""
    (videos / "video11.mp4").rename(videos / "below" / "moved.mp4")
    names = [videos / "video12.mp4", videos / "other.mp4", videos / "video13.mp4"]
    for one, other in zip([names[0], names[2], names[1]], [names[1], names[0], names[2]], strict=True):
        one.rename(other)  # two files exchange their names
    os.utime(videos / "video14.mp4", (1, 1))
    shutil.copy(videos / "below" / "video10.mp4", videos / "video15.mp4")
    (videos / "video16.mp4").write_bytes((videos / "video16.mp4").read_bytes()[:-200])
    shutil.copy(videos / "video14.mp4", videos / "new.mp4")


def check_killed_refresh(command, videos, tmp_path, counts: Iterable[int]) -> None:
    assert main(command("index", videos)) == 0
    shutil.copytree(tmp_path / "index", tmp_path / "before")
    change(videos)
    expected_code = main(command("index", videos, index="undisturbed"))
    expected, kills = held(tmp_path / "undisturbed"), 0
    for statements in counts:
        shutil.rmtree(tmp_path / "index")
        shutil.copytree(tmp_path / "before", tmp_path / "index")
        kills += kill(run_and_die, command("refresh"), statements)
        for file, rows in held(tmp_path / "index").items():  # also checks the database
            assert len(rows) == 1, file
        assert main(command("refresh")) == expected_code
        assert_same(held(tmp_path / "index"), expected)
    assert kills


def test_kill_9_while_refreshing(command, videos, tmp_path):
    check_killed_refresh(command, videos, tmp_path, [40])


@pytest.mark.slow
def test_kill_9_while_refreshing_at_random_moments(command, videos, tmp_path):
    check_killed_refresh(command, videos, tmp_path, moments(70, MOMENTS))


@pytest.mark.parametrize("count", [2, pytest.param(MOMENTS, marks=pytest.mark.slow)])
def test_kill_9_while_forgetting(command, videos, tmp_path, count):
    """Each path is forgotten whole or not at all."""
    assert main(command("index", videos)) == 0
    before = held(tmp_path / "index")
    gone = {str(videos / name) for name in ("video11.mp4", "video12.mp4", "below/video10.mp4")}
    forget = command("forget", videos / "video11.mp4", videos / "video12.mp4", videos / "below")
    shutil.copytree(tmp_path / "index", tmp_path / "before")
    kills = 0
    for statements in moments(25, count):
        shutil.rmtree(tmp_path / "index")
        shutil.copytree(tmp_path / "before", tmp_path / "index")
        kills += kill(run_and_die, forget, statements)
        left = held(tmp_path / "index")
        assert left.keys() in (before.keys(), before.keys() - gone)
        if left.keys() == before.keys():
            assert main(forget) == 0
        assert_same(held(tmp_path / "index"), {file: rows for file, rows in before.items() if file not in gone})
    assert kills


@pytest.mark.parametrize("statements", [1, 4, 8])
def test_kill_9_while_an_index_is_made(command, videos, tmp_path, statements):
    """An empty database is as good as none."""
    assert kill(run_and_die, command("index", videos), statements)
    assert (tmp_path / "index" / "index.sqlite").is_file()
    assert main(command("query", "red")) == main(command("refresh")) == 2
    assert main(command("index", videos)) == 0
    assert len(held(tmp_path / "index")) == 7


@pytest.mark.slow
def test_kill_9_of_one_of_two_ranks(command, videos, tmp_path):
    """The other one ends too, with what it has committed."""
    assert main(command("index", videos, index="undisturbed")) == 0
    expected, kills = held(tmp_path / "undisturbed"), 0
    for place, statements in enumerate(moments(60, MOMENTS)):
        shutil.rmtree(tmp_path / "index", ignore_errors=True)
        kills += kill(run_as_ranks, command("index", videos), place % 2, statements)
        run_as_group(2, _run, command("index", videos))
        assert_same(held(tmp_path / "index"), expected)
    assert kills >= MOMENTS // 2


def _run(command: list[str]) -> None:
    assert main(command) == 0
