"""Texts of classes with clauses, against a loop, and what must hold for all of them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataloaders.class_clauses import CLAUSE_FIELDS
from dataloaders.prompt_lists import MODES, phrases_of, prompt_lists

PEEL = {"xprompt_oo": ("where a thumb presses",), "xprompt_ao": ("with a knife", "with a thumb"), "xprompt_aa": ("b",)}
JUMP = {"xprompt_oo": ("b", "b"), "xprompt_ao": (), "xprompt_aa": ("b",)}


def test_a_small_example():
    lists = prompt_lists(["peel", "jump"], [PEEL, JUMP], ["a {}.", "the {}!"], "xmix")
    assert lists.texts[0][:5] == (
        "a peel.", "a peel, where a thumb presses.", "a peel, with a knife.", "a peel, with a thumb.", "a peel, b.",
    )  # fmt: skip
    assert lists.texts[0][5] == "the peel!"
    assert lists.texts[1][:5] == ("a jump.", "a jump, b.", "a jump.", "a jump, b.", "a jump.")
    assert lists.texts[1][5:7] == ("the jump!", "the jump, b!")
    assert lists.mask == ((True,) * 10, (True, True, False, False, False) * 2)
    assert len(lists) == 2


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        ("name", ["peel"]),
        ("xoo", ["peel", "peel, where a thumb presses"]),
        ("xao", ["peel", "peel, with a knife", "peel, with a thumb"]),
        ("xaa", ["peel", "peel, b"]),
    ],
)
def test_modes(mode, expected):
    assert phrases_of("peel", PEEL, mode) == tuple(expected)


texts = st.text("ab", min_size=1, max_size=2)
some_clauses = st.fixed_dictionaries({field: st.lists(texts, max_size=4).map(tuple) for field in CLAUSE_FIELDS})


@given(
    st.lists(st.tuples(texts, some_clauses), min_size=1, max_size=4),
    st.lists(texts.map(lambda text: text + " {}."), min_size=1, max_size=3),
    st.sampled_from(list(MODES)),
)
def test_against_a_loop(classes, templates, mode):
    names, clauses = [name for name, _ in classes], [own for _, own in classes]
    phrases = []
    for name, own in classes:
        distinct = [name]
        for field in MODES[mode]:
            for clause in own[field]:
                if f"{name}, {clause}" not in distinct:
                    distinct.append(f"{name}, {clause}")
        phrases.append(distinct)
    longest = max(len(own) for own in phrases)
    lists = prompt_lists(names, clauses, templates, mode)
    for k, own in enumerate(phrases):
        assert len(lists.texts[k]) == len(lists.mask[k]) == len(templates) * longest
        for p, template in enumerate(templates):
            for n in range(longest):
                assert lists.texts[k][p * longest + n] == template.format(own[n % len(own)])
                assert lists.mask[k][p * longest + n] == (n < len(own))


@pytest.mark.parametrize(
    ("names", "clauses", "templates", "mode"),
    [
        (["a"], [PEEL], ["{}"], "mix"),
        ([], [], ["{}"], "xmix"),
        (["a"], [PEEL], [], "xmix"),
        (["a", "b"], [PEEL], ["{}"], "xmix"),
    ],
)
def test_what_does_not_fit(names, clauses, templates, mode):
    with pytest.raises(ValueError, match=r"modes|do not fit"):
        prompt_lists(names, clauses, templates, mode)
