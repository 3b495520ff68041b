"""Clips joined into one file."""

import av
import numpy as np
import pytest

from benchmarks.joined_clips import join_clips
from tests.videos import grey_ramp, write_video


def decoded(path) -> list[np.ndarray]:
    with av.open(str(path)) as container:
        return [frame.to_ndarray() for frame in container.decode(video=0)]


@pytest.fixture
def clips(tmp_path):
    lengths = (4, 6, 5)
    ramps = [grey_ramp(40)[10 * number : 10 * number + length] for number, length in enumerate(lengths)]
    return [write_video(tmp_path / f"{number}.mp4", ramp, fps=5) for number, ramp in enumerate(ramps)]


def test_each_clip_keeps_its_pixels(clips, tmp_path):
    moments = join_clips(clips, tmp_path / "long.mp4")
    assert moments.tolist() == [[0, 0.8], [0.8, 2], [2, 3]]
    expected = [frame for clip in clips for frame in decoded(clip)]
    found = decoded(tmp_path / "long.mp4")
    assert len(found) == 15
    assert all((one == other).all() for one, other in zip(found, expected, strict=True))


def test_the_picture_stands_still_before_each_clip(clips, tmp_path):
    moments = join_clips(clips, tmp_path / "long.mp4", longest_pause=2.0, seed=1)
    found, shown = decoded(tmp_path / "long.mp4"), 0
    stills = [decoded(clips[0])[0], *(decoded(clip)[-1] for clip in clips[:-1])]
    pauses = []
    for clip, still, (start, end) in zip(clips, stills, moments, strict=True):
        first, last = round(5 * start), round(5 * end)
        pauses.append(first - shown)
        assert all((frame == still).all() for frame in found[shown:first])
        assert all((one == other).all() for one, other in zip(found[first:last], decoded(clip), strict=True))
        shown = last
    assert shown == len(found)
    assert len(set(pauses)) > 1
    assert 0 <= min(pauses) < max(pauses) <= 10
    again = join_clips(clips, tmp_path / "again.mp4", longest_pause=2.0, seed=1)
    assert (again == moments).all()


@pytest.mark.parametrize("other", [{"fps": 3}, {"pixel_format": "yuv444p"}, {"width": 64}])
def test_clips_of_another_kind_are_refused(clips, tmp_path, other):
    width = other.pop("width", 48)
    odd = write_video(tmp_path / "odd.mp4", grey_ramp(4, width=width), **{"fps": 5, **other})
    with pytest.raises(ValueError, match=r"odd\.mp4: its frame rate or its size"):
        join_clips([*clips, odd], tmp_path / "long.mp4")
