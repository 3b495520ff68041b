"""One's own labelled videos: lists, and folders of classes."""

import json
from functools import partial
from pathlib import Path

import pytest

from dataloaders.augmentation import Augmentation
from dataloaders.custom_actions import read_classes, read_split
from tests.dataloaders.folders import assert_one_sentence, touch_videos, write_lines


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    rows = [
        "path,label,start,end,split",
        "a.mp4,kick,,,train",
        "b.mp4,hop,1,2.5,train",
        "b.mp4,kick,2.5,4,test",
        "c.mp4,roll,,,val",
    ]
    write_lines(tmp_path / "own.csv", rows)
    touch_videos(tmp_path / "videos", "a.mp4", "b.mp4", "c.mp4")
    for split in ("train", "test"):
        touch_videos(
            tmp_path / "folders" / split, "Hop Up/a.mp4", f"roll_#1/{split}.webm", "roll_#1/notes.txt", ".git/x.mp4"
        )
    return tmp_path


def facts(samples) -> list[tuple]:
    return [(sample.video_id, sample.label, sample.start, sample.end) for sample in samples]


def test_one_list_for_all_splits(folder):
    flags = {"features_path": folder / "videos", "train_csv": folder / "own.csv", "val_csv": folder / "own.csv"}
    assert facts(read_split("train", **flags)) == [
        ("a.mp4", "kick", None, None),
        ("b.mp4 [1 s, 2.5 s]", "hop", 1.0, 2.5),
    ]
    assert facts(read_split("test", **flags)) == [("b.mp4 [2.5 s, 4 s]", "kick", 2.5, 4.0)]
    assert facts(read_split("val", **flags)) == [("c.mp4", "roll", None, None)]
    assert read_classes(**flags).keys == ("hop", "kick", "roll")
    write_lines(folder / "labels.csv", ["id,name", "1,kick", "0,roll", "2,hop"])
    flags["labels_csv"] = folder / "labels.csv"
    assert read_classes(**flags).keys == ("roll", "kick", "hop")
    write_lines(folder / "labels.csv", ["id,name", "1,kick", "0,roll"])
    assert_one_sentence(
        lambda: read_split("train", **flags), ValueError, "own.csv has the labels hop", "labels.csv lacks"
    )


def test_jsonl_and_numbers_as_labels(folder):
    rows = [{"path": "a.mp4", "label": "1"}, {"path": "b.mp4", "label": "0", "start": 1}]
    write_lines(folder / "own.jsonl", map(json.dumps, rows))
    write_lines(folder / "labels.csv", ["id,name", "1,kick", "0,roll"])
    flags = {"features_path": folder / "videos", "train_csv": folder / "own.jsonl"}
    assert [sample.label for sample in read_split("train", **flags)] == ["1", "0"]
    assert [sample.label for sample in read_split("train", labels_csv=folder / "labels.csv", **flags)] == [
        "kick",
        "roll",
    ]
    write_lines(folder / "own.jsonl", [json.dumps({"path": "a.mp4", "label": "2"})])
    assert_one_sentence(
        lambda: read_split("train", labels_csv=folder / "labels.csv", **flags), ValueError, "the labels 2", "lacks"
    )


def test_folders_of_classes(folder):
    root = folder / "folders"
    train = read_split("train", features_path=root)
    assert facts(train) == [("Hop Up/a.mp4", "Hop Up", None, None), ("roll_#1/train.webm", "roll_#1", None, None)]
    assert [sample.path for sample in train] == [root / "train/Hop Up/a.mp4", root / "train/roll_#1/train.webm"]
    test = read_split("test", features_path=folder / "videos", val_csv=root / "test")
    assert [sample.path for sample in test] == [root / "test/Hop Up/a.mp4", root / "test/roll_#1/test.webm"]
    for flags in ({"features_path": root}, {"features_path": folder / "videos", "val_csv": root / "test"}):
        classes = read_classes(**flags)
        assert (classes.keys, classes.names) == (("Hop Up", "roll_#1"), ("Hop Up", "roll #1"))
    assert_one_sentence(partial(read_split, "val", features_path=root), FileNotFoundError, "folders/val")
    wrong = partial(read_split, "val", features_path=root, val_csv=root / "test")
    assert_one_sentence(wrong, ValueError, "a folder of test videos")
    (root / "train" / "empty").mkdir()
    assert_one_sentence(partial(read_split, "train", features_path=root), ValueError, "empty holds no video")
    flat = partial(read_split, "train", features_path=root, train_csv=folder / "videos")
    assert_one_sentence(flat, ValueError, "no folder of a class")
    assert_one_sentence(
        partial(read_classes, features_path=folder / "videos"), ValueError, "--train_csv", "--features_path"
    )


def test_maps_in_the_folder_of_data(folder):
    flags = {"features_path": folder / "videos", "train_csv": folder / "own.csv"}
    assert read_classes(data_path=folder, **flags) == read_classes(**flags)
    write_lines(folder / "flip_map.csv", ["class,mirrored", "kick,roll"])
    write_lines(folder / "twins.csv", ["class,reversed", "hop,kick"])
    write_lines(folder / "base_classes.txt", ["roll", "kick"])
    classes = read_classes(data_path=folder, **flags)
    assert classes.mirrored == {"kick": "roll", "roll": "kick"}
    assert classes.reversed == {"hop": "kick", "kick": "hop"}
    assert classes.base == ("kick", "roll")
    with pytest.raises(ValueError, match="--flip plain would mislabel clips"):
        Augmentation(flip="plain").label_after_flip(classes)
    none = partial(read_classes, data_path=folder / "none", **flags)
    assert_one_sentence(none, FileNotFoundError, "--data_path", "none", "flip_map.csv")


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        (["path,label", "a.mp4,"], "'label' is missing"),
        (["path,label", ",kick"], "'path' is missing"),
        (["path,caption", "a.mp4,kick"], "`path` and `label`"),
        (["path,label,Start", "a.mp4,kick,3"], "'start'"),
        (["path,label,start,end", "a.mp4,kick,3,2"], "not after the start"),
        (["path,label,split", "a.mp4,kick,training"], "not one of"),
        (["path,label", "a.mp4,kick", "a.mp4,hop"], "the labels kick, hop"),
        (["path,label", "a.mp4,kick", "b.mp4,Kick"], "differ only in case"),
        (["path,label"], "lists no video"),
    ],
)
def test_wrong_lists(folder, lines, said):
    write_lines(folder / "own.csv", lines)
    read = partial(read_split, "train", features_path=folder / "videos", train_csv=folder / "own.csv")
    assert_one_sentence(read, ValueError, "own.csv", said)
