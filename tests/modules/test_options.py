"""A setting's range and choices are read from its annotation, and checked and shown from there."""

import dataclasses
import math
from typing import Annotated, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modules.methods import METHODS, build_method, method_options
from modules.options import Choices, OnlyWith, Option, Range, between, check_options, help_of, one_of, options_of
from tests.tiny import tiny_clip

REGISTRY = {"resnet": 1, "vit": 2}


@dataclasses.dataclass
class Settings:
    """A section."""

    backbone: Annotated[str, "the network", Choices(lambda: REGISTRY)]
    layers: Annotated[int, "blocks", Range(1)] = 4
    pooling: Annotated[Literal["mean", "max"], "over frames"] = "mean"
    share: Annotated[float, "of the steps", Range(0, 1)] = 0.1
    norm: Annotated[float, "of the gradient", Range(0, above=True)] = 1.0
    scale: Annotated[float, "of anything"] = 1.0
    statistics: Annotated[str, "of pixels; empty: the weights' own", Choices(REGISTRY)] = ""
    held_out: Annotated[int, "videos; 0: none", Range(2)] = 0
    log: Annotated[bool, "write a log"] = False
    others: dict[str, int] = dataclasses.field(default_factory=dict)  # no setting


class Layer:
    def __init__(
        self, width: int, *, kind: Annotated[Literal["a", "b"], "which"] = "a", depth: Annotated[int, "d", Range(0, 2)]
    ) -> None: ...


def check(**values):
    check_options(options_of(Settings), values)


def test_the_fields_of_a_dataclass():
    options = options_of(Settings)
    assert [option.name for option in options] == [
        "backbone", "layers", "pooling", "share", "norm", "scale", "statistics", "held_out", "log",
    ]  # fmt: skip
    assert options[0] == Option("backbone", str, dataclasses.MISSING, "the network", None, ("resnet", "vit"))
    assert options[1] == Option("layers", int, 4, "blocks", Range(1), ())
    assert options[2] == Option("pooling", Literal["mean", "max"], "mean", "over frames", None, ("mean", "max"))


def test_the_keyword_arguments_of_a_constructor_or_a_function():
    kind, depth = options_of(Layer)
    assert kind == Option("kind", Literal["a", "b"], "a", "which", None, ("a", "b"))
    assert depth == Option("depth", int, dataclasses.MISSING, "d", Range(0, 2))

    def function(x: int, *, rate: Annotated[float, "r"] = 0.5) -> None: ...

    assert options_of(function) == [Option("rate", float, 0.5, "r")]

    def silent(*, rate: float = 0.5) -> None: ...

    with pytest.raises(TypeError, match="rate has no help line"):
        options_of(silent)


def test_a_registry_is_read_when_the_options_are():
    REGISTRY["late"] = 3
    try:
        check(backbone="late")
    finally:
        del REGISTRY["late"]
    with pytest.raises(ValueError, match=r"--backbone 'late' is not one of: resnet, vit$"):
        check(backbone="late")


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("layers", 0, "--layers 0 is out of range: it takes a number at least 1"),
        ("layers", -(10**200), "--layers a number of about 199 digits is out of range: it takes a number at least 1"),
        ("layers", "many", "--layers 'many' is not a number"),
        ("share", -0.5, "--share -0.5 is out of range: it takes a number from 0 to 1"),
        ("share", 2, "--share 2 is out of range: it takes a number from 0 to 1"),
        ("share", math.nan, "--share nan is out of range: it takes a number from 0 to 1"),
        ("norm", 0.0, "--norm 0 is out of range: it takes a number above 0"),
        ("norm", math.inf, "--norm inf is out of range: it takes a number above 0"),
        ("norm", math.nan, "--norm nan is out of range: it takes a number above 0"),
        ("scale", math.inf, "--scale inf is out of range: it takes a finite number"),
        ("scale", -math.inf, "--scale -inf is out of range: it takes a finite number"),
        ("scale", math.nan, "--scale nan is out of range: it takes a finite number"),
        ("pooling", "min", "--pooling 'min' is not one of: mean, max"),
        ("pooling", ["mean"], "--pooling ['mean'] is not one of: mean, max"),
        ("pooling", "a\nb", "--pooling 'a\\nb' is not one of: mean, max"),
        ("pooling", "x" * 10**6, f"--pooling '{'x' * 79}... (1,000,002 characters) is not one of: mean, max"),
        ("statistics", "other", "--statistics 'other' is not one of: resnet, vit"),
        ("held_out", 1, "--held_out 1 is out of range: it takes a number at least 2"),
    ],
)
def test_a_bad_value_is_one_sentence(name, value, message):
    with pytest.raises(ValueError, match=r"^--") as caught:
        check(**{name: value})
    assert str(caught.value) == message


def test_good_values_defaults_and_unknown_names_pass():
    check(backbone="vit", layers=1, pooling="max", share=1.0, norm=1e-9, scale=-3, statistics="", held_out=0, log=True)
    check(share=0, held_out=2, statistics="vit", layers=10**200)
    check(unknown=math.nan)
    check()


@given(
    st.floats(allow_nan=False, allow_infinity=False),
    st.floats(allow_nan=False) | st.just(math.inf),
    st.floats() | st.integers(),
    st.booleans(),
)
def test_a_range_is_its_inequality(low, high, value, above):
    expected = math.isfinite(value) and (low < value if above else low <= value) and value <= high
    assert (value in Range(low, high, above)) == expected
    if not above and not math.isnan(value):
        try:
            between("name", value, low, high)
        except ValueError:
            assert not expected
        else:
            assert expected


def test_bounds_that_depend_on_the_model():
    between("depth", 2, 0, 2)
    one_of("name", "a", ("a", "b"))
    with pytest.raises(ValueError, match=r"^--depth 3 is out of range: it takes a number from 0 to 2$"):
        between("depth", 3, 0, 2)
    with pytest.raises(ValueError, match=r"^--depth 3 is out of range: it takes a number from 0 to 2, the blocks$"):
        between("depth", 3, 0, 2, why="the blocks")
    with pytest.raises(ValueError, match=r"^--name 'c' is not one of: a, b$"):
        one_of("name", "c", iter("ab"))


def test_help_says_what_a_setting_takes():
    lines = {option.name: help_of(option) for option in options_of(Settings)}
    assert lines == {
        "backbone": "the network; one of: resnet, vit",
        "layers": "blocks; at least 1",
        "pooling": "over frames; one of: mean, max",
        "share": "of the steps; from 0 to 1",
        "norm": "of the gradient; above 0",
        "scale": "of anything",
        "statistics": "of pixels; empty: the weights' own; one of: resnet, vit",
        "held_out": "videos; 0: none; at least 2",
        "log": "write a log",
    }
    assert str(Range(0, 5, above=True)) == "above 0, at most 5"


def test_help_says_what_a_setting_depends_on():
    only = (OnlyWith("pooling", ("max", "sum")), OnlyWith("log"), OnlyWith("share", off=True))
    option = Option("layers", int, 4, "blocks", Range(1), (), only)
    assert help_of(option) == "blocks; at least 1; only with --pooling max or sum; only with --log; not with --share"


@pytest.mark.parametrize("name", METHODS)
def test_every_method_checks_what_it_declares(name):
    """Try a value just below each range, a name that is not a choice, and NaN."""
    for option in method_options(METHODS[name]):
        bad = []
        if option.choices:
            bad.append("none of them")
        elif option.type in (int, float):
            bad.append(math.nan)
            if option.range:
                bad.append(option.range.low if option.range.above else option.range.low - 1)
        for value in bad:
            with pytest.raises(ValueError, match=f"^--{option.name} "):
                build_method(name, tiny_clip(), **{option.name: value})
