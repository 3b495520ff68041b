"""Clips inside a tar come out as from files of their own."""

import numpy as np
import pytest
import torch

from dataloaders.decode import read_frames
from dataloaders.file_part import FilePart
from dataloaders.frame_parts import FrameParts
from dataloaders.frames import FrameReader
from dataloaders.shard_index import member_table
from dataloaders.video_file import VideoError
from tests.dataloaders.small_clips import waves
from tests.small_shards import jpegs, write_shards
from tests.videos import grey_ramp, write_video


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """Return a video file, and the same bytes in the middle of a tar."""
    folder = tmp_path_factory.mktemp("part")
    path = write_video(folder / "clip.mp4", waves(12), fps=3)
    members = {"mp4": path.read_bytes(), "json": b"{}"}
    write_shards(folder / "shards", [("a", members), ("b", members), ("c", members)], [3])
    tar = folder / "shards" / "000000.tar"
    return path, FilePart(tar, *member_table(tar)[1].video)


def test_a_part_is_read_like_a_file(clip):
    path, part = clip
    assert part.read() == path.read_bytes() == part.open().read()
    assert part.stat().st_size == path.stat().st_size
    assert str(part).endswith("000000.tar/b.mp4")
    for window in ({}, {"start": 1.0, "end": 2.5}):
        ours, theirs = (read_frames(place, lambda n, _: range(n), **window) for place in (part, path))
        np.testing.assert_array_equal(ours.frames, theirs.frames)
        assert ours[1:] == theirs[1:]


@pytest.mark.parametrize("sampling", ["uniform", "segment", "dense"])
def test_a_reader_gives_the_same(clip, sampling):
    reader = FrameReader(4, 32, sampling, 1.0, training=True)
    ours, theirs = (reader(place, np.random.default_rng(3)) for place in clip)
    assert all(torch.equal(one, other) for one, other in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("suffix", ["avi", "mkv", "webm"])
def test_other_containers(tmp_path, suffix):
    """Check containers whose sizes and packets are read from the file."""
    codec = {"webm": {"codec": "libvpx"}}.get(suffix, {})
    path = write_video(tmp_path / f"clip.{suffix}", waves(9), fps=3, **codec)
    tar = tmp_path / "any.bin"
    tar.write_bytes(b"x" * 777 + path.read_bytes() + b"y" * 99)
    part = FilePart(tar, path.name, 777, path.stat().st_size)
    ours, theirs = (read_frames(place, lambda n, _: range(n)) for place in (part, path))
    np.testing.assert_array_equal(ours.frames, theirs.frames)


def test_a_broken_part_is_named(tmp_path):
    tar = tmp_path / "any.tar"
    tar.write_bytes(bytes(4096))
    for size in (0, 1000):
        with pytest.raises(VideoError, match=r"any.tar/k.mp4 is"):
            read_frames(FilePart(tar, "k.mp4", 512, size), lambda n, _: range(n))


def frame_parts(folder, frames, rate=2.0):
    write_shards(folder, [("k", {**jpegs(frames), "txt": b"a caption"})], [1])
    tar = folder / "000000.tar"
    return FrameParts(tar, "k", [FilePart(tar, *member) for member in member_table(tar)[0].frames], rate)


def test_jpeg_frames(tmp_path):
    frames = grey_ramp(10)
    read = read_frames(frame_parts(tmp_path / "s", frames), lambda n, fps: [0, n - 1, n - 1, round(fps)])
    assert (read.n_frames, read.fps) == (10, 2.0)
    expected = frames[[0, 9, 9, 2]].astype(int)
    assert abs(read.frames.astype(int) - expected).max() <= 4


def test_colours_and_rates_of_jpeg_frames(tmp_path):
    frames = np.zeros((6, 32, 32, 3), dtype=np.uint8)
    frames[..., 0] = 200  # red
    video, mask = FrameReader(4, 16, feature_framerate=1.0)(frame_parts(tmp_path / "s", frames))
    assert mask.tolist() == [True, True, True, False]  # 6 frames at 2 fps last 3 s
    assert (video[0].float().mean(dim=(1, 2)) - torch.tensor([200.0, 0, 0])).abs().max() < 4


def test_a_broken_jpeg_frame(tmp_path):
    write_shards(tmp_path / "s", [("k", {"000.jpg": b"no picture", "001.jpg": b"", "txt": b"a"})], [1])
    tar = tmp_path / "s" / "000000.tar"
    parts = [FilePart(tar, *member) for member in member_table(tar)[0].frames]
    for number in (0, 1):
        with pytest.raises(VideoError, match=rf"k.00{number}.jpg is not a picture"):
            read_frames(FrameParts(tar, "k", parts, 0.0), lambda n, _, number=number: [number])
