"""Folders that somebody with bad intentions, or bad luck, has filled."""

import os
import shutil
import time
from pathlib import Path

import numpy as np
import pytest

from dataloaders.frames import FrameReader as Frames
from search import Index
from search.__main__ import main
from search.indexing import Options, Plan, make_plan
from search.reading import FileReader, Task
from search.store import PER_FILE, Store
from search.walk import Found, walk
from tests.dataloaders.hostile_files import BAD, GOOD
from tests.search.test_resuming import update
from tests.search.test_store import FACTS
from tests.videos import grey_ramp, write_video

NOT_IN_A_FOLDER = {"missing", "dangling", "directory"}  # what a walk does not take for a video
LEFT_OUT = {"bare stream"}  # .h264 is no extension of a video


@pytest.fixture(scope="module")
def hostile(tmp_path_factory) -> tuple[Path, int, set[str]]:
    """Return a folder with all hostile files of the decoder's tests, how many can be read, and which cannot."""
    folder, made = tmp_path_factory.mktemp("hostile") / "videos", tmp_path_factory.mktemp("made")
    folder.mkdir()
    read, broken = 0, set()
    for number, (name, case) in enumerate(GOOD.items()):
        (made / f"good{number}").mkdir()
        path = case.make(made / f"good{number}")
        shutil.copy(path, folder / f"good{number}{path.suffix}")
        read += name not in LEFT_OUT
    for number, (make, _) in enumerate(BAD):
        (made / f"bad{number}").mkdir()
        path = make(made / f"bad{number}")
        if make.__name__ not in NOT_IN_A_FOLDER:
            shutil.copy(path, folder / f"bad{number}{path.suffix}")
            broken.add(f"bad{number}{path.suffix}")
    return folder, read, broken


@pytest.mark.slow
def test_the_hostile_set_of_the_decoder(hostile, encoder, tmp_path):
    """Each file has windows with finite vectors, or one sentence; none stops the others."""
    folder, read, broken = hostile
    update(tmp_path / "index", folder, encoder, Options(jobs=2, limit=60))
    with Index.open(tmp_path / "index") as index:
        (model,) = index.store.models()
        ids, vectors = index.vectors()
        windows = index.windows(ids)
        failures = index.store.failures(model)
        assert not index.store.check()
    assert {os.path.basename(path) for path, _ in failures} == broken
    for path, reason in failures:
        assert path in reason
        assert "\n" not in reason
    assert {os.path.basename(path) for path, *_ in windows if "good" in path} == {
        path.name for path in folder.iterdir() if path.name.startswith("good") and path.suffix != ".h264"
    }
    assert len({window.file for window in windows}) >= read
    assert np.isfinite(vectors).all()
    for window in windows:
        assert 0 <= window.start < window.end < 3600 or (window.start, window.end) == (0, 0)  # of unknown length


def test_pipes_devices_and_links_to_them_are_not_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe.mp4")
    (tmp_path / "zero.mp4").symlink_to("/dev/zero")
    (tmp_path / "pipe_again.mkv").symlink_to(tmp_path / "pipe.mp4")
    (tmp_path / "all").symlink_to("/")
    walked = walk(str(tmp_path))
    assert not walked.files
    assert walked.left_out == {"not regular files": 1, "symbolic links (--follow)": 3}
    (tmp_path / "all").unlink()
    walked = walk(str(tmp_path), follow=True)
    assert not walked.files
    assert walked.left_out == {"not regular files": 2}  # the pipe is met once


@pytest.mark.parametrize("kind", ["pipe", "device", "folder", "nothing"])
@pytest.mark.parametrize("flag", ["--image", "--clip"])
def test_a_query_reads_regular_files_only(encoder, tmp_path, kind, flag):
    path = tmp_path / "odd"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "folder":
        path.mkdir()
    encode = encoder.encode_image if flag == "--image" else encoder.encode_clip
    with pytest.raises(
        OSError, match=rf"{flag} .*odd {'does not exist' if kind == 'nothing' else 'is no regular file'}"
    ):
        encode(path)


@pytest.mark.parametrize("count", [10_000, pytest.param(100_000, marks=pytest.mark.slow)])
def test_many_files(tmp_path, count):
    """All are found; nothing is read again, and of those that the index knows only what has changed."""
    videos = tmp_path / "videos"
    for number in range(count):
        folder = videos / str(number // 1000)
        if number % 1000 == 0:
            folder.mkdir(parents=True)
        os.close(os.open(folder / f"{number}.mp4", os.O_CREAT | os.O_WRONLY))
    with Store(tmp_path / "index", write=True) as store:
        model = store.add_model("k", "model", FACTS)

        def plan() -> Plan:
            return make_plan(str(videos), store.files(str(videos)), store.tried(model), "", Options())

        first = plan()
        assert len(first.tasks) == count
        rows = [(os.fsencode(found.path), found.size, found.mtime_ns) for found in first.walked.files]
        with store._transaction() as connection:  # `put` waits for the disk at each file
            connection.executemany("INSERT INTO files VALUES (NULL, ?, ?, ?, '', 0)", rows)
            connection.execute("INSERT INTO vectors SELECT ?, id, 0, 'empty', x'', x'', x'' FROM files", (model.id,))
        again = plan()
        assert len(again.changes.unchanged) == count
        assert not again.tasks
        (videos / "0" / "1.mp4").rename(videos / "0" / "new.mp4")
        changes = plan().changes
        assert [(found.path, known) for found, known in changes.to_read] == [(f"{videos}/0/new.mp4", None)]
        assert [file.path for file in changes.gone] == [f"{videos}/0/1.mp4"]


def test_a_length_that_makes_millions_of_windows(tmp_path, monkeypatch):
    """A wrong time stamp can make a file of a few frames last for years."""
    path = write_video(tmp_path / "a.mp4", grey_ramp(30), fps=3)
    status = path.stat()
    reader = FileReader(Frames(max_frames=3, image_size=32), 10.0, 5.0)
    monkeypatch.setattr("search.reading.length_of", lambda path: 5.0 * PER_FILE + 11)
    begun, ended = reader(Task(Found(str(path), status.st_size, status.st_mtime_ns)))
    assert begun.duration > 5e6
    assert ended.reason.startswith(f"{path} states a length of 5242891 s")
    monkeypatch.setattr("search.reading.length_of", lambda path: 1e12)
    assert "states a length" in list(reader(Task(Found(str(path), status.st_size, status.st_mtime_ns))))[-1].reason


def test_a_decoder_that_hangs_costs_one_file(encoder, videos, tmp_path, monkeypatch, capfd):
    """Through the command, with its time limit."""
    read = FileReader.__call__

    def play(self, task):
        if "video12" in task.found.path:
            time.sleep(60)
        yield from read(self, task)

    monkeypatch.setattr(FileReader, "__call__", play)
    monkeypatch.setattr("search.updating.load_encoder", lambda *source, **options: encoder)
    flags = ["--index", str(tmp_path / "index"), "--jobs", "2", "--time_limit", "1"]
    assert main(["index", str(videos), *flags]) == 3
    told = capfd.readouterr().err
    assert "1 of 7 files could not be read" in told
    assert "its decoder did not get on for 1 s (--time_limit)" in told
    with Index.open(tmp_path / "index") as index:
        assert len(index.vectors()[0]) == 6
