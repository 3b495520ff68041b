"""UCF101's official lists, lists of mmaction2 on its videos, and the maps beside classInd.txt."""

from functools import partial
from pathlib import Path

import pytest

from dataloaders.ucf101 import read_classes, read_split
from tests.dataloaders.folders import assert_one_sentence, touch_videos, write_lines

KEYS = ("ApplyEyeMakeup", "HandstandPushups", "YoYo")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Write lists with CRLF, as published, and four videos."""
    lists = tmp_path / "ucfTrainTestlist"
    lists.mkdir()
    (lists / "classInd.txt").write_bytes(b"1 ApplyEyeMakeup\r\n2 HandstandPushups\r\n3 YoYo\r\n")
    train = ["ApplyEyeMakeup/v_ApplyEyeMakeup_g08_c01.avi 1", "HandstandPushups/v_HandStandPushups_g09_c02.avi 2"]
    (lists / "trainlist02.txt").write_bytes("".join(f"{line}\r\n" for line in train).encode())
    (lists / "testlist02.txt").write_bytes(
        b"YoYo/v_YoYo_g01_c01.avi\r\nApplyEyeMakeup/v_ApplyEyeMakeup_g01_c03.avi\r\n"
    )
    touch_videos(tmp_path / "videos", "ApplyEyeMakeup/v_ApplyEyeMakeup_g08_c01.avi", "YoYo/v_YoYo_g01_c01.mp4")
    return tmp_path


def facts(samples) -> list[tuple[str, str, str]]:
    return [(sample.video_id, sample.label, sample.group) for sample in samples]


@pytest.mark.parametrize("below", ["", "ucfTrainTestlist"])
def test_official_lists(folder, below):
    read = partial(read_split, data_path=folder / below, features_path=folder / "videos", fold=2)
    train, test = read("train"), read("test")
    assert facts(train) == [
        ("v_ApplyEyeMakeup_g08_c01", "ApplyEyeMakeup", "ApplyEyeMakeup g08"),
        ("v_HandStandPushups_g09_c02", "HandstandPushups", "HandstandPushups g09"),
    ]
    assert facts(test) == [
        ("v_YoYo_g01_c01", "YoYo", "YoYo g01"),
        ("v_ApplyEyeMakeup_g01_c03", "ApplyEyeMakeup", "ApplyEyeMakeup g01"),
    ]
    assert [sample.path.suffix for sample in test] == [".mp4", ".avi"]
    assert test[0].path.is_file()
    classes = read_classes(data_path=folder / below)
    assert classes.keys == KEYS
    assert classes.names == ("apply eye makeup", "handstand pushups", "yo yo")
    assert classes.ids(train).tolist() == [0, 1]


def test_a_flat_list_is_read_by_the_names_of_its_files(folder):
    write_lines(folder / "few.txt", ["v_YoYo_g01_c01.avi 0", "v_HandStandPushups_g09_c02.avi 7"])
    samples = read_split("train", data_path=folder, features_path=folder / "videos", train_csv=folder / "few.txt")
    assert [sample.label for sample in samples] == ["YoYo", "HandstandPushups"]
    assert samples[0].path == folder / "videos/YoYo/v_YoYo_g01_c01.mp4"


@pytest.mark.parametrize("first", [0, 1])
def test_labels_must_agree_with_the_numbers_of_a_list(folder, first):
    write_lines(folder / "few.txt", [f"YoYo/v_YoYo_g01_c01.avi {2 + first}", f"ApplyEyeMakeup/v.avi {first}"])
    write_lines(folder / "labels.csv", ["id,name", "2,Yo Yo", "0,apply_eye_makeup", "1,Handstand Pushups"])
    flags = {"features_path": folder / "videos", "train_csv": folder / "few.txt", "labels_csv": folder / "labels.csv"}
    for data_path in (folder, Path()):
        labels = [sample.label for sample in read_split("train", data_path=data_path, **flags)]
        assert labels == (["YoYo", "ApplyEyeMakeup"] if data_path == folder else ["Yo Yo", "apply_eye_makeup"])
    write_lines(folder / "labels.csv", ["id,name", "0,Yo Yo", "2,apply_eye_makeup", "1,Handstand Pushups"])
    for data_path in (folder, Path()):
        assert_one_sentence(lambda: read_split("train", data_path=data_path, **flags), ValueError, "labels.csv")  # noqa: B023


def test_maps_beside_the_class_list(folder):
    write_lines(folder / "flip_map.csv", ["class,mirrored", "YoYo,ApplyEyeMakeup", "ApplyEyeMakeup,YoYo"])
    write_lines(folder / "ucfTrainTestlist/twins.csv", ["class,reversed", "YoYo,HandstandPushups"])
    write_lines(folder / "base_classes.txt", ["YoYo", "HandstandPushups"])
    classes = read_classes(data_path=folder)
    assert classes.mirrored == {"YoYo": "ApplyEyeMakeup", "ApplyEyeMakeup": "YoYo"}
    assert classes.reversed == {"YoYo": "HandstandPushups", "HandstandPushups": "YoYo"}
    assert classes.base == ("HandstandPushups", "YoYo")


@pytest.mark.parametrize(
    ("file", "lines", "said"),
    [
        ("flip_map.csv", ["class,mirrored", "YoYo,Other"], "'Other' is no class"),
        ("flip_map.csv", ["class,mirrored", "YoYo,ApplyEyeMakeup", "ApplyEyeMakeup,HandstandPushups"], "one partner"),
        ("flip_map.csv", ["a,b", "1,2"], "no columns"),
        ("base_classes.txt", ["YoYo", "Juggling"], "Juggling"),
        ("ucfTrainTestlist/classInd.txt", ["0 ApplyEyeMakeup"], "ids from 1"),
        ("ucfTrainTestlist/classInd.txt", ["1 YoYo", "2 Yo_Yo"], "differ only in case"),
        ("ucfTrainTestlist/classInd.txt", ["1 YoYo", "2 YoYo"], "twice"),
    ],
)
def test_wrong_files_beside_the_lists(folder, file, lines, said):
    write_lines(folder / file, lines)
    assert_one_sentence(lambda: read_classes(data_path=folder), ValueError, Path(file).name, said)


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        (["ApplyEyeMakeup/v.avi 0", "YoYo/v.avi 3"], "count from 1"),
        (["ApplyEyeMakeup/v.avi 2", "YoYo/v.avi 3"], "calls class 1 'HandstandPushups'"),
        (["Juggling/v.avi 1", "YoYo/v.avi 3"], "lies in no folder of a class"),
        (["ApplyEyeMakeup/v.avi 1", "YoYo/v.avi"], "not like the others"),
        (["ApplyEyeMakeup/v.avi 1", "ApplyEyeMakeup/v.avi 2"], "keep one of them"),
        ([], "lists no video"),
    ],
)
def test_wrong_lists(folder, lines, said):
    write_lines(folder / "ucfTrainTestlist/trainlist01.txt", lines)
    read = partial(read_split, "train", data_path=folder, features_path=folder / "videos")
    assert_one_sentence(read, ValueError, "trainlist01.txt", said)


def test_nothing_says_where_the_lists_are(folder):
    for read, said in [
        (partial(read_split, "test", features_path=folder), "--data_path"),
        (partial(read_classes, features_path=folder), "--labels_csv"),
        (partial(read_split, "val", features_path=folder, data_path=folder), "no split 'val'"),
    ]:
        assert_one_sentence(read, ValueError, said)
    missing = partial(read_split, "train", data_path=folder, features_path=folder / "videos", fold=3)
    assert_one_sentence(missing, FileNotFoundError, "trainlist03.txt")
