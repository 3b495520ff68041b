"""Csv read strictly: what is written comes back, and what would be altered is refused."""

import csv
import io
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dataloaders.csv_lists import columns_of, read_csv
from tests.dataloaders.folders import assert_one_sentence, result_or_message


def rows_of(text: str) -> list[tuple[int, dict[str, str]]]:
    return list(read_csv(text, "--list l.csv")[1])


# Everything but line breaks, which text files have at the end of a row alone here.
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
def test_what_is_refused(text, message):
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
def test_what_there_is_instead_of_the_columns(header, shown):
    assert columns_of(header) == shown
