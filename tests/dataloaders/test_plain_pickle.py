"""Pickles of text alone: no code is run, and a small file takes little time and memory."""

import pickle
import pickletools
import struct
from collections import OrderedDict, defaultdict

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dataloaders.msvd import read_captions
from dataloaders.plain_pickle import INSTRUCTIONS, load_plain
from tests.dataloaders.folders import result_or_message

text = st.text(max_size=5)
content = st.recursive(
    text | st.none(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(text, inner, max_size=3) | st.tuples(inner, inner),
    max_leaves=8,
)


@settings(max_examples=100)
@given(content, st.integers(0, pickle.HIGHEST_PROTOCOL))
def test_what_pickle_writes_comes_back(value, protocol):
    assert load_plain(pickle.dumps(value, protocol)) == value


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_other_dictionaries_become_plain_ones(protocol):
    ordered, default = OrderedDict(a=["b"]), defaultdict(list, c=["d"])
    for value in (ordered, default):
        found = load_plain(pickle.dumps(value, protocol))
        assert type(found) is dict
        assert found == value


def test_lists_that_refer_to_each_other():
    shared = ["word"]
    found = load_plain(pickle.dumps({"a": [shared, shared]}))
    assert found["a"][0] is found["a"][1]


def hash_bomb() -> bytes:
    """Return a pickle of {t: None} with t = ((..., ...), (..., ...)) 60 levels deep, whose hash takes 2**60 steps."""
    return b"\x80\x02})q\x00" + b"".join(b"h\x00h\x00\x86q\x00" for _ in range(60)) + b"Ns."


def test_the_hash_bomb_is_a_pickle_that_asks_for_nothing():
    assert {op.name for op, _, _ in pickletools.genops(hash_bomb())} <= set(INSTRUCTIONS)


@pytest.mark.parametrize(
    "hostile",
    [
        hash_bomb(),
        hash_bomb().replace(b"}", b"(").replace(b"Ns.", b"Nd."),  # the same by DICT
        b"\x80\x02c__builtin__\nset\n(" + hash_bomb()[3:-3] + b"ltR.",
        b"\x80\x02ccollections\nOrderedDict\n(((NN(NNlltR.",
        b"\x80\x02c__builtin__\nlist\n(c__builtin__\nlist\ntR.",
        b"\x80\x04\x8d" + struct.pack("<Q", 2**62) + b"a.",  # a text of 4 EB
        b"\x80\x02cos\nsystem\n(S'true'\ntR.",
        b"\x80\x02c__builtin__\ndict\n)\x81.",  # NEWOBJ
        b"(i__builtin__\ndict\n.",  # INST
        b"}}b.",  # BUILD
        b"\x80\x02\x82\x01.",  # EXT1
        b"Pname\n.",  # PERSID
        b"I" + b"9" * 100_000 + b"\n.",
        b"L" + b"9" * 100_000 + b"L\n.",
        b"]}s.",
        b"(",
        b"s",
        b".",
        b"\x80",
        b"\x80\xff.",
    ],
)
def test_what_is_refused(hostile):
    with pytest.raises(Exception):  # noqa: B017, PT011 (of many kinds)
        load_plain(hostile)


def test_a_number_takes_no_memory_before_something_of_that_size_comes():
    assert load_plain(b"]r" + struct.pack("<I", 2**32 - 1) + b".") == []  # a place in the memo
    assert load_plain(b"\x80\x04\x95" + struct.pack("<Q", 2**62) + b"].") == []  # a frame


def test_a_key_that_comes_twice():
    with pytest.raises(pickle.UnpicklingError, match="it has 'a' twice"):
        load_plain(b"\x80\x04}(\x8c\x01aN\x8c\x01a]u.")


VALID = pickle.dumps({"video1": [["a", "dog"], ["a", "cat"]], "video2": [["it", "rains"]]}, 2)


@settings(max_examples=300)
@given(st.lists(st.tuples(st.integers(0, len(VALID) - 1), st.binary(max_size=3)), min_size=1, max_size=4))
def test_damaged_pickles_give_captions_or_one_sentence(tmp_path_factory, changes):
    damaged = bytearray(VALID)
    for place, replacement in changes:
        damaged[place : place + len(replacement)] = replacement
    path = tmp_path_factory.getbasetemp() / "damaged.pkl"
    path.write_bytes(damaged)
    found, message = result_or_message(lambda: read_captions(path))
    assert "\n" not in message
    assert len(message) - len(str(path)) < 500
    assert message or all(isinstance(text, str) for texts in found.values() for text in texts)
