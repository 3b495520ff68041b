"""WebVid's csv, and lists of ids and captions."""

from functools import partial

import pytest

from dataloaders.webvid import read_split
from tests.dataloaders.folders import assert_one_sentence, summary, touch_videos, write_lines

HEADER = "videoid,contentUrl,duration,page_dir,name"


def test_webvid(tmp_path):
    url = "https://example.org/a.mp4,PT00H00M18S"
    lines = [
        HEADER,
        f'21,{url},000001_000050,"A dog, running"',
        f"7,{url},000051_000100,A cat",
        f"8,{url},000001_000050,B",
    ]
    write_lines(tmp_path / "list.csv", lines)
    videos = touch_videos(tmp_path / "v", "000001_000050/21.mp4", "7.mp4")
    samples = read_split("train", train_csv=tmp_path / "list.csv", features_path=videos)
    assert summary(samples) == [
        ("21", "21.mp4", ("A dog, running",)),
        ("7", "7.mp4", ("A cat",)),
        ("8", "8.mp4", ("B",)),
    ]
    assert samples[0].path == videos / "000001_000050/21.mp4"
    assert samples[1].path == videos / "7.mp4"
    assert not samples[2].path.exists()


def test_ids_and_captions(tmp_path):
    write_lines(tmp_path / "list.csv", ["video_id,caption", "b,one", "a,two", "b,three"])
    videos = touch_videos(tmp_path / "v", "x/a.webm", "b.mkv")
    samples = read_split("train", train_csv=tmp_path / "list.csv", features_path=videos)
    assert summary(samples) == [("b", "b.mkv", ("one", "three")), ("a", "a.webm", ("two",))]


@pytest.mark.parametrize(
    ("lines", "parts"),
    [
        (["path,caption", "a,b"], ["custom", "path"]),
        ([HEADER], ["no video"]),
        ([], ["nothing"]),
        (["video_id,caption", ",b"], ["line 2", "video_id"]),
        (["video_id,caption", "a,"], ["line 2", "caption"]),
        (["video_id,caption", "../a,b"], ["../a"]),
        ([HEADER, "1,u,d,p,a", "1,u,d,q,b"], ["line 3", "two folders"]),
    ],
)
def test_lists_that_are_refused(tmp_path, lines, parts):
    write_lines(tmp_path / "list.csv", lines)
    read = partial(read_split, "train", train_csv=tmp_path / "list.csv", features_path=tmp_path)
    assert_one_sentence(read, ValueError, "list.csv", *parts)


def test_only_training(tmp_path):
    assert_one_sentence(partial(read_split, "test", train_csv=tmp_path, features_path=tmp_path), ValueError, "test")
