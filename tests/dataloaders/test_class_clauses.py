"""The three YAML files about classes: every fault is named with file, class and item, and only then may be allowed."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from dataloaders.class_clauses import Labels, read_clauses, read_graph, read_label_file
from tests.dataloaders.folders import assert_one_sentence

NAMES = ("peel_orange", "JumpRope")


def graph(name: str, **changes: Any) -> dict[str, Any]:
    """Return an entry of a graph without fault, but for the changes; None leaves a field out."""
    entry = {
        "label": name,
        "obj_en_li": ["orange", "thumb"],
        "obj_rel_triples": ["<thumb, presses, orange>"],
        "act_obj_triples": [f"<{name}, uses, knife>", f"<{name}, needs, thumb>"],
        "sub_act_en_li": ["scoring the skin", "pulling it off"],
        "act_rel_triples": ["<scoring the skin, precedes, pulling it off>"],
    }
    return {field: value for field, value in (entry | changes).items() if value is not None}


def clauses(name: str, **changes: Any) -> dict[str, Any]:
    entry = {
        "label": name,
        "xprompt_oo": ["where a thumb  presses the orange "],
        "xprompt_ao": ["which uses a knife", "which needs a thumb"],
        "xprompt_aa": ["starting with scoring the skin"],
    }
    return {field: value for field, value in (entry | changes).items() if value is not None}


def write(path: Path, content: Any) -> Path:
    path.write_text(content if isinstance(content, str) else yaml.safe_dump(content, sort_keys=False))
    return path


def test_files_without_fault(tmp_path):
    path = write(tmp_path / "graph.yml", {"peel orange": graph("Peel orange"), "jump rope": graph("jump rope")})
    names, graphs = read_graph(path, NAMES)
    assert names == NAMES
    assert graphs[0]["obj_en_li"] == ("orange", "thumb")
    assert graphs[1]["act_obj_triples"] == ("<jump rope, uses, knife>", "<jump rope, needs, thumb>")
    path = write(tmp_path / "clauses.yml", {"peel orange": clauses("peel orange"), "jump rope": clauses("jump rope")})
    names, found = read_clauses(path, None, graphs=graphs)
    assert names == ("peel orange", "jump rope")
    assert found[0]["xprompt_oo"] == ("where a thumb presses the orange",)
    assert list(found[1]) == ["xprompt_oo", "xprompt_ao", "xprompt_aa"]


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"obj_rel_triples": ["<a, b, c>", "<a, b>"]}, "obj_rel_triples: '<a, b>' is not of the form"),
        ({"obj_rel_triples": ["<a, b, c, d>"]}, "'<a, b, c, d>' is not of the form <a, relation, b>"),
        ({"obj_rel_triples": ["<a, , c>"]}, "'<a, , c>' is not of the form"),
        ({"obj_rel_triples": ["a, b, c"]}, "'a, b, c' is not of the form"),
        (
            {"act_rel_triples": ["<a, b, c>", ["a", "b", "c"]]},
            "act_rel_triples, item 2, is ['a', 'b', 'c'] and no text",
        ),
        ({"act_rel_triples": [{"a": "b"}]}, "act_rel_triples, item 1, is {'a': 'b'} and no text"),
        ({"sub_act_en_li": []}, "sub_act_en_li is empty"),
        ({"sub_act_en_li": None}, "sub_act_en_li is missing"),
        ({"obj_en_li": "orange"}, "obj_en_li is 'orange' and not a list"),
        ({"obj_en_li": ["orange", " "]}, "obj_en_li, item 2, is empty"),
        ({"label": "skate"}, "label is 'skate'"),
        ({"objects": ["a"]}, "the unknown field 'objects'"),
    ],
)
def test_a_fault_is_named_and_may_be_allowed(tmp_path, caplog, changes, told):
    path = write(
        tmp_path / "graph.yml", {"peel orange": graph("peel orange"), "jump rope": graph("jump rope", **changes)}
    )
    assert_one_sentence(
        lambda: read_graph(path, NAMES), ValueError, f"--graph {path} has 1 faults", "class 'JumpRope'", told,
        "--allow_faults 1",
    )  # fmt: skip
    names, (whole, faulty) = read_graph(path, NAMES, allowed=1)
    assert names == NAMES
    assert whole == read_graph(write(path, {"peel orange": graph("peel orange")}), NAMES[:1])[1][0]
    assert "JumpRope" in caplog.text
    for field, items in faulty.items():
        assert set(items) <= {*graph("jump rope")[field], "<a, b, c>"}, field


def test_an_entry_that_is_no_mapping(tmp_path):
    path = write(tmp_path / "clauses.yml", {"peel orange": clauses("peel orange"), "jump rope": ["a"]})
    assert_one_sentence(lambda: read_clauses(path, NAMES), ValueError, "class 'JumpRope', has ['a']", "xprompt_oo")
    assert read_clauses(path, NAMES, allowed=1)[1][1] == dict.fromkeys(("xprompt_oo", "xprompt_ao", "xprompt_aa"), ())


def test_all_faults_are_counted_and_the_first_five_named(tmp_path):
    entries = {f"class {n}": clauses(f"class {n}", xprompt_aa=[]) for n in range(7)}
    path = write(tmp_path / "clauses.yml", entries)
    assert_one_sentence(
        lambda: read_clauses(path, None, allowed=6), ValueError, "has 7 faults", "'class 4', xprompt_aa is empty; and 2"
    )
    assert len(read_clauses(path, None, allowed=7)[1]) == 7


def test_one_clause_a_triple(tmp_path):
    _, graphs = read_graph(write(tmp_path / "g.yml", {"peel orange": graph("peel orange")}), None)
    path = write(tmp_path / "c.yml", {"peel orange": clauses("peel orange", xprompt_ao=["which uses a knife"])})
    assert_one_sentence(
        lambda: read_clauses(path, None, graphs=graphs), ValueError, "xprompt_ao: has 1 clauses for 2 triples"
    )


def test_position_and_name(tmp_path):
    entries = {"peel orange": clauses("peel orange"), "jump rope": clauses("jump rope")}
    path = write(tmp_path / "c.yml", dict(reversed(entries.items())))
    assert_one_sentence(lambda: read_clauses(path, NAMES, allowed=9), ValueError, "'jump rope' in position 0", "order")
    path = write(tmp_path / "c.yml", entries)
    assert_one_sentence(
        lambda: read_clauses(path, (*NAMES, "surf"), allowed=9),
        ValueError,
        "2 classes and the data set 3",
        "lacks surf",
    )
    assert_one_sentence(
        lambda: read_clauses(path, NAMES[:1], allowed=9), ValueError, "not in the data set: jump rope", "lacks none"
    )
    # HMDB51's file of the authors calls "fall floor" another name in the right place.
    other = ("peel orange", "skip rope")
    assert_one_sentence(
        lambda: read_clauses(path, other), ValueError, "class 1 is called 'jump rope' there and 'skip rope' in the"
    )
    assert read_clauses(path, other, allowed=1)[0] == other


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("", "no entry for a class"),
        ("- a\n", "no entry for a class"),
        ("a: {}\na: {}\n", "two entries 'a'"),
        ("a b: {}\nA_b: {}\n", "differ only in case"),
        ("a: {\n", "not valid YAML"),
    ],
)
def test_other_files(tmp_path, content, told):
    path = write(tmp_path / "c.yml", content)
    assert_one_sentence(lambda: read_clauses(path, None), ValueError, f"--clauses {path}", told)
    assert_one_sentence(lambda: read_graph(path, None), ValueError, f"--graph {path}", told)
    assert_one_sentence(lambda: read_graph(tmp_path / "none", None), FileNotFoundError, "--graph", "none")


def test_labels(tmp_path):
    content = {"classes": ["peel orange", "on"], "templates": ["a {}."], "obj_templates": ["{} seen"]}
    path = write(tmp_path / "labels.yml", content)
    assert read_label_file(path) == Labels(("peel orange", "on"), ("a {}.",), ("{} seen",))
    write(path, "classes: [on, no, 1]\ntemplates: ['{}']\n")
    assert read_label_file(path) == Labels(("on", "no", "1"), ("{}",))


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("- a\n", "no entries `classes` and `templates`"),
        ("classes: [a]\n", "templates is missing"),
        ("classes: []\ntemplates: ['{}']\n", "classes is empty"),
        ("classes: [a, [b]]\ntemplates: ['{}']\n", "classes, item 2, is ['b'] and no text"),
        ("classes: [a]\ntemplates: [of]\n", "templates: 'of' has 0 times {}"),
        ("classes: [a]\ntemplates: ['{} {}']\n", "has 2 times {}"),
        ("classes: [a, a]\ntemplates: ['{}']\n", "has a class twice"),
        ("classes: [a, A_]\ntemplates: ['{}']\n", "differ only in case"),
        ("class: [a]\nclasses: [a]\ntemplates: ['{}']\n", "unknown field 'class'"),
    ],
)
def test_wrong_labels(tmp_path, content, told):
    path = write(tmp_path / "labels.yml", content)
    assert_one_sentence(lambda: read_label_file(path), ValueError, f"--labels {path}", told)
