"""Text, csv and json files read strictly: what is written comes back, and what would be altered or lost is refused."""

import csv
import io
import json
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dataloaders import annotations
from dataloaders.annotations import (
    as_id,
    columns_of,
    is_text,
    number,
    parse_json,
    read_csv,
    read_json,
    read_lines,
    read_text,
)
from tests.dataloaders.folders import assert_one_sentence, result_or_message


def test_a_huge_file_that_is_not_text_is_refused_at_its_first_chunk(tmp_path):
    path = tmp_path / "list.csv"
    with path.open("wb") as file:
        file.truncate(2**40)
    assert_one_sentence(
        lambda: read_text(path, "--val_csv"), ValueError, f"--val_csv {path} is not a text file in UTF-8"
    )


def test_texts_of_several_chunks(tmp_path, monkeypatch):
    monkeypatch.setattr(annotations, "TEXT_CHUNK", 3)
    (tmp_path / "list").write_bytes("\ufeffcaf\u00e9,\r\n\u4e00\u53ea\u732b\r\rend".encode())
    assert read_text(tmp_path / "list", "--val_csv") == "caf\u00e9,\n\u4e00\u53ea\u732b\n\nend"


def test_sentences_are_cut_at_line_ends_only(tmp_path):
    (tmp_path / "list").write_bytes("one\u2028two\r\nthree\x85\n\nthree\x85\n".encode())
    assert read_lines(tmp_path / "list", "--data_path") == ["one\u2028two", "three"]


def rows_of(text: str) -> list[tuple[int, dict[str, str]]]:
    return list(read_csv(text, "--list l.csv")[1])


# Everything but line breaks, which end a row in these files.
field = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\r\n\0"), max_size=12)


@settings(max_examples=100)
@given(st.lists(st.tuples(field, field), max_size=5), st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]))
def test_what_a_csv_writer_writes_comes_back(rows, quoting):
    text = io.StringIO(newline="")
    csv.writer(text, quoting=quoting).writerows([["path", "caption"], *rows])
    found = [(row["path"], row["caption"]) for _, row in rows_of(text.getvalue())]
    assert found == [(one.strip(), two.strip()) for one, two in rows]


@settings(max_examples=200)
@given(st.text(st.sampled_from('ab",; \n\t{'), max_size=60))
def test_any_text_gives_rows_of_all_columns_or_one_sentence(text):
    def columns_and_rows():
        header, rows = read_csv(text, "l.csv")
        return set(header), [row.keys() for _, row in rows]

    found, message = result_or_message(columns_and_rows)
    if message:
        assert re.fullmatch(r"l\.csv.{,290}\.", message)
    else:
        columns, keys = found
        assert all(names == columns for names in keys)


def test_blank_lines_and_space_around_fields():
    text = '\n path , caption \n\n  \na.mp4, "a dog, running" \n b.mp4 ,a 5" screen\n'
    assert rows_of(text) == [
        (5, {"path": "a.mp4", "caption": "a dog, running"}),
        (6, {"path": "b.mp4", "caption": 'a 5" screen'}),
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a,b\nx,hello, world\n", "line 2: more fields than columns (3 for 2); put quotation marks around"),
        ("a,b\nx,y,\n", "line 2: more fields than columns"),
        ("a,b\n\nx\n", "line 3: fewer fields than columns (1 for 2), so that b is empty"),
        ('a,b\nx,"y\nz,w\n"\n', "line 2: a quotation mark is not closed on this line"),
        ('a,b\nx,"y\nz,"w"\n', "line 2: a quotation mark is not closed on this line"),
        ('a,b\nx,"y" z\n', "line 2: text follows a closing quotation mark"),
        ('a,"b\n', "line 1: a quotation mark is not closed"),
        ("a,b,a\n1,2,3\n", "has the column a more than once"),
        ("a,\nx,hello\n", "line 2: a text stands in a column without a name"),
        ("a\n" + "x" * 200_000, "line 2: a field has more than 131,072 characters"),
        ('{"a": "' + "x" * 200_000 + '"}', "line 1: this is JSON and not csv"),
    ],
)
def test_what_csv_is_refused(text, message):
    assert_one_sentence(lambda: rows_of(text), ValueError, "--list l.csv", message)


def test_columns_without_a_name_may_be_empty():
    assert rows_of("a,,\nx,,\n") == [(2, {"a": "x", "": ""})]


@pytest.mark.parametrize(
    ("header", "shown"),
    [
        ([], ""),
        (["id", "url"], "id, url"),
        (["path;caption"], "path;caption; separate them with commas"),
        (["path\tcaption"], "path\\tcaption; separate them with commas"),
        (['{"path": "a"', '"b": 3}'], '{"path": "a", "b": 3}; it looks like JSON'),
    ],
)
def test_the_error_shows_the_columns_of_the_file(header, shown):
    assert columns_of(header) == shown


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
def test_what_json_is_refused(tmp_path, text, message):
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
    assert not is_text("\ud83d")  # half of a surrogate pair, as the escape "\ud83d" in a JSON file gives
    assert not is_text(3)
