"""Indexing that is killed at any moment goes on; several processes share the files; decoders that hang or crash."""

import multiprocessing
import os
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pytest

from search import Index
from search.__main__ import main
from search.indexing import Indexer, Options, make_plan
from search.model import Encoder
from search.reading import FileReader
from search.store import Store
from search.updating import enter_model
from tests.processes import run_as_group
from tests.videos import write_video


def update(folder: Path, videos: Path, encoder: Encoder, options: Options | None = None) -> None:
    """Do what `index` does with a model that is loaded already."""
    options = options or Options()
    with Store(folder, write=True) as store:
        model = enter_model(store, encoder)
        plan = make_plan(str(videos), store.files(str(videos)), store.tried(model), str(folder), options)
        Indexer(store, model, encoder, options).run(plan.tasks, quiet=True)


def held(folder: Path) -> dict[str, np.ndarray]:
    """Return the windows and vectors of each file of the index, [n, 2 + E]."""
    with Index.open(folder) as index:
        ids, vectors = index.vectors()
        assert len(set(ids.tolist())) == len(ids)
        rows: dict[str, list] = {}
        for window, vector in zip(index.windows(ids), vectors, strict=True):
            rows.setdefault(window.file, []).append([window.start, window.end, *vector])
        assert not index.store.check()
    return {file: np.array(values, dtype=np.float64) for file, values in rows.items()}


def assert_same(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> None:
    assert one.keys() == other.keys()
    for file, rows in one.items():
        np.testing.assert_allclose(rows, other[file], atol=1e-3)  # another batch may round a value otherwise


@pytest.fixture
def undisturbed(videos, encoder, tmp_path) -> dict[str, np.ndarray]:
    frames = np.random.default_rng(0).integers(0, 255, (30, 48, 64, 3), dtype=np.uint8)
    write_video(videos / "long.mp4", frames, fps=3)
    update(tmp_path / "undisturbed", videos, encoder)
    return held(tmp_path / "undisturbed")


def _killed(folder: Path, videos: Path, encoder: Encoder, statements: int) -> None:
    left = iter(range(statements))

    def count(statement: str) -> None:
        if next(left, None) is None:
            os.kill(os.getpid(), signal.SIGKILL)

    prepare = Store._prepare

    def prepare_and_count(self: Store, write: bool) -> None:
        self._connection.set_trace_callback(count)
        prepare(self, write)

    Store._prepare = prepare_and_count  # type: ignore[method-assign]
    update(folder, videos, encoder, Options(batch_size=2))


def check_killed(undisturbed, videos, encoder, folder: Path, moments) -> None:
    kills = 0
    for statements in moments:
        process = multiprocessing.get_context("fork").Process(
            target=_killed, args=(folder, videos, encoder, statements), daemon=False
        )
        process.start()
        process.join()
        kills += process.exitcode == -signal.SIGKILL
        assert process.exitcode in (0, -signal.SIGKILL)
        if (folder / "index.sqlite").exists():
            with Store(folder, write=True) as store:
                assert not store.check()
    assert kills
    update(folder, videos, encoder)
    assert_same(held(folder), undisturbed)


def test_kill_9_while_indexing(undisturbed, videos, encoder, tmp_path):
    check_killed(undisturbed, videos, encoder, tmp_path / "index", (5, 34, 45, 61))


@pytest.mark.slow
def test_kill_9_at_20_random_moments(undisturbed, videos, encoder, tmp_path):
    moments = np.random.default_rng(0).integers(1, 90, 20).tolist()
    check_killed(undisturbed, videos, encoder, tmp_path / "index", moments)


def test_a_decoder_that_hangs_or_crashes(undisturbed, videos, encoder, tmp_path, monkeypatch):
    read = FileReader.__call__

    def play(self, task):
        if "video12" in task.found.path:
            time.sleep(60)
        if "video13" in task.found.path:
            os.kill(os.getpid(), signal.SIGKILL)  # as the system does where memory is short
        yield from read(self, task)

    monkeypatch.setattr(FileReader, "__call__", play)
    update(tmp_path / "index", videos, encoder, Options(jobs=2, limit=3))
    monkeypatch.undo()
    with Store(tmp_path / "index") as store:
        (model,) = store.models()
        (hung, why_hung), (crashed, why_crashed) = store.failures(model)
    assert "video12" in hung
    assert "did not get on for 3 s" in why_hung
    assert "video13" in crashed
    assert "SIGKILL" in why_crashed
    kept = {file: rows for file, rows in undisturbed.items() if file not in (hung, crashed)}
    assert_same(held(tmp_path / "index"), kept)
    update(tmp_path / "index", videos, encoder, Options(retry=True))
    assert_same(held(tmp_path / "index"), undisturbed)


def _index(folder: Path, videos: Path, checkpoint: Path) -> None:
    flags = ["--index", str(folder), "--checkpoint", str(checkpoint), "--jobs", "1"]
    code = main(["index", str(videos), *flags])
    assert code == (3 if (videos / "bad.mp4").exists() else 0)


@pytest.mark.parametrize("world_size", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_processes_share_the_files(undisturbed, videos, trained, tmp_path, world_size):
    (videos / "bad.mp4").write_bytes(b"no video")  # all processes return its exit code, so that none stops the others
    run_as_group(world_size, _index, tmp_path / "index", videos, trained.checkpoint)
    assert_same(held(tmp_path / "index"), undisturbed)
    (videos / "bad.mp4").unlink()
    shutil.copy(videos / "video11.mp4", videos / "new.mp4")
    run_as_group(1, _index, tmp_path / "index", videos, trained.checkpoint)  # another number goes on
    assert held(tmp_path / "index").keys() == {*undisturbed, str(videos / "new.mp4")}
