"""Settings declared in annotations: type, help, range and choices in one place, for flags, checks and help alike.

A setting is a keyword-only argument of a constructor or a field of a dataclass, annotated with its type and its help
line, and if needed with a range or choices:

    layers: Annotated[int, "blocks of the transformer over frames", Range(1)] = 4
    pooling: Annotated[Literal["mean", "max"], "how frames become one vector"] = "mean"
    method: Annotated[str, "the network", Choices(lambda: METHODS)] = "clip4clip"

`options_of` reads these declarations and `check_options` checks values against them. A setting that another one can
switch off says so (`OnlyWith`), and `check_effects` refuses it where it is passed in vain. A bound that depends on the
model, such as a number of blocks, is checked where the model is known, by `between` and `one_of`.
"""

import dataclasses
import inspect
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

from modules.quoting import shorten


@dataclass(frozen=True)
class Range:
    """The numbers from `low` to `high` inclusive; `low` itself is excluded if `above` is set."""

    low: float
    high: float = math.inf
    above: bool = False

    def __contains__(self, value: float) -> bool:
        # A comparison with NaN is false; an integer may be too large for math.isfinite.
        return (self.low < value if self.above else self.low <= value) and value <= self.high and abs(value) != math.inf

    def __str__(self) -> str:
        low, high = _number(self.low), _number(self.high)
        if self.high == math.inf:
            return f"{'above' if self.above else 'at least'} {low}"
        return f"above {low}, at most {high}" if self.above else f"from {low} to {high}"


@dataclass(frozen=True)
class Choices:
    """The names that a `str` setting takes: a mapping or another iterable of names, or a function that returns one."""

    names: Iterable[str] | Callable[[], Iterable[str]]

    def listed(self) -> tuple[str, ...]:
        return tuple(self.names() if callable(self.names) else self.names)


@dataclass(frozen=True)
class OnlyWith:
    """Says that a setting has an effect only with certain values of the setting `name`: those that `holds` is true for,
    by default the `values`, or all but false and empty ones; with `off`, the false and empty ones. Messages say that
    `values` are to be passed."""

    name: str
    values: tuple[str, ...] = ()
    holds: Callable[[Any], bool] | None = None
    off: bool = False

    def __contains__(self, value: Any) -> bool:
        if self.off:
            return not value
        return bool(self.holds(value)) if self.holds else value in self.values if self.values else bool(value)

    def __str__(self) -> str:
        return f"--{self.name} {' or '.join(self.values)}".rstrip()


@dataclass(frozen=True)
class Option:
    """One setting: its name, type, default and help line, and the values it takes.

    The default always passes the checks, so it may stand for "not given" (`""`, or 0 where the range begins at 2).
    """

    name: str
    type: Any
    default: Any  # dataclasses.MISSING where there is none
    help: str
    range: Range | None = None
    choices: tuple[Any, ...] = ()
    only_with: tuple[OnlyWith, ...] = ()


def options_of(owner: Callable[..., Any]) -> list[Option]:
    """Return the settings of a dataclass (its `Annotated` fields) or of a class or function (its keyword-only
    arguments), in their order.

    A constructor that takes `**options` passes them on to the base class, whose settings then come first.

    Raises:
        TypeError: if a keyword-only argument has no help line.
    """
    if isinstance(owner, type) and dataclasses.is_dataclass(owner):
        hints = get_type_hints(owner, include_extras=True)
        fields = [(field.name, field.default) for field in dataclasses.fields(owner)]
        return [_option(name, hints[name], default) for name, default in fields if _annotated(hints[name])]
    function: Callable[..., Any] = owner.__init__ if isinstance(owner, type) else owner  # type: ignore[misc]
    hints = get_type_hints(function, include_extras=True)
    options: list[Option] = []
    for argument in inspect.signature(function).parameters.values():
        if argument.kind is argument.VAR_KEYWORD and isinstance(owner, type) and owner.__base__ is not None:
            options[:0] = options_of(owner.__base__)
        elif argument.kind is argument.KEYWORD_ONLY:
            if not _annotated(hints.get(argument.name)):
                raise TypeError(f"{owner.__qualname__}: {argument.name} has no help line")
            default = dataclasses.MISSING if argument.default is argument.empty else argument.default
            options.append(_option(argument.name, hints[argument.name], default))
    return options


def _annotated(hint: Any) -> bool:
    return get_origin(hint) is Annotated


def _option(name: str, hint: Any, default: Any) -> Option:
    type_, help_, *more = get_args(hint)
    choices = get_args(type_) if get_origin(type_) is Literal else ()
    range_ = None
    for item in more:
        if isinstance(item, Range):
            range_ = item
        elif isinstance(item, Choices):
            choices = item.listed()
    only_with = tuple(item for item in more if isinstance(item, OnlyWith))
    return Option(name, type_, default, help_, range_, choices, only_with)


def check_options(options: Iterable[Option], values: Mapping[str, Any]) -> None:
    """Check `values`, by setting name, against the ranges and choices of `options`. Settings without a value, and
    values without a setting, are ignored.

    Raises:
        ValueError: one sentence about the first value that is out of range, not one of the choices, or NaN or infinite.
    """
    for option in options:
        if option.name not in values:
            continue
        value = values[option.name]
        if type(value) is type(option.default) and value == option.default:
            continue
        if option.choices:
            one_of(option.name, value, option.choices)
        elif option.range is not None or option.type in (int, float):
            _in_range(option.name, value, option.range)


def check_effects(options: Iterable[Option], values: Mapping[str, Any], defaults: Mapping[str, Any]) -> None:
    """Check that settings which were changed have an effect beside the others. `values` are by setting name, `defaults`
    those that take precedence over the declared ones.

    Raises:
        ValueError: one sentence about the first one that has none, or whose value is wrong besides.
    """
    for option in options:
        value = values[option.name]
        if value == defaults.get(option.name, option.default):
            continue
        for only in option.only_with:
            other = values.get(only.name)
            if only.name not in values or other in only:
                continue
            check_options([option], values)
            flag = f"--no-{option.name}" if value is False else f"--{option.name}"
            given = "" if option.type is bool else f" {shorten(str(value))}"
            value_of = f" {shorten(str(other))}" if other and other is not True else ""
            beside = f"{'with' if other else 'without'} --{only.name}{value_of}"
            fix = "leave one of them out" if only.off else f"pass {only}, or leave it out"
            raise ValueError(f"{flag}{given} has no effect {beside}: {fix}")


class Checked:
    """A dataclass that checks its values against their annotations; raises ValueError."""

    def __post_init__(self) -> None:
        check_options(options_of(type(self)), vars(self))


def between(name: str, value: float, low: float, high: float = math.inf, *, why: str = "") -> None:
    """Check that `value` of the setting `name` is finite and lies from `low` to `high`; `why` explains the bounds.

    Raises:
        ValueError: if it does not.
    """
    _in_range(name, value, Range(low, high), why)


def _in_range(name: str, value: Any, range_: Range | None, why: str = "") -> None:
    if not isinstance(value, (int, float)):
        raise ValueError(f"--{name} {shorten(repr(value))} is not a number")
    if value not in (range_ or Range(-math.inf, above=True)):
        takes = "a finite number" if range_ is None else f"a number {range_}"
        reason = f", {why}" if why else ""
        raise ValueError(f"--{name} {_number(value)} is out of range: it takes {takes}{reason}")


def one_of(name: str, value: Any, choices: Iterable[Any]) -> None:
    """Check that `value` of the setting `name` is one of `choices`.

    Raises:
        ValueError: if it is not.
    """
    choices = tuple(choices)
    if value not in choices:
        raise ValueError(f"--{name} {shorten(repr(value))} is not one of: {', '.join(map(str, choices))}")


def help_of(option: Option) -> str:
    """Return the help line, followed by the choices or the range, and by what the setting depends on."""
    parts = [option.help]
    if option.choices:
        parts.append(f"one of: {', '.join(map(str, option.choices))}")
    elif option.range:
        parts.append(str(option.range))
    parts += [f"{'not' if only.off else 'only'} with {only}" for only in option.only_with]
    return "; ".join(parts)


def _number(value: float) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    if abs(value) < 10**100:
        return str(int(value))
    return f"a number of about {value.bit_length() * 3 // 10} digits"  # Python refuses to print a very long one
