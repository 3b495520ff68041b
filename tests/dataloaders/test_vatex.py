"""VATEX's files: lists of ids and a json with several captions for each id."""

import functools

import pytest

from dataloaders.vatex import read_split
from tests.dataloaders.folders import assert_one_sentence, summary, touch_videos, write_json, write_lines


@pytest.fixture
def read(tmp_path):
    write_lines(tmp_path / "train_list.txt", ["b_000001_000011", "a_000000_000010"])
    write_lines(tmp_path / "test_list.txt", ["c_000002_000012"])
    captions = {"a_000000_000010": ["one", " two "], "b_000001_000011": ["three"], "c_000002_000012": ["four", "five"]}
    write_json(tmp_path / "ref_captions.json", captions)
    videos = touch_videos(tmp_path / "videos", "a_000000_000010.webm", "b_000001_000011.mp4", "c_000002_000012.mkv")
    return functools.partial(read_split, data_path=tmp_path, features_path=videos)


def test_samples(read):
    assert summary(read("train")) == [
        ("b_000001_000011", "b_000001_000011.mp4", ("three",)),
        ("a_000000_000010", "a_000000_000010.webm", ("one", "two")),
    ]
    (sample,) = read("test")
    assert sample.captions == ("four", "five")
    assert sample.start is sample.end is None


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([], "is not a JSON object"),
        ({"c_000002_000012": "four"}, "c_000002_000012 has no list of captions"),
        ({"c_000002_000012": [4]}, "c_000002_000012 has no list of captions"),
        ({"c_000002_000012": []}, "has no caption for c_000002_000012"),
        ({"c_000002_000012": {"enCap": ["four"]}}, "no list of captions but {'enCap': ['four']}"),
        ({}, "has no caption for c_000002_000012"),
    ],
)
def test_json_of_another_kind(read, tmp_path, content, message):
    write_json(tmp_path / "ref_captions.json", content)
    assert_one_sentence(lambda: read("test"), ValueError, "--data_path", "ref_captions.json", message)


def test_what_can_be_missing(read, tmp_path):
    assert_one_sentence(lambda: read("all"), ValueError, "VATEX has no split 'all'")
    assert_one_sentence(lambda: read("val"), FileNotFoundError, "val_list.txt is not a file")
