"""Test videos that share a part with training videos."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataloaders.annotations import read_csv
from dataloaders.msrvtt import EXPECTED
from dataloaders.samples import Sample, shared_videos


def sample(path: str, start: float | None = None, end: float | None = None) -> Sample:
    return Sample(f"{path} {start} {end}", Path(path), ("a caption",), start, end)


@pytest.mark.parametrize(
    ("training", "test", "shared"),
    [
        (sample("a.mp4"), sample("b.mp4"), False),
        (sample("a.mp4"), sample("a.mp4"), True),
        (sample("videos/./a.mp4"), sample("videos/sub/../a.mp4"), True),
        (sample("a.mp4", 0, 5), sample("a.mp4", 5, 9), False),
        (sample("a.mp4", 0, 5), sample("a.mp4", 4.9, 9), True),
        (sample("a.mp4", None, 5), sample("a.mp4", 5, None), False),
        (sample("a.mp4", 3, None), sample("a.mp4", None, 4), True),
        (sample("a.mp4"), sample("a.mp4", 3, 4), True),
    ],
)
def test_one_video_each(training, test, shared):
    assert bool(shared_videos([training], [test])) is shared
    assert bool(shared_videos([test], [training])) is shared


times = st.none() | st.integers(0, 9)
windows = st.tuples(st.sampled_from("ab"), times, times).filter(lambda w: w[2] is None or (w[1] or 0) < w[2])


@given(st.lists(windows, max_size=8), st.lists(windows, max_size=8))
def test_shared_videos_follow_the_definition(training, test):
    def meet(one, other):
        seconds = [
            set(range(start or 0, 20 if end is None else end)) for _, start, end in (one, other)
        ]  # in whole seconds, because all times are whole
        return one[0] == other[0] and bool(seconds[0] & seconds[1])

    expected = [sample(*window) for window in test if any(meet(window, other) for other in training)]
    assert shared_videos([sample(*window) for window in training], [sample(*window) for window in test]) == expected


def test_published_lists_share_no_video(reference):
    videos = {}
    for name in EXPECTED:
        text = (reference / "data" / "msrvtt" / name).read_text()
        videos[name] = [sample(row["video_id"]) for _, row in read_csv(text, name)[1]]
    test = videos.pop("MSRVTT_JSFUSION_test.csv")
    for name, training in videos.items():
        assert len(training) == EXPECTED[name][0]
        assert shared_videos(training, test) == []


def test_a_link_to_a_file_is_that_file(tmp_path):
    (tmp_path / "a.mp4").touch()
    (tmp_path / "link.mp4").symlink_to("a.mp4")
    assert shared_videos([sample(str(tmp_path / "a.mp4"))], [sample(str(tmp_path / "link.mp4"))])
