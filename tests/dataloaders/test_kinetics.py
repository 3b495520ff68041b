"""Kinetics: official csv files, and lists of mmaction2."""

from functools import partial
from pathlib import Path

import pytest

from dataloaders import kinetics400, kinetics600
from tests.dataloaders.folders import assert_one_sentence, touch_videos, write_lines

HEADER = "label,youtube_id,time_start,time_end,split,is_cc"
KEYS = ("abseiling", "massaging person's head", "petting animal (not cat)")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_lines(
        tmp_path / "train.csv",
        [HEADER, "abseiling,-0abc_d-E,7,17,train,0", '"petting animal (not cat)",b,0,10,train,0'],
    )
    write_lines(tmp_path / "validate.csv", [HEADER, "massaging person's head,c,1.0,11.0,validate,0"])
    touch_videos(tmp_path / "videos", "abseiling/-0abc_d-E_000007_000017.mp4", "b_000000_000010.mkv")
    return tmp_path


@pytest.mark.parametrize("reader", [kinetics400, kinetics600])
def test_official_files(folder, reader, caplog):
    flags = {"data_path": folder, "features_path": folder / "videos"}
    with caplog.at_level("INFO", logger="stop"):
        train = reader.read_split("train", **flags)
    assert f"the lists name 3 classes, {reader.__name__.split('.')[1]} has" in caplog.text
    (test,) = reader.read_split("test", **flags)
    assert [(s.video_id, s.label) for s in train] == [
        ("-0abc_d-E_000007_000017", KEYS[0]),
        ("b_000000_000010", KEYS[2]),
    ]
    assert [s.path.is_file() for s in train] == [True, True]
    assert (test.label, test.path) == (KEYS[1], folder / "videos/c_000001_000011.mp4")
    classes = reader.read_classes(**flags)
    assert (classes.keys, classes.names) == (KEYS, KEYS)
    only_test = reader.read_classes(features_path=folder / "videos", val_csv=folder / "validate.csv")
    assert only_test.keys == KEYS[1:2]


def test_lists_of_folders_and_of_numbers(folder):
    read = partial(kinetics400.read_split, "test", features_path=folder / "videos", val_csv=folder / "list.txt")
    write_lines(
        folder / "list.txt",
        ["abseiling/-0abc_d-E_000007_000017.mp4 0", "petting animal (not cat)/b_000000_000010.mp4 2"],
    )
    write_lines(folder / "labels.csv", ["id,name", *(f"{n},{key}" for n, key in enumerate(KEYS))])
    assert [s.label for s in read()] == [KEYS[0], KEYS[2]]
    samples = read(labels_csv=folder / "labels.csv")
    assert [(s.label, s.path.is_file()) for s in samples] == [(KEYS[0], True), (KEYS[2], True)]
    write_lines(folder / "swapped.csv", ["id,name", *(f"{2 - n},{key}" for n, key in enumerate(KEYS))])
    assert_one_sentence(
        lambda: read(labels_csv=folder / "swapped.csv"), ValueError, "swapped.csv calls class 0", KEYS[2]
    )
    # Folders that are no classes: numbers count, and need names.
    write_lines(folder / "list.txt", ["train/-0abc_d-E_000007_000017.mp4 0", "train/b_000000_000010.mp4 2"])
    assert_one_sentence(read, ValueError, "list.txt", "train also has 0", "--labels_csv")
    assert [s.label for s in read(labels_csv=folder / "labels.csv")] == [KEYS[0], KEYS[2]]
    write_lines(folder / "list.txt", ["-0abc_d-E_000007_000017.mp4 0", "b_000000_000010.mp4 2"])
    assert_one_sentence(read, ValueError, "outside of a class's folder", "--labels_csv")
    assert [s.path.is_file() for s in read(labels_csv=folder / "labels.csv")] == [True, True]


def test_official_files_with_some_of_the_classes(folder):
    flags = {"data_path": folder, "features_path": folder / "videos", "labels_csv": folder / "labels.csv"}
    write_lines(folder / "labels.csv", ["id,name", "1,Abseiling", "0,Petting_animal_not_cat"])
    assert kinetics600.read_classes(**flags).keys == (KEYS[2], KEYS[0])
    assert [s.label for s in kinetics600.read_split("train", **flags)] == [KEYS[0], KEYS[2]]
    assert_one_sentence(
        lambda: kinetics600.read_split("test", **flags), ValueError, "validate.csv", KEYS[1], "--classes"
    )
    write_lines(folder / "labels.csv", ["id,name", "0,juggling"])
    assert_one_sentence(lambda: kinetics600.read_classes(**flags), ValueError, "labels.csv names juggling")


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ([HEADER, "abseiling,a,7,,train,0"], "line 2"),
        ([HEADER, ",a,7,17,train,0"], "line 2"),
        ([HEADER, "abseiling,a,x,17,train,0"], "whole numbers"),
        ([HEADER, "abseiling,a,7,17,train,0", "archery,a,7,17,train,0"], "line 3: a_000007_000017.mp4 has the label"),
        ([HEADER], "lists no video"),
        (["label,youtube_id", "abseiling,a"], "no column time_start"),
        ([HEADER, "abseiling,a,7,17,train,0", "Abseiling,b,7,17,train,0"], "differ only in case"),
    ],
)
def test_wrong_files(folder, lines, said):
    write_lines(folder / "train.csv", lines)
    read = partial(kinetics400.read_split, "train", data_path=folder, features_path=folder / "videos")
    assert_one_sentence(read, ValueError, "train.csv", said)


def test_nothing_names_a_list(folder):
    read = partial(kinetics400.read_split, "test", features_path=folder / "videos")
    assert_one_sentence(read, ValueError, "--data_path")
    assert_one_sentence(partial(read, data_path=folder / "videos"), FileNotFoundError, "train.csv")


def test_rows_that_are_repeated_count_once(folder, caplog):
    write_lines(folder / "train.csv", [HEADER, *2 * ["abseiling,a,7,17,train,0"]])
    with caplog.at_level("INFO", logger="stop"):
        samples = kinetics400.read_split("train", data_path=folder, features_path=folder / "videos")
    assert [sample.video_id for sample in samples] == ["a_000007_000017"]
    assert "repeats 1 of its videos" in caplog.text
