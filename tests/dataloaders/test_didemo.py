"""DiDeMo's files: descriptions of a video joined, ids that are file names, the first 31 seconds."""

import functools

import pytest

from dataloaders.didemo import read_split
from tests.dataloaders.folders import assert_one_sentence, summary, touch_videos, write_json, write_lines


@pytest.fixture
def read(tmp_path):
    write_lines(tmp_path / "train_list.txt", ["1@N02_1_ab.mov", "2@N00_2_cd.avi", "3@N00_3_ef.mp4"])
    moments = [
        {"video": "2@N00_2_cd.avi", "description": "second", "times": [[0, 0], [1, 2]]},
        {"video": "1@N02_1_ab.mov", "description": "a cat. ", "times": [[5, 5]]},
        {"video": "2@N00_2_cd.avi", "description": "first", "times": [[0, 0]]},
        {"video": "3@N00_3_ef", "description": "a dog", "times": [[0, 0]]},
        {"video": "4.mov", "description": "not listed", "times": [[0, 0]]},
    ]
    write_json(tmp_path / "train_data.json", moments)
    videos = touch_videos(tmp_path / "videos", "1@N02_1_ab.mov", "2@N00_2_cd.avi.mp4", "3@N00_3_ef.mp4")
    return functools.partial(read_split, data_path=tmp_path, features_path=videos)


def test_samples(read):
    samples = read("train")
    assert summary(samples) == [
        ("1@N02_1_ab.mov", "1@N02_1_ab.mov", ("a cat.",)),
        ("2@N00_2_cd.avi", "2@N00_2_cd.avi.mp4", ("second first",)),
        ("3@N00_3_ef", "3@N00_3_ef.mp4", ("a dog",)),
    ]
    assert all((sample.start, sample.end) == (0, 31) for sample in samples)


def test_a_video_with_another_extension(read, tmp_path):
    (tmp_path / "videos" / "1@N02_1_ab.mov").rename(tmp_path / "videos" / "1@N02_1_ab.mp4")
    assert read("train")[0].path.name == "1@N02_1_ab.mp4"


@pytest.mark.parametrize(
    "content", [{"video": "a", "description": "b"}, [{"video": "a"}], [3], 3, [{"video": "a", "description": 3}]]
)
def test_json_of_another_kind(read, tmp_path, content):
    write_json(tmp_path / "train_data.json", content)
    assert_one_sentence(lambda: read("train"), ValueError, "--data_path", "train_data.json", "`description`")


def test_what_can_be_missing(read, tmp_path):
    (tmp_path / "videos" / "1@N02_1_ab.mov").unlink()
    assert not read("train")[0].path.exists()
    write_json(tmp_path / "train_data.json", [])
    assert_one_sentence(lambda: read("train"), ValueError, "no caption for 1@N02_1_ab.mov, the first of 3")
