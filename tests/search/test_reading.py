"""Windows of a file, and worker processes whose decoder hangs or crashes."""

import faulthandler
import os
import signal
import time

import hypothesis
import numpy as np
import pytest
import torch
from hypothesis import strategies

from dataloaders.frames import FrameReader as Frames
from search.reading import Begun, Ended, FileReader, Read, Readers, Task, cut
from search.walk import Found, content_key
from tests.videos import grey_ramp, write_damaged_video, write_video


@hypothesis.settings(max_examples=40)
@hypothesis.given(
    strategies.floats(0.1, 500), strategies.floats(0.5, 20), strategies.floats(0.1, 1).filter(lambda part: part > 0.1)
)
def test_windows_cover_a_file(duration, window, part):
    """They have one length, begin every stride, leave no gap, and the last one ends with the file."""
    stride = part * window
    windows = cut(duration, window, stride)
    if duration < 1.5 * window:
        assert windows == [(None, None)]
        return
    starts, ends = np.array(windows).T
    assert starts[0] == 0
    assert ends[-1] == duration
    np.testing.assert_allclose(ends - starts, window)
    np.testing.assert_allclose(starts[:-1], np.arange(len(starts) - 1) * stride)
    assert (np.diff(starts) > 0).all()
    assert (np.diff(starts) <= stride + 2e-3).all()


@pytest.mark.parametrize(
    ("duration", "expected"),
    [
        (0.0, [(None, None)]),  # of unknown length
        (14.9, [(None, None)]),
        (15, [(0, 10), (5, 15)]),
        (20, [(0, 10), (5, 15), (10, 20)]),
        (22, [(0, 10), (5, 15), (10, 20), (12, 22)]),
    ],
)
def test_windows_of_ten_seconds(duration, expected):
    assert cut(duration, 10, 5) == expected


def task(path, known_key=""):
    status = os.stat(path)
    return Task(Found(str(path), status.st_size, status.st_mtime_ns), known_key)


@pytest.fixture
def reader() -> FileReader:
    return FileReader(Frames(max_frames=3, image_size=32, feature_framerate=0, frame_sampling="segment"), 4.0, 2.0)


def test_a_file_is_read_window_by_window(tmp_path, reader):
    path = write_video(tmp_path / "a.mp4", grey_ramp(30), fps=3)
    begun, *read, ended = reader(task(path))
    assert begun == Begun(content_key(str(path)), pytest.approx(10))
    assert ended == Ended()
    assert [(round(window.start, 3), round(window.end, 3)) for window in read] == [(0, 4), (2, 6), (4, 8), (6, 10)]
    for window in read:
        video, mask = reader.frames(path, start=window.start, end=window.end)
        assert torch.equal(torch.from_numpy(window.video), video)
        assert torch.equal(torch.from_numpy(window.frame_mask), mask)
    assert list(reader(task(path, begun.content_key))) == [Ended(content_key=begun.content_key)]


def test_a_file_that_changes_while_it_is_read_does_not_count(tmp_path, reader):
    path = write_video(tmp_path / "a.mp4", grey_ramp(30), fps=3)
    given, messages = task(path), []
    for message in reader(given):
        messages.append(message)
        if isinstance(message, Read):
            os.utime(path, ns=(1, 1))
    assert messages[-1] == Ended(changed=True)
    assert list(reader(given)) == [Ended(changed=True)]
    path.unlink()
    assert list(reader(given)) == [Ended(changed=True)]


def test_damage_costs_only_the_windows_that_it_reaches(tmp_path, reader):
    damaged = write_damaged_video(tmp_path / "a.mp4") / 3  # seconds
    *_, ended = messages = list(reader(task(tmp_path / "a.mp4")))
    windows = [(message.start, message.end) for message in messages if isinstance(message, Read)]
    assert ended.reason.startswith(f"{tmp_path / 'a.mp4'} is damaged")
    assert windows
    assert all(start < damaged for start, _ in windows)
    assert (0, 4) in windows
    assert len(windows) < 9


def play(given):
    """Behave as the file's name says, like a decoder that hangs, crashes or fails."""
    name = os.path.basename(given.found.path)
    yield Begun(name, 1.0)
    if "hang" in name:
        time.sleep(60)
    elif "crash" in name:
        faulthandler.disable()  # pytest's, which would fill the log
        os.kill(os.getpid(), signal.SIGSEGV)
    yield Read(0.0, 1.0, np.zeros(1), np.zeros(1))
    yield Ended()


@pytest.mark.parametrize("jobs", [1, 3])
def test_a_decoder_that_hangs_or_crashes_costs_one_file(jobs):
    names = ["a", "crash b", "c", "hang d", "e", "crash f", "g"]
    tasks = [Task(Found(f"/{name}", 1, 1)) for name in names]
    heard: dict[str, list] = {name: [] for name in names}
    with Readers(play, jobs, limit=0.3) as readers:
        for given, message in readers(tasks):
            heard[given.found.path[1:]].append(message)
        assert len({worker._process.pid for worker in readers._workers}) <= jobs
    for name, messages in heard.items():
        assert messages[0] == Begun(name, 1.0)
        assert isinstance(messages[-1], Ended)
        if "crash" in name:
            assert "crashed (SIGSEGV)" in messages[-1].reason
        elif "hang" in name:
            assert "did not get on for 0.3 s" in messages[-1].reason
        else:
            assert messages[-1] == Ended()
            assert len(messages) == 3


def test_workers_end_with_their_parent():
    """Also those that wait, although later workers inherited their parents' ends of the pipes."""
    outside, inside = os.pipe()
    if not (parent := os.fork()):
        readers = Readers(play, 2, limit=9)
        for _ in readers([Task(Found("/a", 1, 1)), Task(Found("/b", 1, 1)), Task(Found("/c", 1, 1))]):
            pass
        os.write(inside, "".join(f"{worker._process.pid}\n" for worker in readers._workers).encode())
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(parent, 0)
    pids = [int(pid) for pid in os.read(outside, 100).split()]
    assert len(pids) == 2
    for _ in range(100):
        if not any(is_running(pid) for pid in pids):
            break
        time.sleep(0.05)
    assert not any(is_running(pid) for pid in pids)


def is_running(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
