"""The contract that every data set keeps."""

import inspect
import json
import pickle
from dataclasses import fields
from pathlib import Path

import pytest

import dataloaders
from dataloaders import ACTION_READERS, DATASETS, NEEDED_FLAGS, READERS, SPLITS
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
        path.stem for path in Path(dataloaders.__file__).parent.glob("*.py") if "def read_split(" in path.read_text()
    }
    assert DATASETS.keys() == SPLITS.keys() == NEEDED_FLAGS.keys()
    registered = {reader.__name__.split(".")[-1] for reader in [*READERS.values(), *ACTION_READERS.values()]}
    assert modules == registered | {"kinetics"}  # which reads both kinetics400 and kinetics600


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
