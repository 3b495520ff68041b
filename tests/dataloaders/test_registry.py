"""The contract that every data set keeps."""

import inspect
import json
import pickle
import re
from dataclasses import fields
from pathlib import Path

import pytest

import dataloaders
from dataloaders import (
    ACTION_DATASETS,
    ACTION_NEEDED_FLAGS,
    ACTION_READERS,
    ACTION_SPLITS,
    DATASETS,
    NEEDED_FLAGS,
    READERS,
    SPLITS,
)
from dataloaders.samples import Sample
from engine.config import DataConfig
from tests.dataloaders.folders import assert_one_sentence, touch_videos, write_json, write_lines

WITH_VALIDATION = {"msrvtt_full", "msvd", "vatex", "didemo", "lsmdc", "custom"}
# Splits without a published number of videos that we could check.
WITHOUT_A_NUMBER = {("custom", "train"), ("custom", "val"), ("custom", "test"), ("lsmdc", "train"), ("lsmdc", "val")}


@pytest.fixture
def flags(tmp_path: Path) -> dict[str, Path]:
    """Write the files of every data set, each split with one video of its name; returns the flags."""
    splits = ("train", "val", "test")
    for split in splits:
        write_lines(tmp_path / f"{split}_list.txt", [split])
        write_json(tmp_path / f"{split}_data.json", [{"video": split, "description": "a dog runs"}])
    lines = (f"{split}\t0\t1\t0\t1\ta dog runs" for split in splits)
    for name, line in zip(
        ("LSMDC16_annos_training.csv", "LSMDC16_annos_val.csv", "LSMDC16_challenge_1000_publictect.csv"),
        lines,
        strict=True,
    ):
        write_lines(tmp_path / name, [line])
    write_json(tmp_path / "ref_captions.json", {split: ["a dog runs"] for split in splits})
    captions = {split: [["a", "dog", "runs"]] for split in splits}
    (tmp_path / "raw-captions.pkl").write_bytes(pickle.dumps(captions, protocol=2))
    for ids, entries, split in (("train_ids", "train", "train"), ("val_ids", "val_1", "test")):
        write_json(tmp_path / f"{ids}.json", [split])
        write_json(tmp_path / f"{entries}.json", {split: {"duration": 3.5, "sentences": ["a dog runs"]}})
    named = {"train": "train", "val": "validate", "test": "test"}
    data = {
        "videos": [{"video_id": split, "split": named[split]} for split in splits],
        "sentences": [{"video_id": split, "caption": "a dog runs"} for split in splits],
    }
    write_json(tmp_path / "MSRVTT_data.json", data)
    write_lines(tmp_path / "MSRVTT_train.csv", ["video_id", "train"])
    write_lines(tmp_path / "MSRVTT_test.csv", ["video_id,sentence", "test,a dog runs"])
    rows = ({"path": f"{split}.mp4", "caption": "a dog runs", "split": split} for split in splits)
    write_lines(tmp_path / "own.jsonl", map(json.dumps, rows))
    return {
        "data_path": tmp_path,
        "features_path": touch_videos(tmp_path / "videos", *(f"{split}.mp4" for split in splits)),
        "train_csv": tmp_path / "MSRVTT_train.csv",
        "val_csv": tmp_path / "MSRVTT_test.csv",
    }


def read(name: str, split: str, flags: dict[str, Path]) -> list[Sample]:
    if name.startswith("msrvtt"):
        flags = flags | {"data_path": flags["data_path"] / "MSRVTT_data.json"}
    if name == "custom":
        flags = flags | dict.fromkeys(("train_csv", "val_csv"), flags["data_path"] / "own.jsonl")
    return DATASETS[name](split, **flags)


def test_every_reader_is_registered():
    modules = {
        path.stem
        for path in Path(dataloaders.__file__).parent.glob("*.py")
        if re.search(r"^(def read_split\(|read_split = )", path.read_text(), re.MULTILINE)
    }
    assert DATASETS.keys() == SPLITS.keys() == NEEDED_FLAGS.keys()
    registered = {reader.__name__.split(".")[-1] for reader in [*READERS.values(), *ACTION_READERS.values()]}
    # kinetics reads both kinetics400 and kinetics600; webvid has lists for preprocess/make_shards.py alone
    assert modules == registered | {"kinetics", "webvid"}


@pytest.mark.parametrize("name", DATASETS)
def test_a_data_set_needs_flags_that_exist(name):
    of_all_splits, of_training = NEEDED_FLAGS[name]
    assert {*of_all_splits, *of_training} <= {item.name for item in fields(DataConfig)}
    assert "features_path" in of_all_splits


@pytest.mark.parametrize("name", DATASETS)
def test_a_data_set_names_its_splits_and_their_published_sizes(name):
    splits = SPLITS[name]
    assert splits in (("train", "test"), ("train", "val", "test"))
    assert ("val" in splits) == (name in WITH_VALIDATION)
    if name == "msrvtt":  # by list, since there are two for training
        assert len(READERS[name].EXPECTED) == 3
    else:
        unknown = {split for split in splits if (name, split) in WITHOUT_A_NUMBER}
        assert READERS[name].EXPECTED.keys() == {*splits} - unknown


@pytest.mark.parametrize("name", DATASETS)
def test_the_head_of_a_reader_says_which_files_it_reads(name):
    head = READERS[name].__doc__
    of_all_splits, of_training = NEEDED_FLAGS[name]
    if name != "msrvtt":  # its files have published names
        assert all(f"--{flag}" in head for flag in (*of_all_splits, *of_training))
    assert any(suffix in head for suffix in (".json", ".csv", ".txt", "csv"))
    assert READERS[name].read_split.__doc__.startswith("Return the samples of ")
    parameters = inspect.signature(READERS[name].read_split).parameters
    assert {*of_all_splits, *of_training} <= parameters.keys()


@pytest.mark.parametrize("name", DATASETS)
@pytest.mark.parametrize("split", ["train", "val", "test", "all"])
def test_a_data_set_reads_its_splits_and_refuses_others(name, split, flags):
    if split in SPLITS[name]:
        (sample,) = read(name, split, flags)
        assert sample.path == flags["features_path"] / f"{split}.mp4"
        assert sample.captions == ("a dog runs",)
    else:
        choices = " or ".join(SPLITS[name])
        assert_one_sentence(lambda: read(name, split, flags), ValueError, f"has no split {split!r}: pass {choices}.")


# ---- action recognition ----

FOLDS = {"hmdb51": {1, 2, 3}, "ucf101": {1, 2, 3}}  # the others have one split


def test_registers_of_action_recognition():
    assert ACTION_READERS.keys() == ACTION_DATASETS.keys() == ACTION_SPLITS.keys() == ACTION_NEEDED_FLAGS.keys()
    assert [*ACTION_READERS] == ["hmdb51", "ucf101", "ssv2", "kinetics400", "kinetics600", "custom"]


@pytest.mark.parametrize("name", ACTION_READERS)
def test_what_a_reader_of_labels_states(name):
    reader = ACTION_READERS[name]
    assert ACTION_SPLITS[name] == (("train", "val", "test") if name == "custom" else ("train", "test"))
    assert reader.EXPECTED.keys() <= {*ACTION_SPLITS[name]}
    assert all(set(by_fold) == FOLDS.get(name, {1}) for by_fold in reader.EXPECTED.values())
    assert all(template.count("{}") == 1 for template in reader.TEMPLATES)
    assert ACTION_NEEDED_FLAGS[name] == (("features_path",), ())
    for function, own in ((reader.read_split, {"fold"}), (reader.read_classes, set())):
        parameters = inspect.signature(function).parameters
        passed = {"data_path", "features_path", "train_csv", "val_csv", "labels_csv", *own}
        assert parameters.keys() >= {"train_csv", "val_csv", "labels_csv", *own}
        takes_others = any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters.values())
        assert passed <= parameters.keys() or takes_others
    for flag in ("--train_csv", "--val_csv", "--features_path"):
        assert flag in reader.__doc__


@pytest.mark.parametrize("unset", [None, Path("")])
@pytest.mark.parametrize("name", ACTION_READERS)
def test_a_list_of_folders_is_enough(name, unset, tmp_path):
    """The settings hold "" for a flag that was not passed, which is the path "."; check_videos passes None."""
    lines = ["path,label", "kick/a.mp4,kick", "hop/b.mp4,hop"] if name == "custom" else ["kick/a.mp4 1", "hop/b.mp4 0"]
    write_lines(tmp_path / "list.csv", lines)
    videos = touch_videos(tmp_path / "videos", "kick/a.mp4", "hop/b.mp4")
    flags = {"data_path": unset, "features_path": videos, "train_csv": unset, "val_csv": tmp_path / "list.csv"}
    flags["labels_csv"] = unset
    reader = ACTION_READERS[name]
    samples, classes = reader.read_split("test", **flags, fold=1), reader.read_classes(**flags)
    assert [(s.label, s.path.is_file(), s.captions) for s in samples] == [("kick", True, ()), ("hop", True, ())]
    assert classes.keys == ("hop", "kick")
    assert classes.ids(samples).tolist() == [1, 0]
    with pytest.raises((ValueError, OSError), match=r"--train_csv|--data_path"):
        reader.read_split("train", **flags, fold=1)
    assert_one_sentence(lambda: reader.read_split("all", **flags, fold=1), ValueError, "has no split 'all'")
