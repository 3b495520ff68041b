"""MSVD's files: pickles of Python 2 and 3, several captions a video; no code in a pickle is ever run."""

import functools
import os
import pickle
from collections import defaultdict

import pytest

from dataloaders.msvd import read_captions, read_split
from tests.dataloaders.folders import assert_one_sentence, summary, touch_videos, write_lines

CAPTIONS = {
    "-4wsuPCjDBc_5_15": [["a", "squirrel", "eats"], ["an", "animal", "chews"]],
    "ap_2_9": [["un", "caf\u00e9"]],
    "zz_0_3": [["nobody", "listed", "this"]],
}


@pytest.fixture
def read(tmp_path):
    write_lines(tmp_path / "train_list.txt", ["ap_2_9", "", "-4wsuPCjDBc_5_15 "])
    write_lines(tmp_path / "test_list.txt", ["-4wsuPCjDBc_5_15"])
    (tmp_path / "raw-captions.pkl").write_bytes(pickle.dumps(CAPTIONS))
    videos = touch_videos(tmp_path / "videos", "-4wsuPCjDBc_5_15.avi", "more/ap_2_9.MP4")
    return functools.partial(read_split, data_path=tmp_path, features_path=videos)


def test_samples(read):
    assert summary(read("train")) == [
        ("ap_2_9", "ap_2_9.MP4", ("un caf\u00e9",)),
        ("-4wsuPCjDBc_5_15", "-4wsuPCjDBc_5_15.avi", ("a squirrel eats", "an animal chews")),
    ]
    assert [sample.video_id for sample in read("test")] == ["-4wsuPCjDBc_5_15"]


def test_another_number_of_videos_is_noted(read, caplog):
    caplog.set_level("INFO", "stop")
    read("test")
    assert "test_list.txt gives 1 videos, the published split has 670" in caplog.text


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("container", [dict, functools.partial(defaultdict, list)])
def test_pickles_of_every_protocol(tmp_path, protocol, container):
    path = tmp_path / "raw-captions.pkl"
    path.write_bytes(pickle.dumps(container(CAPTIONS), protocol))
    assert read_captions(path)["ap_2_9"] == ["un caf\u00e9"]


def test_a_pickle_of_python_2(tmp_path):
    # {'vid': [['a', 'dog']]} as Python 2.7 writes it, protocols 0 and 2
    for content in (
        b"(dp0\nS'vid'\np1\n(lp2\n(lp3\nS'a'\np4\naS'dog'\np5\naas.",
        b"\x80\x02}q\x00U\x03vidq\x01]q\x02]q\x03(U\x01aq\x04U\x03dogq\x05eas.",
    ):
        (tmp_path / "old.pkl").write_bytes(content)
        assert read_captions(tmp_path / "old.pkl") == {"vid": ["a dog"]}


class Harm:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


def test_a_pickle_runs_nothing(tmp_path):
    path, made = tmp_path / "raw-captions.pkl", tmp_path / "made"
    path.write_bytes(pickle.dumps({"vid": Harm(str(made))}))
    assert_one_sentence(lambda: read_captions(path), ValueError, str(path), "it asks for", "mkdir")
    assert not made.exists()


@pytest.mark.parametrize("content", [b"", b"no pickle", pickle.dumps([1]), pickle.dumps({"a": 3}), pickle.dumps(4)])
def test_another_file_than_the_pickle(tmp_path, content):
    path = tmp_path / "raw-captions.pkl"
    path.write_bytes(content)
    assert_one_sentence(lambda: read_captions(path), ValueError, "--data_path", str(path), "not a pickle of captions")


@pytest.mark.parametrize(
    ("layout", "shown"),
    [
        ("a dog runs", "vid has 'a dog runs'"),
        (["a dog runs", "a cat"], "vid has the caption 'a dog runs'"),
        ({"caption": "a dog runs"}, "vid has {'caption': 'a dog runs'}"),
        ([{"caption": "a dog runs"}], "vid has the caption {'caption': 'a dog runs'}"),
        ([[["a"], ["dog"]]], "['a'] is not a word"),
        ([["a", None]], "None is not a word"),
        ([["a", 3]], "instruction 'K'"),
        (None, "vid has None"),
    ],
)
def test_captions_of_another_layout(tmp_path, layout, shown):
    path = tmp_path / "raw-captions.pkl"
    path.write_bytes(pickle.dumps({"vid": layout}))
    wanted = "write {'VIDEO_ID': [['a', 'dog', 'runs'], "
    assert_one_sentence(lambda: read_captions(path), ValueError, str(path), "not a pickle of captions", shown, wanted)


def test_tuples_of_words(tmp_path):
    path = tmp_path / "raw-captions.pkl"
    path.write_bytes(pickle.dumps({"vid": (("a", "dog"),)}))
    assert read_captions(path) == {"vid": ["a dog"]}


def test_words_of_python_2_are_utf_8(tmp_path):
    path = tmp_path / "raw-captions.pkl"
    path.write_bytes(b"(dp0\nS'vid'\np1\n(lp2\n(lp3\nS'caf\\xc3\\xa9'\np4\naas.")
    assert read_captions(path) == {"vid": ["caf\u00e9"]}


def nested(levels: int, width: int) -> list:
    """Return nested lists that share one object on every level: small in a pickle, width**levels when written out."""
    content: list = ["word"]
    for _ in range(levels):
        content = [content] * width
    return content


@pytest.mark.parametrize("levels", [3, 40])
def test_lists_that_grow_when_they_are_written_out(tmp_path, levels):
    path = tmp_path / "raw-captions.pkl"
    path.write_bytes(pickle.dumps({"vid": nested(levels, 10_000 if levels == 3 else 2)}))
    assert_one_sentence(lambda: read_captions(path), ValueError, "is not a word")


def test_captions_that_grow_when_they_are_written_out(tmp_path):
    path = tmp_path / "raw-captions.pkl"
    path.write_bytes(pickle.dumps({"vid": [["word " * 2000] * 2000] * 2000}))
    assert path.stat().st_size < 30_000
    assert_one_sentence(lambda: read_captions(path), ValueError, "more than 67,108,864 characters")


def test_a_file_that_is_too_large(tmp_path):
    path = tmp_path / "raw-captions.pkl"
    with path.open("wb") as file:
        file.truncate(65 * 2**20)
    assert_one_sentence(lambda: read_captions(path), ValueError, "more than 67,108,864 bytes")


def test_a_file_that_has_changed_is_read_again(read, tmp_path):
    assert read("test")[0].captions == ("a squirrel eats", "an animal chews")
    (tmp_path / "raw-captions.pkl").write_bytes(pickle.dumps({"-4wsuPCjDBc_5_15": [["another", "file"]]}))
    assert read("test")[0].captions == ("another file",)


def test_what_can_be_missing(read, tmp_path):
    assert_one_sentence(lambda: read("all"), ValueError, "no split 'all': pass train or val or test")
    assert_one_sentence(lambda: read("val"), FileNotFoundError, "val_list.txt", "--data_path")
    write_lines(tmp_path / "val_list.txt", ["other"])
    assert_one_sentence(lambda: read("val"), ValueError, "raw-captions.pkl has no caption for other", "val_list.txt")
    write_lines(tmp_path / "val_list.txt", [" "])
    assert_one_sentence(lambda: read("val"), ValueError, "lists no video")
    (tmp_path / "raw-captions.pkl").unlink()
    assert_one_sentence(lambda: read("test"), FileNotFoundError, "raw-captions.pkl")
