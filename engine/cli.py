"""Reads settings from a command line: one flag per dataclass field and per option of the chosen method."""

import argparse
import difflib
import inspect
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, NoReturn, get_origin, get_type_hints

from dataloaders.quoting import quoted, shorten
from engine.checkpoint import known_header
from engine.config import Config, ModelConfig, TaskSettings, sections_with
from engine.flags import finite_float
from modules.methods import METHODS, method_options, why_unknown
from modules.options import Option, check_effects, help_of, options_of


class _Parser(argparse.ArgumentParser):
    """An argparse parser that reports a mistake as a ValueError of one sentence, without a page of usage."""

    def error(self, message: str) -> NoReturn:
        raise ValueError(f"{shorten(message, 300)}; --help lists the flags")


def _add_flag(group: Any, option: Option, default: Any) -> None:
    # The settings check annotated choices and ranges themselves, so flags and Python callers get the same message.
    literal = get_origin(option.type) is Literal  # argparse lists and checks these choices
    help_ = help_of(replace(option, choices=()) if literal else option).replace("%", "%%")
    help_ += "" if default in ("", False) else f" (default: {default})"
    if option.type is bool:
        group.add_argument(f"--{option.name}", action=argparse.BooleanOptionalAction, default=default, help=help_)
    else:
        type_ = type(default) if literal else finite_float if option.type is float else option.type
        choices = option.choices if literal else None
        group.add_argument(f"--{option.name}", type=type_, choices=choices, default=default, help=help_)


def _refuse_unknown(unknown: Sequence[str], method: str, parser: argparse.ArgumentParser) -> NoReturn:
    flag = shorten(unknown[0].split("=")[0])
    if flag.startswith("--") and (reason := why_unknown(method, flag[2:])):
        raise ValueError(f"{flag} {reason}")
    known = [string for action in parser._actions for string in action.option_strings]
    close = difflib.get_close_matches(flag, known, n=1)
    hint = f"did you mean {close[0]}?" if close else "--help lists the flags"
    raise ValueError(f"unknown argument {flag}; {hint}")


def parse_config(argv: Sequence[str] | None, task: type[TaskSettings]) -> Config:
    """Read the command line (`sys.argv` if None) of a program for a task with these settings.

    When a checkpoint is evaluated, its settings are the defaults.

    Raises:
        ValueError: one sentence about the first unknown flag, wrong value or contradiction.
        FileNotFoundError: the checkpoint does not exist.
    """
    sections = sections_with(task)
    own = settings_of_checkpoint(argv, sections)
    values = parse_flags(sections, own.get("method", ModelConfig.method), argv, own)
    _refuse_other_lists(values, own, task)
    return Config.from_flat(values, task)


def _refuse_other_lists(values: Mapping[str, Any], own: Mapping[str, Any], task: type[TaskSettings]) -> None:
    """Refuse a list of videos that the reader of the data set leaves to `other_flags`: its lists have fixed names."""
    kind = values["datatype"]
    taken = inspect.signature(task.readers[kind]).parameters if kind in task.readers else ()
    for name in ("train_csv", "val_csv"):
        if "other_flags" in taken and name not in taken and values[name] not in ("", own.get(name)):
            raise ValueError(f"--{name} is not for --datatype {kind}, which has its own lists: leave it out")


def settings_of_checkpoint(argv: Sequence[str] | None, sections: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a checkpoint to evaluate was trained with, without its run's settings; {} if there is none."""
    first = _Parser(add_help=False, allow_abbrev=False)
    first.add_argument("--init_model", default="")
    first.add_argument("--do_train", action=argparse.BooleanOptionalAction)
    first.add_argument("--datatype")
    known = first.parse_known_args(argv)[0]
    if known.do_train or not known.init_model.endswith(".safetensors"):
        return {}
    header, task = known_header(Path(known.init_model)), sections["task"]
    check_kinds(known.init_model, header.settings, sections)
    not_taken = {option.name for option in options_of(sections["run"])} | {"init_model", *task.of_the_run}
    if header.task != task.task:  # another task's data set and training settings do not apply here
        not_taken |= {option.name for section in ("task", "optim") for option in options_of(sections[section])}
    if header.task != task.task or known.datatype not in (None, header.settings.get("datatype")):
        not_taken |= {"data_path", "features_path", "train_csv", "val_csv", *task.places}
    return {name: value for name, value in header.settings.items() if name not in not_taken}


def check_kinds(path: str, settings: Mapping[str, Any], sections: Mapping[str, Any]) -> None:
    """Check that each setting in a checkpoint's header is of its flag's kind; raises ValueError."""
    hints = [get_type_hints(section) for section in sections.values()]  # Annotated[int, ...] is int here
    kinds = {name: kind for section in hints for name, kind in section.items()}
    method = settings.get("method")
    if isinstance(method, str) and method in METHODS:
        kinds |= {option.name: option.type for option in method_options(METHODS[method])}
    for name, value in settings.items():
        kind = kinds.get(name)
        if kind in (bool, int, float, str) and type(value) not in ((int, float) if kind is float else (kind,)):
            raise ValueError(
                f"{path}: is not a complete checkpoint of this project (its setting {name} is {quoted(value)}, not of "
                f"type {kind.__name__}); pass an unchanged one"
            )


def parse_flags(
    sections: Mapping[str, Any],
    default_method: str,
    argv: Sequence[str] | None = None,
    defaults: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Return values by flag name: the settings of the classes `sections`, by title, and the options of `--method`.

    `defaults` take precedence over the declared defaults.

    Raises:
        ValueError: one sentence about the first unknown flag, value of a wrong type, or flag without effect.
    """
    first = _Parser(add_help=False, allow_abbrev=False)
    first.add_argument("--method", default=default_method)
    method = first.parse_known_args(argv)[0].method

    defaults = defaults or {}
    parser = _Parser(allow_abbrev=False)
    about = {cls: None if cls.__doc__.startswith(f"{cls.__name__}(") else cls.__doc__ for cls in sections.values()}
    groups: list[Any] = [(section, about[cls], options_of(cls)) for section, cls in sections.items()]
    # The settings refuse an unknown method later; here it has no options.
    groups.append((f"method {method}", None, method_options(METHODS[method]) if method in METHODS else []))
    known: set[str] = set()
    for title, about, options in groups:
        group = parser.add_argument_group(title, about)
        for option in options:
            if option.name not in known:
                _add_flag(group, option, defaults.get(option.name, option.default))
                known.add(option.name)

    namespace, unknown = parser.parse_known_args(argv)
    if unknown:
        _refuse_unknown(unknown, method, parser)
    check_effects((option for *_, options in groups for option in options), vars(namespace), defaults)
    return vars(namespace)
