"""A frame cache never returns damaged entries; full disks, killed writers and many processes leave none behind."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from dataloaders import cache as cache_module
from dataloaders.cache import FrameCache
from tests.dataloaders.cached_reader import entries, reader
from tests.dataloaders.small_clips import waves
from tests.videos import write_video

ROOT = Path(__file__).parents[2]


def flip(place: Path, part: float) -> None:
    content = bytearray(place.read_bytes())
    content[int(part * (len(content) - 1))] ^= 1
    place.write_bytes(content)


def shorten(place: Path, part: float) -> None:
    os.truncate(place, int(part * place.stat().st_size))


def zero_the_end(place: Path, part: float) -> None:
    """Leave a file as a power cut can leave one that was not synced."""
    content = place.read_bytes()
    kept = int(part * len(content))
    place.write_bytes(content[:kept] + bytes(len(content) - kept))


def exchange(place: Path, part: float) -> None:
    """Put the complete entry of another video in its place."""
    save_file({"promised": torch.tensor(6), "pixels": torch.zeros(6, 3, 32, 32, dtype=torch.uint8)}, place)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    encoding=st.sampled_from(["raw", "jpeg"]),
    damage=st.sampled_from([flip, shorten, zero_the_end, exchange]),
    part=st.floats(0, 0.99),
)
def test_a_damaged_entry_is_noticed_and_made_again(tmp_path_factory, encoding, damage, part):
    folder = tmp_path_factory.mktemp("damaged")
    path = write_video(folder / "a.mp4", waves(9))
    expected, _ = reader(folder / "cache", encoding)(path)
    (place,) = entries(folder / "cache")
    whole = place.read_bytes()
    damage(place, part)
    got, mask = reader(folder / "cache", encoding)(path)
    assert torch.equal(got, expected)
    assert mask.all()
    assert place.read_bytes() == whole


@pytest.mark.parametrize(("written", "damaged"), [(b'"promised"', b'"psomised"'), (b'"dtype":"U8"', b'"dtype":"I8"')])
def test_a_damaged_header_that_can_still_be_read_is_noticed(tmp_path, written, damaged):
    path = write_video(tmp_path / "a.mp4", waves(9))
    expected, _ = reader(tmp_path / "cache")(path)
    (place,) = entries(tmp_path / "cache")
    whole = place.read_bytes()
    assert whole.count(written) == 1
    place.write_bytes(whole.replace(written, damaged))
    assert torch.equal(reader(tmp_path / "cache")(path)[0], expected)
    assert place.read_bytes() == whole


def test_the_log_names_a_damaged_entry(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(cache_module.log, "propagate", True)
    path = write_video(tmp_path / "a.mp4", waves(9))
    reader(tmp_path / "cache")(path)
    assert caplog.text == ""
    (place,) = entries(tmp_path / "cache")
    flip(place, 0.9)
    reader(tmp_path / "cache")(path)
    assert f"{place} in the frame cache is damaged" in caplog.text


def test_bad_folders_are_refused(tmp_path):
    with pytest.raises(ValueError, match="--frame_cache_format is 'png': pass raw or jpeg"):
        FrameCache(tmp_path, "png")
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=r"--frame_cache .*file is a file: name a folder"):
        FrameCache(tmp_path / "file")


@pytest.mark.parametrize("fault", ["in the folder's way", "disk full"])
def test_a_cache_that_cannot_be_written_is_one_sentence(tmp_path, monkeypatch, fault):
    path = write_video(tmp_path / "a.mp4", waves(5))
    cached = reader(tmp_path / "cache")
    place = cached.cache_place(path)
    if fault == "disk full":

        def full(path, content):
            path.touch()
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(Path, "write_bytes", full)
    else:
        place.parent.parent.mkdir()
        place.parent.touch()
    with pytest.raises(
        OSError, match=r"^--frame_cache .*cache cannot be written to \(.+\): make room, or name"
    ) as raised:
        cached(path)
    assert "\n" not in str(raised.value)
    assert not [left for left in entries(tmp_path) if left.name.endswith(".partial")]


def test_leftovers_of_killed_writers_go_and_those_of_others_stay(tmp_path):
    cache = FrameCache(tmp_path)
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    node = cache_module.platform.node()
    gone = tmp_path / "ab" / f".x.safetensors.{node}.{dead.pid}.1.partial"
    stays = [
        tmp_path / "ab" / f".x.safetensors.{node}.{os.getpid()}.1.partial",
        tmp_path / "ab" / f".x.safetensors.other-{node}.{dead.pid}.1.partial",
        tmp_path / "ab" / "y.safetensors",
    ]
    gone.parent.mkdir()
    for path in (gone, *stays):
        path.touch()
    cache.remove_partials()
    assert entries(tmp_path) == sorted(stays)


def fill(folder: Path, paths: list[Path], order: int) -> None:
    cached = reader(folder, frame_sampling="segment", training=True)
    for number in np.random.default_rng(order).permutation(len(paths)):
        cached.prepare(paths[number])


def test_many_processes_fill_one_cache(tmp_path):
    paths = [write_video(tmp_path / f"{n}.mp4", waves(8, seed=n)) for n in range(6)]
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=fill, args=(tmp_path / "cache", paths, order)) for order in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0] * 4
    assert len(entries(tmp_path / "cache")) == 6  # and no partial files
    fill(tmp_path / "alone", paths, 0)
    assert [path.read_bytes() for path in entries(tmp_path / "cache")] == [
        path.read_bytes() for path in entries(tmp_path / "alone")
    ]


FILL = """
import sys
from pathlib import Path
from dataloaders.cache import FrameCache
from dataloaders.frames import FrameReader
videos, cache = Path(sys.argv[1]), FrameCache(Path(sys.argv[2]))
cache.remove_partials()
frames = FrameReader(6, 32, "segment", training=True, cache=cache)
print("begun", flush=True)
for path in sorted(videos.glob("*.mp4")):
    frames.prepare(path)
"""


@pytest.mark.slow
def test_killed_at_any_moment_it_ends_with_the_same_files(tmp_path):
    (tmp_path / "videos").mkdir()
    for n in range(12):
        write_video(tmp_path / "videos" / f"{n}.mp4", waves(20, seed=n))

    def start(folder: str) -> subprocess.Popen:
        arguments = [sys.executable, "-c", FILL, str(tmp_path / "videos"), str(tmp_path / folder)]
        return subprocess.Popen(arguments, cwd=ROOT, stdout=subprocess.PIPE)

    assert start("whole").wait() == 0
    rng = np.random.default_rng(0)
    for _ in range(4):
        process = start("killed")
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(rng.uniform(0, 0.05))
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert start("killed").wait() == 0
    whole, killed = ({p.name: p.read_bytes() for p in entries(tmp_path / name)} for name in ("whole", "killed"))
    assert len(whole) == 12
    assert killed == whole
