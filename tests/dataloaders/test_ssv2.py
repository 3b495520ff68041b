"""Something-Something V2: official json files and lists of mmaction2."""

from functools import partial
from pathlib import Path

import pytest

from dataloaders.ssv2 import read_classes, read_split
from tests.dataloaders.folders import assert_one_sentence, touch_videos, write_json, write_lines

KEYS = ("Closing something", "Opening something", "Pulling something from left to right",
        "Putting something, something and something on the table", "Pushing something from right to left")  # fmt: skip


def entry(video_id: object, template: str) -> dict:
    return {"id": video_id, "label": "closing a red box", "template": template, "placeholders": ["a red box"]}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_json(tmp_path / "something-something-v2-labels.json", {key: str(n) for n, key in enumerate(KEYS)})
    train = [
        entry("7", "Putting [something], [something] and [something] on the table"),
        entry("31", "Closing [something]"),
    ]
    write_json(tmp_path / "something-something-v2-train.json", train)
    write_json(tmp_path / "something-something-v2-validation.json", [entry("9", "Opening [something]")])
    touch_videos(tmp_path / "videos", "7.webm", "part/31.mp4")
    return tmp_path


def test_templates_without_brackets_and_never_the_sentence(folder):
    read = partial(read_split, data_path=folder, features_path=folder / "videos")
    train, (test,) = read("train"), read("test")
    assert [(sample.video_id, sample.label) for sample in train] == [("7", KEYS[3]), ("31", KEYS[0])]
    assert [sample.path for sample in train] == [folder / "videos/7.webm", folder / "videos/part/31.mp4"]
    assert (test.label, test.path) == (KEYS[1], folder / "videos/9.webm")
    classes = read_classes(data_path=folder)
    assert (classes.keys, classes.names) == (KEYS, KEYS)
    assert classes.mirrored == {}  # of each pair only one is here
    assert classes.reversed == {KEYS[0]: KEYS[1], KEYS[1]: KEYS[0], KEYS[2]: KEYS[4], KEYS[4]: KEYS[2]}


def test_lists_with_frames_labels_and_ids(folder):
    for lines in (["7 134 3", "31 20 0"], ["7.webm 3", "31.webm 0"], ["7 3", "31 0"], ["7.webm,3", "31.webm,0"]):
        write_lines(folder / "list.txt", lines)
        flags = {"features_path": folder / "videos", "train_csv": folder / "list.txt"}
        samples = read_split("train", data_path=folder, **flags)
        assert [(s.video_id, s.label, s.path.is_file()) for s in samples] == [
            ("7", KEYS[3], True),
            ("31", KEYS[0], True),
        ]
        labels = folder / "something-something-v2-labels.json"
        assert read_split("train", labels_csv=labels, **flags) == samples


def test_a_part_of_the_classes(folder):
    write_lines(
        folder / "half.csv",
        ["id,name", "1,Closing something", '0,"Putting something, something and something on the table"'],
    )
    write_lines(folder / "list.txt", ["7.webm 0", "31.webm 1"])
    flags = {"data_path": folder, "features_path": folder / "videos", "labels_csv": folder / "half.csv"}
    assert read_classes(**flags).keys == (KEYS[3], KEYS[0])
    assert [s.label for s in read_split("train", train_csv=folder / "list.txt", **flags)] == [KEYS[3], KEYS[0]]
    assert_one_sentence(lambda: read_split("test", **flags), ValueError, "validation.json", "half.csv", "Opening")


def test_wrong_files(folder):
    read = partial(read_split, "train", data_path=folder, features_path=folder / "videos")
    path = folder / "something-something-v2-train.json"
    for content, said in [
        ([entry("7", "Juggling [something]")], "Juggling [something]"),
        ([entry("7", "Closing [something]"), entry("7", "Opening [something]")], "two templates"),
        ([{"id": "7", "label": "closing a red box"}], "`template`"),
        ({}, "not a list of objects"),
        ([], "lists no video"),
    ]:
        write_json(path, content)
        assert_one_sentence(read, ValueError, path.name, said)
    assert_one_sentence(partial(read, fold=2), ValueError, "has one split")
    write_json(folder / "something-something-v2-labels.json", {"Closing something": 0, "Opening something": 2})
    assert_one_sentence(lambda: read_classes(data_path=folder), ValueError, "labels.json", "from 0 to 1")
    assert_one_sentence(lambda: read_classes(), ValueError, "--data_path", "--labels_csv")
    assert_one_sentence(lambda: read_classes(val_csv=path), ValueError, "--labels_csv with something-something-v2-la")
