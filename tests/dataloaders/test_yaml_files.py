"""YAML: every value stays the text that is written, and what a lenient reader would lose is refused."""

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from dataloaders.yaml_files import parse_yaml, read_yaml
from tests.dataloaders.folders import assert_one_sentence, result_or_message


def test_values_stay_texts():
    text = "on: [yes, 1, 0o7, 2001-01-01, 'a: b', <x, y, z>]\n1: {no: ~}\n'': null\nlast:\n"
    expected = {
        "on": ["yes", "1", "0o7", "2001-01-01", "a: b", "<x", "y", "z>"],
        "1": {"no": ""},
        "": "",
        "last": "",
    }
    assert parse_yaml(text) == expected
    assert parse_yaml("- <x, y, z>\n- |\n  a\n  b\n") == ["<x, y, z>", "a\nb\n"]
    assert parse_yaml("") == parse_yaml("# nothing\n") == ""


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("a: 1\nb: 2\na: 3\n", "line 3: there are two entries 'a'"),
        ("a: &x [1]\nb: *x\n", "line 1: a value is used twice"),
        ("a: !!python/object/apply:os.system [ls]\n", "python/object/apply"),
        ("a: !own b\n", "the tag '!own'"),
        ("? [a]\n: b\n", "a key is not a text"),
        ("a: [b\n", "line 2"),
        ("a: b: c\n", "line 1"),
        ("a\n---\nb\n", "not valid YAML"),
        ("a: \x07\n", "not valid YAML"),
        ("[" * 100_000, "not valid YAML"),
        ("[" * 900 + "]" * 900, "nested too deeply"),
        ("- " * 100_000, "not valid YAML"),
    ],
)
def test_what_is_refused(tmp_path, text, told):
    (tmp_path / "a.yaml").write_text(text)
    assert_one_sentence(
        lambda: read_yaml(tmp_path / "a.yaml", "--x"), ValueError, f"--x {tmp_path / 'a.yaml'} is", told
    )


texts = st.text(st.characters(exclude_categories=["C", "Z"]) | st.just(" "), max_size=8)


@settings(max_examples=40)
@given(st.recursive(texts, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3)))
def test_what_is_dumped_is_read(content):
    assert parse_yaml(yaml.safe_dump(content, sort_keys=False, allow_unicode=True)) == content


@settings(max_examples=40)
@given(st.text(max_size=40) | st.text(alphabet="-:[]{}&*!|>'\"#ab \n", max_size=40))
def test_any_text_is_read_or_refused(text):
    content, message = result_or_message(lambda: parse_yaml(text))
    assert content is not None or message.startswith("not valid YAML")
    assert "\n" not in message
