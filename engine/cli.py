"""From command line to settings: one flag for each dataclass field and for each option of the chosen method."""

import argparse
import difflib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn, TypeVar, get_args, get_origin, get_type_hints

from dataloaders.quoting import quoted, shorten
from engine.checkpoint import read_header
from engine.config import SECTIONS, Config
from engine.errors import explained, one_sentence
from engine.flags import finite_float
from engine.messages import print_error
from modules.methods import METHODS, method_options

Settings = TypeVar("Settings")


class _Parser(argparse.ArgumentParser):
    """argparse whose mistakes are one sentence (`ValueError`) and not a page of usage."""

    def error(self, message: str) -> NoReturn:
        raise ValueError(f"{shorten(message, 300)}; --help lists the flags")


def _add_flag(group: Any, name: str, type_: Any, default: Any, help_: str) -> None:
    help_ = help_.replace("%", "%%") + ("" if default in ("", False) else f" (default: {default})")
    if type_ is bool:
        group.add_argument(f"--{name}", action=argparse.BooleanOptionalAction, default=default, help=help_)
    elif get_origin(type_) is Literal:
        group.add_argument(f"--{name}", type=type(default), choices=get_args(type_), default=default, help=help_)
    else:
        type_ = finite_float if type_ is float else type_
        group.add_argument(f"--{name}", type=type_, default=default, help=help_)


def _refuse_unknown(unknown: Sequence[str], method: str, parser: argparse.ArgumentParser) -> NoReturn:
    flag = shorten(unknown[0].split("=")[0])
    owners = [name for name, cls in METHODS.items() if flag[2:] in {option.name for option in method_options(cls)}]
    if flag.startswith("--") and owners:
        raise ValueError(f"{flag} is a setting of --method {', '.join(owners)}, and the method here is {method}")
    known = [string for action in parser._actions for string in action.option_strings]
    close = difflib.get_close_matches(flag, known, n=1)
    hint = f"did you mean {close[0]}?" if close else "--help lists the flags"
    raise ValueError(f"unknown argument {flag}; {hint}")


def parse_config(argv: Sequence[str] | None = None) -> Config:
    """Read the command line (`sys.argv` by default). To evaluate a checkpoint, its own settings are the defaults.

    Raises:
        ValueError: one sentence about the first unknown flag, wrong value or contradiction.
        FileNotFoundError: if the checkpoint to evaluate is not there.
    """
    own = settings_of_checkpoint(argv)
    return Config.from_flat(parse_flags(SECTIONS, own.get("method", SECTIONS["model"].method), argv, own))


def settings_of_checkpoint(argv: Sequence[str] | None) -> dict[str, Any]:
    """The settings that the checkpoint on the command line was trained with, but those of the run, such as its folder;
    none where there is no checkpoint of this project, or where it is to be trained on."""
    first = _Parser(add_help=False, allow_abbrev=False)
    first.add_argument("--init_model", default="")
    first.add_argument("--do_train", action=argparse.BooleanOptionalAction)
    known = first.parse_known_args(argv)[0]
    if known.do_train or not known.init_model.endswith(".safetensors"):
        return {}
    of_the_run = {item.name for item in fields(SECTIONS["run"])} | {"init_model"}
    settings = read_header(Path(known.init_model)).settings
    _check_kinds(known.init_model, settings)
    return {name: value for name, value in settings.items() if name not in of_the_run}


def _check_kinds(path: str, settings: Mapping[str, Any]) -> None:
    """Whether each setting in a checkpoint's header is of its flag's kind; ValueError if another program wrote it."""
    hints = [get_type_hints(section) for section in SECTIONS.values()]  # Annotated[int, ...] is int here
    kinds = {name: kind for section in hints for name, kind in section.items()}
    method = settings.get("method")
    if isinstance(method, str) and method in METHODS:
        kinds |= {option.name: option.type for option in method_options(METHODS[method])}
    for name, value in settings.items():
        kind = kinds.get(name)
        if kind in (bool, int, float, str) and type(value) not in ((int, float) if kind is float else (kind,)):
            raise ValueError(
                f"{path}: is no whole checkpoint of this project (its setting {name} is {quoted(value)} and no "
                f"{kind.__name__}); pass one as training wrote it"
            )


def parse_settings(settings: type[Settings], argv: Sequence[str] | None = None) -> Settings:
    """A dataclass of `Annotated` fields from the command line of a benchmark; raises ValueError as `parse_flags`, and
    what `settings` raises itself."""
    return settings(**parse_flags({"benchmark": settings}, "", argv))


def print_report(report: Callable[[], str]) -> int:
    """Print what `report` gives, or one sentence about a mistake; returns the exit code 0 or 2."""
    try:
        print(report())
    except (ValueError, OSError, RuntimeError, MemoryError) as error:
        known = explained(error)
        if known is None:
            raise
        print_error(one_sentence(known))
        return 2
    return 0


def parse_flags(
    sections: Mapping[str, Any],
    default_method: str,
    argv: Sequence[str] | None = None,
    defaults: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Values by flag name: of the `Annotated` fields of the dataclasses `sections`, by title, and of the options of
    `--method`. `defaults` go before the fields' own.

    Raises:
        ValueError: one sentence about the first unknown flag or value of a wrong type.
    """
    first = _Parser(add_help=False, allow_abbrev=False)
    first.add_argument("--method", default=default_method)
    method = first.parse_known_args(argv)[0].method

    defaults = defaults or {}
    parser = _Parser(allow_abbrev=False)
    shared: set[str] = set()
    for section, cls in sections.items():
        group = parser.add_argument_group(section, cls.__doc__)
        hints = get_type_hints(cls, include_extras=True)
        for item in fields(cls):
            if get_origin(hints[item.name]) is Annotated:
                type_, help_ = get_args(hints[item.name])[:2]
                _add_flag(group, item.name, type_, defaults.get(item.name, item.default), help_)
                shared.add(item.name)
    # An unknown method is refused by the section that has it, which knows the choices; it simply has no options here.
    options = method_options(METHODS[method]) if method in METHODS else []
    group = parser.add_argument_group(f"method {method}")
    for option in options:
        if option.name not in shared:
            default = defaults.get(option.name, option.default)
            _add_flag(group, option.name, option.type, default, option.help)

    namespace, unknown = parser.parse_known_args(argv)
    if unknown:
        _refuse_unknown(unknown, method, parser)
    return vars(namespace)
