"""What happens to files, disks and models while an index is in use."""

import json
import multiprocessing
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from engine.checkpoint import CheckpointHeader, read_checkpoint, write_checkpoint
from search import Index, ModelMismatch
from search.__main__ import main
from search.database import SCHEMA
from search.reading import FileReader
from search.store import Store
from tests.search.test_resuming import assert_same, held


@pytest.fixture
def run(encoder, tmp_path, monkeypatch, capfd) -> Callable[..., tuple[int, str, str]]:
    """Return a function that runs a command on the index of this test, whose model is loaded already, and returns exit
    code, stdout and stderr."""
    monkeypatch.setattr("search.updating.load_encoder", lambda *source, **options: encoder)

    def call(name: str, *arguments: object, index: Path = tmp_path / "index") -> tuple[int, str, str]:
        capfd.readouterr()
        jobs = ["--jobs", "1"] if name in ("index", "refresh") else []
        code = main([name, *map(str, arguments), "--index", str(index), *jobs])
        return code, *capfd.readouterr()

    return call


def test_a_file_that_is_cut_off_loses_its_windows(run, videos, tmp_path):
    assert run("index", videos)[0] == 0
    path = videos / "video11.mp4"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    code, _, told = run("refresh")
    assert code == 3
    assert "1 of 7 files could not be read" in told
    assert str(path) in told
    assert str(path) not in held(tmp_path / "index")
    path.write_bytes(b"")
    assert "is empty (0 bytes)" in run("refresh")[2]
    path.write_bytes(whole)
    assert run("refresh")[0] == 0
    assert len(held(tmp_path / "index")) == 7


def test_a_file_that_grows_waits_until_it_is_complete(run, videos, tmp_path, monkeypatch):
    path, read = videos / "video11.mp4", FileReader.__call__
    whole = path.read_bytes()
    path.write_bytes(whole[:-100])

    def grow(self, task):
        for message in read(self, task):
            yield message
            if "video11" in task.found.path and path.stat().st_size < len(whole):
                with open(path, "ab") as file:
                    file.write(whole[-100:])

    monkeypatch.setattr(FileReader, "__call__", grow)
    code, _, told = run("index", videos)
    assert code == 0
    assert "1 files changed while they were read" in told
    assert str(path) not in held(tmp_path / "index")
    monkeypatch.undo()
    monkeypatch.setattr("search.updating.load_encoder", lambda *source, **options: _loaded(tmp_path))
    code, _, told = run("refresh")
    assert code == 0
    assert "1 files to read" in told
    assert str(path) in held(tmp_path / "index")


def _loaded(folder: Path):
    with Index.open(folder / "index") as index:
        return index.encoder


def test_one_of_two_disks_is_not_mounted(run, videos, small_data, tmp_path):
    second = tmp_path / "second"
    second.mkdir()
    for number in (1, 2):
        shutil.copy2(small_data.videos / f"video{number}.mp4", second)
    assert run("index", videos)[0] == 0
    assert run("index", second)[0] == 0
    before = held(tmp_path / "index")
    second.rename(tmp_path / "unplugged")
    shutil.copy(videos / "video11.mp4", videos / "new.mp4")
    code, _, told = run("refresh")
    assert code == 3
    assert "second: is no folder now" in told
    assert "1 files read" in told
    assert held(tmp_path / "index").keys() == {*before, str(videos / "new.mp4")}  # its files stay
    second.mkdir()  # an empty mount point
    code, _, told = run("refresh")
    assert code == 2
    assert "2 of the 2 files indexed" in told
    assert len(held(tmp_path / "index")) == 10
    second.rmdir()
    (tmp_path / "unplugged").rename(second)
    assert run("refresh")[0] == 0
    assert len(held(tmp_path / "index")) == 10


@pytest.fixture
def disk(tmp_path) -> Iterator[Path]:
    """A disk of 8 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(folder)]
    try:
        subprocess.run(mount, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("mounting a file system needs the rights of root")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.mark.slow
@pytest.mark.parametrize("left", [0, 100_000, 700_000])
def test_a_full_disk(run, videos, disk, tmp_path, left):
    """Indexing stops with one sentence, loses nothing, and goes on when there is room."""
    for number in range(10):
        shutil.copy(videos / "video11.mp4", videos / f"more{number}.mp4")
        with open(videos / f"more{number}.mp4", "ab") as file:
            file.write(bytes([number]))  # other contents
    assert run("index", videos, index=tmp_path / "undisturbed")[0] == 0
    (disk / "filler").write_bytes(bytes((8 << 20) - left))
    code, _, told = run("index", videos, index=disk / "index")
    assert code == 2
    assert told.splitlines()[-1].count("error: ") == 1
    assert "make room on its disk" in told or "No space left" in told
    (disk / "filler").unlink()
    assert run("index", videos, index=disk / "index")[0] == 0
    assert_same(held(disk / "index"), held(tmp_path / "undisturbed"))


def test_a_disk_that_cannot_be_written(run, videos, disk, tmp_path):
    """It can be searched as before; commands that would write say so."""
    folder = disk / "index"
    assert run("index", videos, index=folder)[0] == 0
    expected = json.loads(run("query", "a red half", "--json", index=folder)[1])["hits"]
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    code, out, told = run("query", "a red half", "--json", index=folder)
    assert code == 0, told
    assert json.loads(out)["hits"] == expected
    assert run("status", index=folder)[0] == run("verify", "--full", index=folder)[0] == 0
    for command in (["index", videos], ["refresh"], ["forget", videos]):
        code, _, told = run(*command, index=folder)
        assert code == 2, command
        assert told.splitlines()[-1].startswith("error: ")
        assert str(folder) in told


def _index(folder: Path, videos: Path) -> None:
    assert main(["index", str(videos), "--index", str(folder), "--jobs", "1", "--batch_size", "1"]) == 0


def test_readers_and_two_writers_at_once(run, videos, tmp_path):
    """Two commands index the same folder while queries are asked; nobody is stopped, and nothing is there twice."""
    assert run("index", videos, index=tmp_path / "undisturbed")[0] == 0
    expected, folder = held(tmp_path / "undisturbed"), tmp_path / "index"
    (tmp_path / "few").mkdir()
    assert run("index", tmp_path / "few", index=folder)[0] == 0
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=_index, args=(folder, videos), daemon=False) for _ in range(2)]
    for writer in writers:
        writer.start()
    seen = set()
    while any(writer.is_alive() for writer in writers):
        with Index.open(folder) as index:
            ids, vectors = index.vectors()
            assert len(ids) == len(vectors) == len(set(ids.tolist()))
            for id_, vector in zip(ids[:1], vectors, strict=False):
                assert np.isfinite(vector).all()
                seen.add(int(id_))
    for writer in writers:
        writer.join()
    assert [writer.exitcode for writer in writers] == [0, 0]
    assert_same(held(folder), expected)


def test_paths_from_another_working_folder(run, videos, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run("index", "videos", index=Path("index"))[0] == 0
    expected = held(tmp_path / "index")
    monkeypatch.chdir(videos / "below")
    assert "0 files to read" in run("index", "..", index=Path("../../index"))[2]
    assert held(tmp_path / "index").keys() == expected.keys()
    assert run("query", "red", "--in", "below/*", index=Path("../../index"))[1].split() == [
        str(videos / "below" / "video10.mp4")
    ]
    assert run("forget", "video10.mp4", index=Path("../../index"))[0] == 0
    assert len(held(tmp_path / "index")) == 6


def rewrite(
    source: Path,
    target: Path,
    change: Callable[[CheckpointHeader, dict[str, torch.Tensor]], object],
) -> None:
    """Write a checkpoint with another header or other tensors."""
    header, tensors, _ = read_checkpoint(source)
    change(header, tensors)
    write_checkpoint(target, tensors, header)


def test_a_model_that_is_another_one_now(trained, videos, tmp_path, capfd):
    """A changed checkpoint, another window and a newer index are refused, with the difference."""
    checkpoint, folder = tmp_path / "model.safetensors", tmp_path / "index"
    shutil.copy(trained.checkpoint, checkpoint)
    index = ["index", str(videos), "--checkpoint", str(checkpoint), "--jobs", "1", "--index", str(folder)]
    assert main(index) == 0
    before = held(folder)

    def refused(command: list[str], *parts: str) -> None:
        capfd.readouterr()
        assert main(command) == 2, command
        told = capfd.readouterr().err
        assert all(part in told for part in parts), told
        assert told.count("\n") == 1
        assert_same(held(folder), before)

    refused([*index, "--window", "3"], "window is 1.6", "and 3.0 here", "--model with another name")
    rewrite(checkpoint, checkpoint, lambda _, tensors: next(iter(tensors.values())).add_(0.01))
    for command in (["query", "red"], ["refresh", "--jobs", "1"]):
        refused([*command, "--index", str(folder)], "the model vpt of the index is another one", "weights is")
    with Index.open(folder) as opened, pytest.raises(ModelMismatch):
        opened.query("red")
    checkpoint.unlink()
    refused(["query", "red", "--index", str(folder)], "no such checkpoint", str(checkpoint))
    found = main(["query", "red", "--index", str(folder), "--checkpoint", str(trained.checkpoint)])
    assert found == 0  # where it is now
    with Store(folder, write=True) as store:
        store._all(f"PRAGMA user_version={SCHEMA + 1}")
    for command in (["query", "red"], ["refresh"], ["status"], ["verify"], ["forget", str(videos)]):
        capfd.readouterr()
        assert main([*command, "--index", str(folder)]) == 2
        assert "written by a newer version" in capfd.readouterr().err


def test_a_checkpoint_that_does_not_state_the_length_of_its_clips(trained, encoder, videos, tmp_path, capfd):
    """Checkpoints of earlier versions do not; windows of another length than in training cost most of the recall."""
    assert not encoder.guessed
    rewrite(trained.checkpoint, tmp_path / "old.safetensors", lambda header, _: header.trained_on.pop("seconds"))
    flags = ["--index", str(tmp_path / "index"), "--checkpoint", str(tmp_path / "old.safetensors"), "--jobs", "1"]
    for more in (["--dry_run"], []):
        assert main(["index", str(videos), *flags, *more]) == 0
        assert "in pieces of 10 s, because the model does not say how long" in capfd.readouterr().err
    assert main(["index", str(videos), *flags, "--window", "10"]) == 0
    assert "in pieces of" not in capfd.readouterr().err
    assert main(["index", str(videos), *flags, "--model", "second", "--window", "3"]) == 0
    assert "does not say" not in capfd.readouterr().err
