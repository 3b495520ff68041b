"""The key of a frame cache's entry: the video's place below its folder, its size, time and content."""

import os
import pickle
import shutil
import time
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
import torch

from dataloaders import cache as cache_module
from dataloaders.cache import FrameCache
from dataloaders.decode import VideoError
from dataloaders.frames import FrameReader
from tests.dataloaders.cached_reader import entries, reader
from tests.dataloaders.small_clips import waves
from tests.videos import write_video


def in_folder(folder: Path) -> FrameReader:
    return reader(None, cache=FrameCache(folder / "cache", videos=folder / "videos"))


def test_videos_and_cache_may_be_moved(tmp_path, decoded):
    (tmp_path / "one" / "videos" / "sub").mkdir(parents=True)
    path = write_video(tmp_path / "one" / "videos" / "sub" / "a.mp4", waves(5))
    expected, _ = in_folder(tmp_path / "one")(path)
    (tmp_path / "one").rename(tmp_path / "other")
    path = tmp_path / "other" / "videos" / "sub" / "a.mp4"
    assert torch.equal(in_folder(tmp_path / "other")(path)[0], expected)
    shutil.copytree(tmp_path / "other", tmp_path / "copy")  # with their times, like cp -p
    assert torch.equal(in_folder(tmp_path / "copy")(tmp_path / "copy" / "videos" / "sub" / "a.mp4")[0], expected)
    assert decoded["a.mp4"] == 1


def same_size_and_time(*paths: Path) -> None:
    """Give files the same size, by zeros at the end that decoders ignore, and the same time of change."""
    size = max(path.stat().st_size for path in paths)
    for path in paths:
        os.truncate(path, size)
        os.utime(path, ns=(10**18, 10**18))


@pytest.mark.parametrize("folders", [("videos/front", "videos/back"), ("videos", "other/videos")])
@pytest.mark.parametrize("named", [True, False])
def test_files_of_one_name_size_and_time_do_not_share_an_entry(tmp_path, decoded, folders, named):
    paths = []
    for number, folder in enumerate(folders):
        (tmp_path / folder).mkdir(parents=True)
        paths.append(write_video(tmp_path / folder / "a.mp4", waves(5, seed=number)))
    same_size_and_time(*paths)
    expected = [reader(None)(path)[0] for path in paths]
    assert not torch.equal(*expected)
    decoded.clear()
    for _ in range(2):
        for path, video in zip(paths, expected, strict=True):
            root = next(parent for parent in path.parents if parent.name == "videos") if named else None
            cache = FrameCache(tmp_path / "cache", videos=root)
            assert torch.equal(reader(None, cache=cache)(path)[0], video)
    assert decoded["a.mp4"] == 2
    assert len(entries(tmp_path / "cache")) == 2


def test_equal_files_in_two_folders_have_an_entry_each(tmp_path):
    for folder in ("x", "y"):
        (tmp_path / "videos" / folder).mkdir(parents=True)
        write_video(tmp_path / "videos" / folder / "a.mp4", waves(5))
    same_size_and_time(*tmp_path.glob("videos/*/a.mp4"))
    places = {in_folder(tmp_path).cache_place(tmp_path / "videos" / folder / "a.mp4") for folder in ("x", "y")}
    assert len(places) == 2


MIB = 2**20


@pytest.mark.parametrize("size", [1, MIB, 3 * MIB, 3 * MIB + 1, 5 * MIB, 8 * MIB + 3])
def test_the_sample_is_the_first_the_middle_and_the_last_mib(tmp_path, size):
    content = np.random.default_rng(0).bytes(size)
    path = tmp_path / "a"
    path.write_bytes(content)
    middle = (size - MIB) // 2
    sampled = content if size <= 3 * MIB else content[:MIB] + content[middle : middle + MIB] + content[-MIB:]
    assert cache_module.content_sample(path, size) == sha256(sampled).hexdigest()


@pytest.mark.parametrize("same_reader", [True, False])
def test_what_is_written_into_a_file_is_noticed(tmp_path, decoded, same_reader):
    """A change is noticed in the sampled parts even if the time is kept, and elsewhere by the time."""
    path = write_video(tmp_path / "a.mp4", waves(5))
    os.truncate(path, 8 * MIB)
    cached = reader(tmp_path / "cache")
    cached(path)
    times = path.stat()
    for count, (place, keep_time) in enumerate([(8 * MIB - 1, True), (2 * MIB, False)], start=2):
        time.sleep(0.01)
        with path.open("r+b") as file:
            file.seek(place)
            file.write(b"x")
        if keep_time:
            os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
        (cached if same_reader else reader(tmp_path / "cache"))(path)
        assert decoded["a.mp4"] == count


def test_a_file_is_sampled_once_in_a_process_and_those_it_starts(tmp_path, monkeypatch):
    path = write_video(tmp_path / "a.mp4", waves(5))
    sampled = []
    sample = cache_module.content_sample
    monkeypatch.setattr(cache_module, "content_sample", lambda *args: sampled.append(args) or sample(*args))
    cached = reader(tmp_path / "cache")
    for reading in (cached, replace(cached, image_size=16)):
        reading.cache_place(path)
        reading(path)
    pickle.loads(pickle.dumps(cached))(path)
    assert len(sampled) == 1


def test_a_video_that_cannot_be_read_is_one_sentence(tmp_path, monkeypatch):
    path = write_video(tmp_path / "a.mp4", waves(5))
    cached = reader(tmp_path / "cache")

    def refuse(*args, **kwargs):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(VideoError, match=r"a\.mp4 cannot be read \(Permission denied\): correct"):
        cached(path)
