"""ActivityNet's files: sentences joined, videos without captions or without an entry left out."""

import functools

import pytest

from dataloaders.activitynet import read_split
from dataloaders.preparation import missing_files
from tests.dataloaders.folders import assert_one_sentence, summary, touch_videos, write_json


@pytest.fixture
def read(tmp_path):
    write_json(tmp_path / "train_ids.json", ["v_b", "v_a", "v_uncaptioned"])
    write_json(tmp_path / "val_ids.json", ["v_c"])
    entry = {"timestamps": [[0, 1], [1, 2]], "duration": 82.73}
    write_json(
        tmp_path / "train.json",
        {"v_a": entry | {"sentences": [" One.", "Two. "]}, "v_b": entry | {"sentences": ["B."]}},
    )
    write_json(tmp_path / "val_1.json", {"v_c": entry | {"sentences": ["C."], "duration": 30}, "v_d": {}})
    videos = touch_videos(tmp_path / "videos", "v_a.mp4", "v_b.mkv", "v_c.webm")
    return functools.partial(read_split, data_path=tmp_path, features_path=videos)


def test_samples(read):
    samples = read("train")
    assert summary(samples) == [("v_b", "v_b.mkv", ("B.",)), ("v_a", "v_a.mp4", ("One. Two.",))]
    assert all((sample.start, sample.end) == (0, 83) for sample in samples)
    (sample,) = read("test")
    assert (sample.video_id, sample.end) == ("v_c", 30)


def test_videos_that_are_left_out_are_counted(read, tmp_path, caplog):
    caplog.set_level("INFO", "stop")
    write_json(tmp_path / "video_path.json", {"v_a": "v_a.mp4"})
    assert len(read("train")) == 1
    assert "train_ids.json lists 1 videos without an entry in train.json, which are left out" in caplog.text
    assert "train_ids.json lists 1 videos without an entry in video_path.json, which are left out" in caplog.text


@pytest.mark.parametrize("key", ["v_a", "a"])
def test_a_map_of_files_says_which_and_where(read, tmp_path, key):
    write_json(tmp_path / "video_path.json", {key: "sub/other.mp4"})
    touch_videos(tmp_path / "videos", "sub/other.mp4")
    assert summary(read("train")) == [("v_a", "other.mp4", ("One. Two.",))]
    assert_one_sentence(lambda: read("test"), ValueError, "video_path.json has no entry", "val_ids.json")


def test_the_map_says_avi_and_the_file_is_an_mp4(read, tmp_path):
    write_json(tmp_path / "video_path.json", {"v_a": "sub/other.avi", "v_b": "b.avi"})
    touch_videos(tmp_path / "videos", "sub/other.mp4", "other.avi")
    b, a = read("train")
    assert a.path == tmp_path / "videos" / "sub" / "other.mp4"
    assert b.path == tmp_path / "videos" / "b.avi"
    assert missing_files([b, a]) == {
        0: f"{b.path} is missing, also under any other video extension ({tmp_path / 'video_path.json'} lists it): "
        "download it, or correct --features_path."
    }


def test_files_without_the_prefix_of_the_ids(read, tmp_path):
    (tmp_path / "videos" / "v_a.mp4").rename(tmp_path / "videos" / "a.mp4")
    assert [sample.path.name for sample in read("train")] == ["v_b.mkv", "a.mp4"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("val_ids.json", {}, "not a list of ids"),
        ("val_ids.json", [], "no caption for any video of val_ids.json"),
        ("val_ids.json", [["v_c"]], "not a list of ids"),
        ("val_1.json", [], "not a JSON object"),
        ("val_1.json", {"v_c": {"duration": 3}}, "v_c has no `duration` or no list of `sentences`"),
        ("val_1.json", {"v_c": {"sentences": ["a"], "duration": "3"}}, "v_c has no `duration`"),
        ("val_1.json", {"v_c": {"sentences": ["a"], "duration": float("inf")}}, "v_c has no `duration`"),
        ("val_1.json", {"v_c": {"sentences": ["a"], "duration": True}}, "v_c has no `duration`"),
        ("val_1.json", {"v_c": {"sentences": ["a"], "duration": 0}}, "v_c has no `duration`"),
        ("val_1.json", {"v_c": {"sentences": ["a"], "duration": 10**400}}, "v_c has no `duration`"),
        ("val_1.json", {"v_c": {"sentences": "a dog runs", "duration": 3}}, "no list of `sentences` but"),
        ("val_1.json", {"v_c": "a dog runs"}, "no list of `sentences` but 'a dog runs'"),
        ("video_path.json", {"v_c": ["v_c.mp4"]}, "v_c has ['v_c.mp4'] instead of a file name"),
        ("val_1.json", {"v_c": {"sentences": [" "], "duration": 3}}, "v_c has only empty sentences"),
    ],
)
def test_json_of_another_kind(read, tmp_path, name, content, message):
    write_json(tmp_path / name, content)
    assert_one_sentence(lambda: read("test"), ValueError, "--data_path", name, message)


def test_what_can_be_missing(read, tmp_path):
    (tmp_path / "val_1.json").unlink()
    assert_one_sentence(lambda: read("test"), FileNotFoundError, "val_1.json")
