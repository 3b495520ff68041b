"""Settings have valid defaults, help lines and ranges, and convert to one flat mapping and back."""

import math
from dataclasses import fields
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.config import Config, sections_with
from engine.tasks.retrieval import RetrievalSettings
from modules.methods import METHODS, method_options

# Settings that a run needs beside the defaults: a task, and the files of the default data set.
NEEDED = {"do_train": True, "train_csv": "a", "val_csv": "b", "data_path": "c", "features_path": "d"}
SECTIONS = sections_with(RetrievalSettings)
FIELDS = [(name, item.name) for name, section in SECTIONS.items() for item in fields(section) if item.name != "options"]


def kind_of(section: str, name: str) -> tuple[Any, str]:
    """Return a field's type and its help line."""
    hint = get_type_hints(SECTIONS[section], include_extras=True)[name]
    assert get_origin(hint) is Annotated, f"{name} has no help line"
    return get_args(hint)[:2]


def default_of(section: str, name: str) -> Any:
    (found,) = (item.default for item in fields(SECTIONS[section]) if item.name == name)
    return found


def config_of(**changed: Any) -> Config:
    return Config.from_flat(NEEDED | changed, RetrievalSettings)


OTHERS = {"loss": ["sigmoid"], "output_dir": ["runs/other"]}


def accepted(name: str, value: Any) -> bool:
    try:
        config_of(**{name: value})
    except ValueError:
        return False
    return True


NEED_A_LIST = {
    "expand_msrvtt_sentences",
    "frame_captions",
    "train_twins_csv",
    "same_video",
    "qb_norm",
}  # of all training clips


def values_of(section: str, name: str) -> st.SearchStrategy[Any]:
    """Draw values that a field alone accepts, its default among them."""
    kind, default = kind_of(section, name)[0], default_of(section, name)
    if kind is bool:
        return st.booleans()
    if get_origin(kind) is Literal:
        return st.sampled_from([choice for choice in get_args(kind) if accepted(name, choice)])
    if kind is str:
        words = [default, "one", "a b", "ü"] if default == "" else [default, *OTHERS.get(name, [])]
        return st.sampled_from([word for word in words if accepted(name, word)])
    numbers = st.integers(0, 10**6) if kind is int else st.floats(0, 1e6, allow_nan=False)
    return st.just(default) | numbers.filter(lambda value: accepted(name, value))


def options_of(method: str) -> st.SearchStrategy[dict[str, Any]]:
    """Draw some of a method's options, with values of their kind: the network checks them, not the settings."""
    kinds = {bool: st.booleans(), int: st.integers(1, 99), float: st.floats(0, 1), str: st.sampled_from(["", "x"])}
    each = {
        option.name: st.sampled_from(get_args(option.type))
        if get_origin(option.type) is Literal
        else kinds[option.type]
        for option in method_options(METHODS[method])
    }
    return st.fixed_dictionaries({}, optional=each)


@st.composite
def settings_of_a_run(draw: st.DrawFn) -> dict[str, Any]:
    """Draw settings from all sections and the options of one method."""
    method = draw(st.sampled_from(list(METHODS)))
    fixed = {*NEEDED, "method", "datatype"}
    free = {name: values_of(section, name) for section, name in FIELDS if name not in fixed}
    drawn = draw(st.fixed_dictionaries({}, optional=free))
    if drawn.get("train_shards"):  # which goes together with fewer settings
        drawn = {name: value for name, value in drawn.items() if name not in NEED_A_LIST}
    return {**NEEDED, "method": method, **drawn, **draw(options_of(method))}


@settings(max_examples=30)
@given(settings_of_a_run())
def test_flat_and_back_is_the_same(values):
    flat = Config.from_flat(values, RetrievalSettings).flat()
    again = Config.from_flat(flat, RetrievalSettings)
    assert again.flat() == flat
    assert Config.from_flat(again.flat(), RetrievalSettings) == again
    assert {name: flat[name] for name in values} == values
    assert all(flat[name] == default_of(section, name) for section, name in FIELDS if name not in values)


@pytest.mark.parametrize(("section", "name"), FIELDS)
def test_every_field_has_help_and_a_default_of_its_type(section, name):
    kind, help_ = kind_of(section, name)
    assert help_.strip() == help_ != ""
    default = default_of(section, name)
    if get_origin(kind) is Literal:
        assert default in get_args(kind)
    else:
        assert type(default) is kind


def test_no_two_sections_share_a_name():
    names = [name for _, name in FIELDS]
    assert len(set(names)) == len(names)


def test_an_option_with_the_name_of_a_setting_is_that_setting():
    """Check --max_frames, which the data and some methods both use."""
    sections = {name: section for section, name in FIELDS}
    for cls in METHODS.values():
        for option in method_options(cls):
            if (section := sections.get(option.name)) is not None:
                assert option.type is kind_of(section, option.name)[0]
                assert option.default == default_of(section, option.name)


@pytest.mark.parametrize("section", [name for name in SECTIONS if name != "run"])
def test_every_default_passes_its_own_check(section):
    SECTIONS[section]()


def test_a_run_must_have_something_to_do():
    with pytest.raises(ValueError, match="nothing to do"):
        Config.from_flat({}, RetrievalSettings)
    for what in ("do_train", "do_eval", "describe"):
        assert getattr(config_of(**{"do_train": False, what: True}).run, what)


NUMBERS = [(section, name) for section, name in FIELDS if kind_of(section, name)[0] in (int, float)]
CHOICES = [(section, name) for section, name in FIELDS if get_origin(kind_of(section, name)[0]) is Literal]


@pytest.mark.parametrize(("section", "name"), NUMBERS)
def test_a_number_out_of_range_is_refused_in_one_sentence(section, name):
    """Check that no number may be far below zero, and no fraction infinite or NaN."""
    wrong = [-2] + [math.nan, math.inf, -math.inf] * (kind_of(section, name)[0] is float)
    for value in wrong:
        with pytest.raises(ValueError, match=rf"^--{name} {value:g} .*takes a number[^\n]*$"):
            config_of(**{name: value})


@pytest.mark.parametrize(("section", "name"), [*CHOICES, ("model", "method"), ("task", "datatype"), ("task", "loss")])
def test_a_value_outside_the_choices_is_refused_in_one_sentence(section, name):
    with pytest.raises(ValueError, match=rf"^--{name} 'neither' is not one of: [^\n]*$") as caught:
        config_of(**{name: "neither"})
    assert str(default_of(section, name)) in str(caught.value)


@pytest.mark.parametrize("name", ["data_path", "features_path", "train_csv", "val_csv"])
def test_the_error_names_each_missing_file_flag(name):
    with pytest.raises(ValueError, match=rf"^msrvtt needs --{name}: "):
        config_of(**{name: ""})
    assert config_of(describe=True, do_train=False, **{name: ""})
