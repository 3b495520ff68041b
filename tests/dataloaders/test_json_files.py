"""JSON without lost entries."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dataloaders.files import read_json
from dataloaders.json_files import as_id, is_text, number, parse_json
from tests.dataloaders.folders import assert_one_sentence

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)


@settings(max_examples=50)
@given(values)
def test_what_json_writes_comes_back(value):
    assert parse_json(json.dumps(value)) == value


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"a": 1, "b": [{"c": 2, "c": 3}]}', "two different entries 'c' in one object"),
        ('{"v": ["one"], "v": ["two"]}', "two different entries 'v'"),
        ("[" * 100_000 + "]" * 100_000, "nested too deeply"),
        ("[" + "9" * 5000 + "]", "not valid JSON"),
        ("{", "not valid JSON (Expecting property name"),
        ("", "not valid JSON"),
    ],
)
def test_what_is_refused(tmp_path, text, message):
    path = tmp_path / "a.json"
    path.write_text(text)
    assert_one_sentence(lambda: read_json(path, "--data_path"), ValueError, f"--data_path {path} is not valid", message)


def test_the_same_entry_twice_loses_nothing():
    assert parse_json('{"a": [1], "b": 2, "a": [1]}') == {"a": [1], "b": 2}


@pytest.mark.parametrize(
    ("value", "expected"),
    [(3, 3.0), (2.5, 2.5), (True, None), ("3", None), (None, None), ([3], None), (10**400, None), (-1, -1.0)],
)
def test_numbers(value, expected):
    assert number(value) == expected


def test_numbers_that_are_not_finite():
    assert number(float("nan")) is number(float("inf")) is None


@pytest.mark.parametrize(
    ("value", "expected"),
    [(" a ", "a"), (7, "7"), (" ", None), (True, None), (None, None), (["a"], None), (1.0, None), ("a\0", None)],
)
def test_ids(value, expected):
    assert as_id(value) == expected


def test_texts():
    assert is_text("caf\u00e9 \U0001f600")
    assert not is_text("\ud83d")  # half of a surrogate pair, as "\ud83d" in a JSON file gives
    assert not is_text(3)
