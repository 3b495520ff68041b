"""Quotations in messages are one line, in both layers that have them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

import dataloaders.quoting
import modules.quoting
from dataloaders.quoting import quoted, shorten

BOTH = pytest.mark.parametrize("layer", [dataloaders.quoting, modules.quoting])


@BOTH
def test_short_texts_stay(layer):
    assert layer.shorten("a caf\u00e9, 5\" and 'two'") == "a caf\u00e9, 5\" and 'two'"


@BOTH
def test_long_texts_say_how_long_they_are(layer):
    assert layer.shorten("x" * 5_000_000) == "x" * 80 + "... (5,000,000 characters)"


@BOTH
@given(text=st.text())
def test_one_line_that_can_be_printed(layer, text):
    shown = layer.shorten(text, 20)
    assert shown.isprintable()
    assert len(shown) <= 20 + len("... (5,000,000 characters)")


@BOTH
def test_some_names(layer):
    assert layer.some(["a", "b"], 2) == "a, b"
    assert layer.some([f"n{i}" for i in range(1005)], 3) == "n0, n1, n2 and 1,002 more"
    assert len(layer.some(["x" * 10**6] * 10**4, 5)) < 5 * 240


def test_quoted_values():
    assert quoted("Train") == "'Train'"
    assert quoted([1]) == "[1]"
    assert quoted({"b": ["a", "c"]}) == "{'b': ['a', 'c']}"


@pytest.mark.parametrize("value", ["x" * 10**6, {"x" * 10**6: 1}, [["y" * 1000] * 1000] * 1000, 10**4000, b"z" * 10**6])
def test_quoted_values_are_short(value):
    assert len(quoted(value)) < 120


def test_deeply_nested_values_are_short():
    value: list = []
    for _ in range(100_000):
        value = [value, value]
    assert quoted(value) == "[[[[...], [...]], [[...], [...]]], [[[...], [...]], [[...], [...]]]]"


def test_a_message_keeps_its_line():
    assert shorten("one\ntwo\0") == "one\\ntwo\\x00"
