"""Your own videos in csv or jsonl files, with parts of files, splits and several captions."""

import functools
import json
from pathlib import Path

import pytest

from dataloaders.custom import read_split
from tests.dataloaders.folders import assert_one_sentence, touch_videos, write_lines

ROWS = [
    {"path": "a.mp4", "caption": "a dog, running", "start": 1, "end": 2.5, "split": "train"},
    {"path": "sub/b.webm", "caption": "a cat", "split": "test"},
    {"path": "a.mp4", "caption": "a second", "start": 1.0, "end": 2.5},
    {"path": "a.mp4", "caption": "the rest", "start": 2.5, "split": "train"},
    {"path": "a.mp4", "caption": "to select on", "split": "val"},
]


def as_csv(folder: Path) -> Path:
    path = folder / "list.csv"
    quoted = (",".join(f'"{row.get(name, "")}"' for name in ROWS[0]) for row in ROWS)
    write_lines(path, [",".join(ROWS[0]), *quoted])
    return path


def as_jsonl(folder: Path) -> Path:
    path = folder / "list.jsonl"
    write_lines(path, ["", *map(json.dumps, ROWS)])
    return path


@pytest.fixture
def read(tmp_path):
    return functools.partial(read_split, features_path=touch_videos(tmp_path / "videos", "a.mp4", "sub/b.webm"))


@pytest.mark.parametrize("write", [as_csv, as_jsonl])
def test_samples_of_one_file_with_splits(read, tmp_path, write):
    path, videos = write(tmp_path), tmp_path / "videos"
    found = [(s.video_id, s.path, s.captions, s.start, s.end) for s in read("train", train_csv=path, val_csv=path)]
    assert found == [
        ("a.mp4 [1 s, 2.5 s]", videos / "a.mp4", ("a dog, running", "a second"), 1, 2.5),
        ("a.mp4 [2.5 s, end]", videos / "a.mp4", ("the rest",), 2.5, None),
    ]
    found = [(s.video_id, s.path, s.captions, s.start, s.end) for s in read("test", train_csv=path, val_csv=path)]
    assert found == [
        ("sub/b.webm", videos / "sub/b.webm", ("a cat",), None, None),
        ("a.mp4 [1 s, 2.5 s]", videos / "a.mp4", ("a second",), 1, 2.5),
    ]
    found = [(s.video_id, s.path, s.captions, s.start, s.end) for s in read("val", train_csv=path, val_csv=path)]
    assert found == [("a.mp4", videos / "a.mp4", ("to select on",), None, None)]


def test_two_files_without_splits(read, tmp_path):
    write_lines(tmp_path / "train.csv", ["caption,path", "one,a.mp4", "two,a.mp4"])
    write_lines(tmp_path / "test.csv", ["caption,path", "three,sub/b.webm"])
    files = {"train_csv": tmp_path / "train.csv", "val_csv": tmp_path / "test.csv"}
    assert [sample.captions for sample in read("train", **files)] == [("one", "two")]
    assert [sample.captions for sample in read("test", **files)] == [("three",)]
    message = f"--val_csv {tmp_path / 'test.csv'} lists no video of the split 'val'"
    assert_one_sentence(lambda: read("val", **files), ValueError, message)


def test_re_encoded_files_are_found_under_their_old_names(read, tmp_path):
    path = tmp_path / "list.jsonl"
    write_lines(path, [json.dumps({"path": name, "caption": "x"}) for name in ("x.mpg", "sub/y.MOV", "sub/none.avi")])
    touch_videos(tmp_path / "videos", "x.mp4", "sub/y.mp4", "none.mp4")
    found = read("test", train_csv=path, val_csv=path)
    videos = tmp_path / "videos"
    assert [sample.path for sample in found] == [videos / "x.mp4", videos / "sub/y.mp4", videos / "sub/none.avi"]
    assert [sample.video_id for sample in found] == ["x.mpg", "sub/y.MOV", "sub/none.avi"]


def test_a_start_at_zero_is_the_same_video(read, tmp_path):
    path = tmp_path / "list.csv"
    write_lines(path, ["path,caption,start,end", "a.mp4,one,,", "a.mp4,two,0,", "a.mp4,three,0.0,2", "a.mp4,four,,2"])
    samples = read("test", train_csv=path, val_csv=path)
    assert [(sample.captions, sample.end) for sample in samples] == [(("one", "two"), None), (("three", "four"), 2)]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"caption": "x"}, "'path' is missing or empty"),
        ({"path": "a.mp4", "caption": " "}, "'caption' is missing or empty"),
        ({"path": "a.mp4", "caption": "x", "split": "Train"}, "'split' is 'Train', not one of train, val, test"),
        ({"path": "a.mp4", "caption": "x", "start": "1:20"}, "'start' is '1:20', not a number of seconds"),
        ({"path": "a.mp4", "caption": "x", "start": -1}, "'start' is -1, not a number"),
        ({"path": "a.mp4", "caption": "x", "end": "nan"}, "'end' is 'nan', not a number"),
        ({"path": "a.mp4", "caption": "x", "start": [1]}, "'start' is [1], not a number"),
        ({"path": "a.mp4", "caption": "x", "start": 3, "end": 3}, "'end' is 3, not after the start"),
        ({"path": "a.mp4", "caption": "x", "end": 0}, "'end' is 0, not after the start"),
        ({"path": "a.mp4", "caption": "x", "end": True}, "'end' is True, not a number"),
        ({"path": "a.mp4", "caption": "x", "end": 10**400}, "'end' is 1000"),
        ({"path": "a.mp4", "caption": ["a", "dog"]}, "'caption' is ['a', 'dog'], not a text"),
        ({"path": "a.mp4", "caption": "x", "split": 3}, "'split' is 3, not a text"),
        ({"path": "a.mp4", "caption": "x", "split": []}, "'split' is [], not a text"),
        ([], "not a JSON object"),
    ],
)
def test_a_line_of_another_kind(read, tmp_path, row, message):
    path = tmp_path / "list.jsonl"
    write_lines(path, [json.dumps(ROWS[1]), json.dumps(row)])
    assert_one_sentence(lambda: read("test", train_csv=path, val_csv=path), ValueError, f"{path}, line 2: {message}")


def test_broken_lists(read, tmp_path):
    path = tmp_path / "list.csv"
    read_it = functools.partial(read, "test", train_csv=path, val_csv=path)
    assert_one_sentence(read_it, FileNotFoundError, "--val_csv", "list.csv is not a file")
    write_lines(path, ["path,text", "a.mp4,x"])
    assert_one_sentence(read_it, ValueError, "no header with `path` and `caption` (its first line: path, text)")
    write_lines(path, [])
    assert_one_sentence(read_it, ValueError, "no header with `path` and `caption` (its first line: nothing)")
    write_lines(path, ["path,caption", "a.mp4,"])
    assert_one_sentence(read_it, ValueError, "line 2: 'caption' is missing")
    write_lines(path, ["path,caption", "a.mp4,a dog, running"])
    assert_one_sentence(read_it, ValueError, "line 2: more fields than columns")
    write_lines(path, ["path,caption,split", "a.mp4,x,train"])
    assert_one_sentence(read_it, ValueError, "lists no video of the split 'test'")
    write_lines(path, ['"path,caption', *["b"] * 300])
    assert_one_sentence(read_it, ValueError, "line 1: a quotation mark is not closed")
    write_lines(path, ["path,caption", 'a.mp4,"x', *["b.mp4,y"] * 300, 'c.mp4,"z"'])
    assert_one_sentence(read_it, ValueError, "line 2: a quotation mark is not closed")
    write_lines(path, ["path,caption,caption", "a.mp4,x,y"])
    assert_one_sentence(read_it, ValueError, "the column caption more than once")
    path = tmp_path / "list.jsonl"
    write_lines(path, ["{"])
    broken = functools.partial(read, "train", train_csv=path, val_csv=path)
    assert_one_sentence(broken, ValueError, "--train_csv", "line 1: not valid JSON")
    assert_one_sentence(lambda: read("all", train_csv=path, val_csv=path), ValueError, "no split 'all'")


@pytest.mark.parametrize("name", ["Start", "SPLIT", " end"])
def test_a_field_that_is_misspelt_is_not_left_out(read, tmp_path, name):
    csv_list, jsonl = tmp_path / "list.csv", tmp_path / "list.jsonl"
    write_lines(csv_list, [f"path,caption,{name}", "a.mp4,a dog,1"])
    with_it = json.dumps({"path": "a.mp4", "caption": "a dog", name: "1"})
    write_lines(jsonl, ['{"path": "a.mp4", "caption": "a cat"}', with_it])
    lists = [jsonl] if name != name.strip() else [csv_list, jsonl]  # spaces around a csv's columns are stripped
    for path in lists:
        wrong = functools.partial(read, "train", train_csv=path, val_csv=path)
        assert_one_sentence(wrong, ValueError, str(path), repr(name), repr(name.strip().lower()))


def test_fields_that_are_not_used_are_named(read, tmp_path, caplog):
    path = tmp_path / "list.csv"
    write_lines(path, ["path,caption,begin,", "a.mp4,a dog,1,"])
    with caplog.at_level("INFO", "stop"):
        assert len(read("train", train_csv=path, val_csv=path)) == 1
    assert [record.getMessage() for record in caplog.records] == [
        f"attention: --train_csv {path} has begin, which is not used; the fields are path, caption, start, end, split"
    ]
