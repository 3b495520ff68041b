"""Videos found by their ids, whatever their extension and folder."""

import os

import pytest

from dataloaders import files
from dataloaders.files import find_videos, read_lines, read_text
from tests.dataloaders.folders import assert_one_sentence, touch_videos


@pytest.mark.parametrize(
    ("video_id", "files", "expected"),
    [
        ("a", ["a.webm", "a.mp4", "a.avi"], "a.mp4"),
        ("a", ["sub/a.mp4", "a.avi"], "sub/a.mp4"),
        ("a", ["sub/a.mp4", "a.mp4"], "a.mp4"),
        ("a", ["y/a.mkv", "x/deep/a.mkv"], "x/deep/a.mkv"),
        ("a", ["A.mp4", "a.txt", "a.MKV"], "a.MKV"),
        ("a_0.5-0.9", ["a_0.5-0.9.avi", "a_0.5-0.mp4"], "a_0.5-0.9.avi"),
        ("a.mov", ["a.mov", "a.mov.mp4", "a.mp4"], "a.mov"),
        ("a.mov", ["a.mov.mp4", "a.mp4"], "a.mov.mp4"),
        ("a.MOV", ["b.mov", "a.mp4"], "a.mp4"),
    ],
)
def test_the_file_of_an_id(tmp_path, video_id, files, expected):
    assert find_videos([video_id], touch_videos(tmp_path, *files)) == [tmp_path / expected]


def test_a_video_that_is_not_there_gets_the_path_where_it_should_be(tmp_path):
    assert find_videos(["a", "b.mov"], tmp_path) == [tmp_path / "a.mp4", tmp_path / "b.mov"]
    with pytest.raises(FileNotFoundError, match=r"none is not a directory"):
        find_videos(["a"], tmp_path / "none")


def test_the_folder_is_looked_through_once(tmp_path, monkeypatch):
    ids = [f"video{n}" for n in range(50)]
    touch_videos(tmp_path, *(f"{name}.mp4" for name in ids))
    listed = []
    scandir = os.scandir
    monkeypatch.setattr(os, "scandir", lambda path: listed.append(path) or scandir(path))
    assert len(find_videos(ids, tmp_path)) == 50
    assert len(listed) == 1


def test_a_huge_file_that_is_no_text_is_refused_by_its_beginning(tmp_path):
    path = tmp_path / "list.csv"
    with path.open("wb") as file:
        file.truncate(2**40)
    assert_one_sentence(
        lambda: read_text(path, "--val_csv"), ValueError, f"--val_csv {path} is not a text file in UTF-8"
    )


def test_texts_of_several_chunks(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "TEXT_CHUNK", 3)
    (tmp_path / "list").write_bytes("\ufeffcaf\u00e9,\r\n\u4e00\u53ea\u732b\r\rend".encode())
    assert read_text(tmp_path / "list", "--val_csv") == "caf\u00e9,\n\u4e00\u53ea\u732b\n\nend"


def test_sentences_are_cut_at_line_ends_alone(tmp_path):
    (tmp_path / "list").write_bytes("one\u2028two\r\nthree\x85\n\nthree\x85\n".encode())
    assert read_lines(tmp_path / "list", "--data_path") == ["one\u2028two", "three"]
