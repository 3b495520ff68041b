"""Strict reading of YAML files: texts, lists and dictionaries, with nothing lost or converted.

PyYAML's safe loader turns a class called `on` into True and keeps only the last of two entries with one name. So only
its parser is used here: every value stays the text that is written, and what would be lost is refused.
"""

from pathlib import Path
from typing import Any

import yaml

from dataloaders.annotations import read_text
from dataloaders.quoting import quoted, shorten

LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the one in C is ten times as fast
NULL = "tag:yaml.org,2002:null"
PLAIN = {
    f"tag:yaml.org,2002:{name}"
    for name in ("bool", "float", "int", "map", "merge", "null", "seq", "str", "timestamp", "value")
}


def read_yaml(path: Path, flag: str) -> Any:
    """Read a YAML file, as `parse_yaml` does; raises ValueError, and FileNotFoundError for a missing file."""
    text = read_text(path, flag)
    try:
        return parse_yaml(text)
    except ValueError as error:
        raise ValueError(f"{flag} {path} is {error}: correct it.") from error


def parse_yaml(text: str) -> Any:
    """Return the content of a YAML text: str, list and dict with keys of str. Null and nothing are "".

    Raises:
        ValueError: "not valid YAML (why)"; also for several documents, two entries with one name, a key that is no
            text, a tag (`!...`), and a value that is used twice (`&name` and `*name`).
    """
    try:
        node = yaml.compose(text, Loader=LOADER)
        return "" if node is None else _content(node, set())
    except RecursionError as error:
        raise ValueError("not valid YAML (it is nested too deeply)") from error
    except yaml.MarkedYAMLError as error:
        line = "" if error.problem_mark is None else f"line {error.problem_mark.line + 1}: "
        raise ValueError(f"not valid YAML ({line}{shorten(str(error.problem or error.context))})") from error
    except yaml.YAMLError as error:  # a character that YAML does not allow
        raise ValueError(f"not valid YAML ({shorten(' '.join(str(error).split()))})") from error


def _content(node: yaml.Node, seen: set[int]) -> Any:
    if id(node) in seen:
        raise _refused(node, "a value is used twice (&name, *name); write it out")
    seen.add(id(node))
    if node.tag not in PLAIN:
        raise _refused(node, f"the tag {quoted(node.tag)} is not read")
    if isinstance(node, yaml.ScalarNode):
        return "" if node.tag == NULL else node.value
    if isinstance(node, yaml.SequenceNode):
        return [_content(item, seen) for item in node.value]
    found: dict[str, Any] = {}
    for key, value in node.value:
        if not isinstance(key, yaml.ScalarNode):
            raise _refused(key, "a key is not a text")
        if key.value in found:
            raise _refused(key, f"there are two entries {quoted(key.value)}")
        found[key.value] = _content(value, seen)
    return found


def _refused(node: yaml.Node, fault: str) -> ValueError:
    return ValueError(f"not valid YAML here (line {node.start_mark.line + 1}: {fault})")
