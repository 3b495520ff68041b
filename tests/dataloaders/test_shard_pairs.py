"""Training items from shards: those of single files with the same clips, and what is broken is an item too."""

import json
import pickle

import numpy as np
import pytest
import torch

from dataloaders.datasets import TrainingPairs
from dataloaders.frames import FrameReader
from dataloaders.samples import Sample
from dataloaders.shard_index import member_table
from dataloaders.shard_pairs import BrokenSampleError, ShardPairs, packed_sample
from dataloaders.shard_store import LocalShards
from tests.dataloaders.folders import assert_one_sentence
from tests.small_shards import clips_of, write_shards


def tokenize(caption: str) -> torch.Tensor:
    return torch.tensor([[len(caption), *caption.encode()[:7].ljust(7)]])


READER = FrameReader(3, 16, "segment", training=True)
MEMBERS = {"mp4": b"no video", "json": b'{"captions": ["a"]}'}


@pytest.fixture(scope="module")
def samples(small_data):
    return clips_of(small_data)


def pairs_of(folder, samples, sizes):
    write_shards(folder, samples, sizes)
    return ShardPairs(LocalShards.of(folder, "--train_shards"), tokenize, READER, 5)


def test_items_are_those_of_files(small_data, samples, tmp_path):
    pairs = pairs_of(tmp_path / "s", samples, [4, 1, 5])
    captions = [tuple(json.loads(members["json"])["captions"]) for _, members in samples]
    paths = [small_data.videos / f"{key.removesuffix('_0')}.mp4" for key, _ in samples]
    listed = [Sample("", path, texts) for path, texts in zip(paths, captions, strict=True)]
    files = TrainingPairs(listed, tokenize, READER, False, 5)
    assert len(pairs) == len(files) == 10
    for key in [(0, 0), (0, 3), (0, 4), (3, 5), (1, 9)]:
        ours, theirs = pairs[key], files[key]
        assert (ours.pop("epoch"), ours.pop("problem")) == (key[0], "")
        assert ours.keys() == theirs.keys()
        for name, value in theirs.items():
            same = torch.equal(ours[name], value) if isinstance(value, torch.Tensor) else ours[name] == value
            assert same, name
    assert pairs.video_id(4) == samples[4][0]
    drawn = {tuple(pairs[epoch, 4]["token_ids"].tolist()) for epoch in range(8)}
    assert len(drawn) == 2  # both captions of the clip


def test_a_worker_of_another_start_method_gets_the_same(samples, tmp_path):
    pairs = pairs_of(tmp_path / "s", samples, [10])
    again = pickle.loads(pickle.dumps(pairs))
    assert torch.equal(again[0, 7]["video"], pairs[0, 7]["video"])


def test_a_broken_sample_is_a_blank_item(samples, tmp_path):
    broken = [("x", MEMBERS), ("y", {**samples[0][1], "json": b"{}"})]
    pairs = pairs_of(tmp_path / "s", [*broken, *samples[:2]], [3, 1])
    for index, part in ((0, "000000.tar/x.mp4"), (1, "000000.tar/y")):
        item = pairs[0, index]
        assert part in item["problem"]
        assert item["problem"].count("\n") == 0
        assert not item["video"].any()
        assert item["frame_mask"].all()
        assert torch.equal(item["token_ids"], tokenize("")[0])
        assert {name: np.shape(value) for name, value in item.items()} == {
            name: np.shape(value) for name, value in pairs[0, 2].items()
        }
    assert [pairs[0, index]["problem"] for index in (2, 3)] == ["", ""]


@pytest.mark.parametrize(
    ("members", "captions"),
    [
        ({"json": b'{"captions": ["a", "b"]}'}, ("a", "b")),
        ({"json": b'{"caption": "one"}'}, ("one",)),
        ({"json": b'\xef\xbb\xbf{"captions": ["a"]}', "txt": b"not this"}, ("a",)),
        ({"txt": b" alone \n"}, ("alone",)),
        ({"json": b'{"fps": 3}', "txt": b"beside"}, ("beside",)),
    ],
)
def test_captions_of_own_and_foreign_shards(tmp_path, members, captions):
    write_shards(tmp_path / "s", [("k", {"mp4": b"x", **members})], [1])
    tar = tmp_path / "s" / "000000.tar"
    sample = packed_sample(tar, member_table(tar)[0])
    assert (sample.captions, sample.video_id) == (captions, "k")


@pytest.mark.parametrize(
    ("members", "part"),
    [
        ({"json": b"{"}, "k.json is not JSON"),
        ({"json": b"[1]"}, "k.json is [1], not an object"),
        ({"json": b"{}"}, "k has the captions None"),
        ({"json": b'{"captions": []}'}, "k has the captions []"),
        ({"json": b'{"captions": ["a", " "]}'}, "k has the captions"),
        ({"json": b'{"captions": [3]}'}, "k has the captions [3]"),
        ({"txt": b" "}, "k has the captions ['']"),
        ({"json": b"\xff\xfe"}, "k.json is not JSON"),
    ],
)
def test_captions_that_cannot_be_read(tmp_path, members, part):
    write_shards(tmp_path / "s", [("k", {"mp4": b"x", **members})], [1])
    tar = tmp_path / "s" / "000000.tar"
    assert_one_sentence(lambda: packed_sample(tar, member_table(tar)[0]), BrokenSampleError, part)


def test_a_rate_of_frames_that_is_none(tmp_path):
    write_shards(tmp_path / "s", [("k", {"000.jpg": b"x", "json": b'{"captions": ["a"], "fps": "3"}'})], [1])
    tar = tmp_path / "s" / "000000.tar"
    assert_one_sentence(lambda: packed_sample(tar, member_table(tar)[0]), BrokenSampleError, "fps '3'")


def test_shards_that_are_missing_or_cut_off(samples, tmp_path):
    folder = tmp_path / "s"
    pairs = pairs_of(folder, samples, [4, 6])
    assert_one_sentence(
        lambda: LocalShards.of(tmp_path / "none", "--train_shards"), FileNotFoundError, "--train_shards"
    )
    content = (folder / "000001.tar").read_bytes()
    (folder / "000001.tar").write_bytes(content[:-512])
    for read in (lambda: LocalShards.of(folder, "--train_shards"), lambda: pairs[0, 5]):
        assert_one_sentence(read, ValueError, "000001.tar has", "shards.json says")
    (folder / "000001.tar").write_bytes(bytes(len(content)))
    assert_one_sentence(lambda: pairs[0, 5], ValueError, "000001.tar")
    (folder / "000001.tar").unlink()
    for read in (lambda: LocalShards.of(folder, "--train_shards"), lambda: pairs[0, 5]):
        assert_one_sentence(read, FileNotFoundError, "000001.tar is missing")
    assert pairs[0, 0]["problem"] == ""
