"""The number of bytes that a file says it has: what tells a cut file from a complete one."""

from pathlib import Path

import pytest

from dataloaders.stated_size import is_cut, stated_size
from dataloaders.video_file import open_video
from tests.ffmpeg_files import X264, ffmpeg, moving, write
from tests.videos import cut, noise, write_video

MPEG4 = ("-c:v", "mpeg4", "-q:v", "2")
WHOLE = {"a.avi": MPEG4, "a.mkv": X264, "a.flv": ("-c:v", "flv1"), "a.asf": ("-c:v", "wmv2"), "a.mov": X264}


def size_of(path: Path) -> tuple[int, bool]:
    with open_video(path) as (_, stream):
        return stated_size(path, stream), is_cut(path, stream)


@pytest.mark.parametrize("name", WHOLE)
def test_a_complete_file_has_what_it_states(tmp_path, name):
    path = write(tmp_path / name, noise(20), *WHOLE[name])
    stated, lacks_some = size_of(path)
    # An index of QuickTime or MP4 says where the last frame ends; the index itself may follow.
    assert stated == path.stat().st_size or (name == "a.mov" and 0.9 < stated / path.stat().st_size < 1)
    assert not lacks_some


@pytest.mark.parametrize("name", ["a.avi", "a.mkv", "a.flv", "a.asf", "a.mp4"])
def test_a_cut_file_has_less(tmp_path, name):
    if name == "a.mp4":
        whole = write_video(tmp_path / name, noise(20))  # with its index in front
    else:
        whole = write(tmp_path / name, noise(20), *WHOLE[name])
    stated, _ = size_of(whole)
    assert size_of(cut(whole, 0.6)) == (stated, True)


@pytest.mark.parametrize("name", ["a.ts", "a.mpg", "a.ogv"])
def test_some_formats_state_nothing(tmp_path, name):
    codec = {"a.ts": X264, "a.mpg": ("-c:v", "mpeg2video", "-r", "25"), "a.ogv": ("-c:v", "libtheora")}[name]
    assert size_of(write(tmp_path / name, moving(), *codec)) == (0, False)


def test_a_stream_without_a_known_end_states_nothing(tmp_path):
    source = write(tmp_path / "a.mkv", moving(), *X264)
    path = tmp_path / "piped.mkv"
    path.write_bytes(ffmpeg("-i", source, "-c", "copy", "-f", "matroska", "pipe:1"))
    assert size_of(path) == (0, False)
