"""Names of classes: written apart, compared, read from files of labels, and chosen."""

import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dataloaders.classes import Classes, by_name, normalised, read_labels, renamed, spaced, subset
from dataloaders.classes import given as is_given
from tests.dataloaders.folders import assert_one_sentence, result_or_message, write_json, write_lines

KEYS = ("ApplyEyeMakeup", "kick", "kick_ball")
CLASSES = Classes(KEYS, KEYS)


@pytest.mark.parametrize(
    ("key", "words"),
    [
        ("brush_hair", "brush hair"),
        ("ApplyEyeMakeup", "apply eye makeup"),
        ("Archery", "archery"),
        ("YoYo", "yo yo"),
        ("TVShow", "tv show"),
        ("Type2Diabetes", "type2 diabetes"),
        ("kick", "kick"),
        ("playing_American_football", "playing American football"),
        ("petting animal (not cat)", "petting animal (not cat)"),
        ("Pulling something from left to right", "Pulling something from left to right"),
        ("__", ""),
    ],
)
def test_words_of_a_key(key, words):
    assert spaced(key) == words


@given(st.lists(st.text(st.sampled_from("abcdefgh"), min_size=1), min_size=1, max_size=5))
def test_a_name_stays_the_same_in_all_spellings(words):
    spellings = ("_".join(words), " ".join(words), "".join(map(str.capitalize, words)), "-".join(words).upper())
    assert {normalised(spelling) for spelling in spellings} == {"".join(words)}
    assert spaced("_".join(words)) == " ".join(words)
    if all(len(word) > 1 for word in words):  # a single capital is taken for a part of an abbreviation
        assert spaced("".join(map(str.capitalize, words))) == " ".join(words)


def test_names_that_cannot_be_told_apart():
    assert by_name(["Kick", "kick_ball"], "list.txt") == {"kick": "Kick", "kickball": "kick_ball"}
    assert_one_sentence(lambda: by_name(["Kick", "kick_"], "list.txt"), ValueError, "list.txt", "'Kick'", "'kick_'")
    assert_one_sentence(lambda: by_name(["?"], "list.txt"), ValueError, "no letter")


# ---- files of labels ----


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("a.csv", "id,name\n0,ApplyEyeMakeup\n1,kick\n2,kick_ball\n"),
        ("a.csv", "name,id\r\nkick,1\r\nkick_ball,2\r\nApplyEyeMakeup,0\r\n"),
        ("a.csv", '\ufeffid,name,note\n2,"kick_ball",x\n0,ApplyEyeMakeup,y\n1,kick,z\n'),
        ("a.json", json.dumps({"ApplyEyeMakeup": 0, "kick": 1, "kick_ball": 2})),
        ("a.json", json.dumps({"kick": "1", "ApplyEyeMakeup": "0", "kick_ball": "2"})),
        ("a.json", json.dumps({"2": "kick_ball", "0": "ApplyEyeMakeup", "1": "kick"})),
        ("a.txt", "ApplyEyeMakeup\nkick\n\nkick_ball\n"),
        ("a.yaml", "templates: ['a {}.']\nclasses:\n- ApplyEyeMakeup\n- kick\n- kick_ball\n"),
        ("a.yml", "classes: [ApplyEyeMakeup, kick, kick_ball]\n"),
    ],
)
def test_labels(tmp_path, file, content):
    (tmp_path / file).write_text(content, encoding="utf-8")
    assert read_labels(tmp_path / file) == KEYS


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        ("a.csv", "id,name\n1,a\n2,b\n", "numbers its 2 classes from 1 to 2"),
        ("a.csv", "id,name\n0,a\n0,b\n", "id 0 twice"),
        ("a.csv", "id,name\n0,a\n1,a\n", "'a' twice"),
        ("a.csv", "id,name\n0,a b\n1,A_b\n", "differ only in case"),
        ("a.csv", "id,name\n0,\n", "''"),
        ("a.csv", "id,name\nzero,a\n", "'zero'"),
        ("a.csv", "id,name\n-1,a\n", "'-1'"),
        ("a.csv", "0,a\n1,b\n", "no columns `id` and `name`"),
        ("a.csv", "id,name\n", "names no class"),
        ("a.csv", "id,name\n0,a, b\n", "line 2"),
        ("a.json", '{"a": 0.5}', "'a': 0.5"),
        ("a.json", '{"a": "b"}', "'a': 'b'"),
        ("a.json", '{"a": true}', "'a': True"),
        ("a.json", '["a"]', "not a JSON object"),
        ("a.json", "{", "not valid JSON"),
        ("a.json", "{}", "names no class"),
        ("a.txt", "a\nb\na\n", "'a' twice"),
        ("a.yaml", "- a\n- b\n", "no `classes:`"),
        ("a.yaml", "classes: a\n", "no `classes:`"),
        ("a.yaml", "classes: [a, [b]]\n", "no `classes:`"),
        ("a.yaml", "classes: [a, a]\n", "'a' twice"),
        ("a.yaml", "classes: [a\n", "not valid YAML"),
    ],
)
def test_wrong_labels(tmp_path, file, content, said):
    (tmp_path / file).write_text(content, encoding="utf-8")
    assert_one_sentence(lambda: read_labels(tmp_path / file), ValueError, f"--labels_csv {tmp_path / file}", said)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    json_values
    | st.dictionaries(st.text(max_size=4), st.integers(0, 4))
    | st.dictionaries(st.text(max_size=2), st.text())
)
def test_any_json_is_labels_or_one_sentence(tmp_path, content):
    write_json(tmp_path / "a.json", content)
    names, message = result_or_message(lambda: read_labels(tmp_path / "a.json"))
    if message:
        assert message.startswith("--labels_csv")
        assert message.endswith(".")
        assert "\n" not in message
    else:
        assert len(names) == len(content)
        assert all(name.strip() == name for name in names)


# ---- names for texts ----


def test_names_for_texts(tmp_path):
    assert renamed(CLASSES, "split").names == ("apply eye makeup", "kick", "kick ball")
    assert renamed(renamed(CLASSES, "split"), "raw") == CLASSES
    write_lines(tmp_path / "names.csv", ["id,name", "2,Kick Ball", "0,Apply eye make-up", "1,KICK"])
    assert renamed(CLASSES, str(tmp_path / "names.csv")).names == ("Apply eye make-up", "KICK", "Kick Ball")
    write_json(tmp_path / "names.json", {"0": "Apply Eye Makeup", "1": "kick", "2": "Kick ball"})
    assert renamed(CLASSES, str(tmp_path / "names.json")).names == ("Apply Eye Makeup", "kick", "Kick ball")
    write_lines(tmp_path / "names.yaml", ["classes: [apply eye makeup, Kick, kick ball]"])
    assert renamed(CLASSES, str(tmp_path / "names.yaml")).names == ("apply eye makeup", "Kick", "kick ball")
    write_lines(
        tmp_path / "names.csv", ["key,name", "kick_ball,plays football", "kick,kicks", "apply eye makeup,is made up"]
    )
    assert renamed(CLASSES, str(tmp_path / "names.csv")).names == ("is made up", "kicks", "plays football")
    assert renamed(CLASSES, str(tmp_path / "names.csv")).keys == KEYS


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        (["id,name", "0,ApplyEyeMakeup", "2,kick", "1,kick_ball"], "2 classes are out of order"),
        (["id,name", "0,ApplyEyeMakeup", "1,kick"], "no name for kick_ball"),
        (["id,name", "0,ApplyEyeMakeup", "1,kick", "2,punt"], "punt"),
        (["key,name", "kick,a", "kick_ball,b"], "no name for ApplyEyeMakeup"),
        (["key,name", "kick,a", "kick,b"], "line 3: 'kick' is named twice"),
        (["key,name", "kick,"], "without a name"),
        (["key,name", "punt,a"], "'punt' is no class"),
        (["class", "a"], "no columns"),
    ],
)
def test_wrong_names_for_texts(tmp_path, lines, said):
    write_lines(tmp_path / "names.csv", lines)
    assert_one_sentence(lambda: renamed(CLASSES, str(tmp_path / "names.csv")), ValueError, "--class_names", said)


def test_no_such_file_of_names():
    assert_one_sentence(
        lambda: renamed(CLASSES, "Split"), FileNotFoundError, "--class_names 'Split'", "pass split, raw"
    )
    assert_one_sentence(lambda: renamed(CLASSES, "x" * 300), FileNotFoundError, "--class_names 'xxx")


# ---- a part of the classes ----


def test_a_subset_has_the_order_of_its_keys():
    some = subset(renamed(CLASSES, "split"), ("kick_ball", "ApplyEyeMakeup"))
    assert (some.keys, some.names) == (("kick_ball", "ApplyEyeMakeup"), ("kick ball", "apply eye makeup"))
    for keys in (("kick", "kick"), ("punt",), ()):
        assert_one_sentence(lambda: subset(CLASSES, keys), ValueError)  # noqa: B023


def test_a_path_is_given_unless_it_is_the_empty_one():
    assert [is_given(path) for path in (None, Path(""), Path("a"))] == [False, False, True]
