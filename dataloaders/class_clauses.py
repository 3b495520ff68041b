"""What was written about the classes of a data set to enrich their texts: three YAML files of STDD (AAAI 2025, arXiv
2412.09895; github.com/Mia-YatingYu/STDD), whose order is that of the classes.

    labels     classes: [..], templates: [..] with {} for the name; optionally obj_templates: [..]
    graph      for each class what it involves: objects and sub-actions, and triples `<a, relation, b>` of them
    clauses    for each class one clause a triple, as in `peel orange, which uses a knife`

    peel orange:                                    peel orange:
      label: peel orange                              label: peel orange
      obj_en_li: [orange, thumb]                      xprompt_oo: [where a thumb presses the orange]
      obj_rel_triples: ["<thumb, presses, orange>"]   xprompt_ao: [which uses a knife]
      act_obj_triples: [...]                          xprompt_aa: [...]
      sub_act_en_li: [...]
      act_rel_triples: [...]

A file is checked class by class: position and name, and every list. Each fault is named with its class and item.
Language models leave faults in long files, so a reader takes the number of faults that it may only log (`allowed`).
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from dataloaders.annotations import log
from dataloaders.classes import by_name, normalised
from dataloaders.quoting import quoted, some
from dataloaders.yaml_files import read_yaml

LABELS, GRAPH, CLAUSES = "--labels", "--graph", "--clauses"  # flags that name the files
# The field of clauses that belongs to a field of triples: of two objects, an action and an object, two actions.
CLAUSES_OF = {"obj_rel_triples": "xprompt_oo", "act_obj_triples": "xprompt_ao", "act_rel_triples": "xprompt_aa"}
GRAPH_FIELDS = ("obj_en_li", "obj_rel_triples", "act_obj_triples", "sub_act_en_li", "act_rel_triples")
CLAUSE_FIELDS = tuple(CLAUSES_OF.values())
PLACE = "{}"  # of the name in a template
SHOWN = 5

Lists = dict[str, tuple[str, ...]]  # by field


class Labels(NamedTuple):
    """The content of a file of labels: K classes in their order, and templates for their texts."""

    classes: tuple[str, ...]
    templates: tuple[str, ...]
    object_templates: tuple[str, ...] = ()


class Faults:
    """Collects what is wrong in a file, so that one message can name all of it."""

    def __init__(self) -> None:
        self.found: list[str] = []

    def add(self, fault: str) -> None:
        self.found.append(fault)

    def check(self, where: str, allowed: int, fate: str = "left out or taken by position") -> None:
        """Log the faults, and what happens to them, if they are no more than `allowed`; else raise ValueError."""
        if len(self.found) > allowed:
            more = f"; and {len(self.found) - SHOWN:,} more" if len(self.found) > SHOWN else ""
            raise ValueError(
                f"{where} has {len(self.found)} faults ({'; '.join(self.found[:SHOWN])}{more}): correct them, or pass "
                f"--allow_faults {len(self.found)}; then they are {fate}."
            )
        for fault in self.found:
            log.warning("attention: %s: %s; this is %s", where, fault, fate)


def read_label_file(path: Path, flag: str = LABELS) -> Labels:
    """Read a YAML file of labels; raises FileNotFoundError, and ValueError for any fault."""
    content, where, faults = read_yaml(path, flag), f"{flag} {path}", Faults()
    if not isinstance(content, dict):
        raise ValueError(f"{where} has no entries `classes` and `templates`: add them.")
    optional = ("obj_templates",) if "obj_templates" in content else ()
    lists = check_lists(content, ("classes", "templates", *optional), "", faults)
    for field in ("templates", *optional):
        for template in lists[field]:
            if template.count(PLACE) != 1:
                faults.add(f"{field}: {quoted(template)} has {template.count(PLACE)} times {PLACE} instead of once")
    faults.check(where, 0)
    by_name(lists["classes"], where)
    if len(set(lists["classes"])) < len(lists["classes"]):
        raise ValueError(f"{where} has a class twice: leave one of them out.")
    return Labels(lists["classes"], lists["templates"], lists.get("obj_templates", ()))


def read_graph(
    path: Path, names: Sequence[str] | None, allowed: int = 0, flag: str = GRAPH
) -> tuple[tuple[str, ...], list[Lists]]:
    """Return the names of the K classes and for each the lists of `GRAPH_FIELDS`.

    Args:
        names: the classes of the data set in their order; None: those of the file.
        allowed: so many faults are logged and left out.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is of another kind, numbers the classes in another order, lacks one, or has more faults.
    """
    faults, found = Faults(), []
    keys, entries = _entries(read_yaml(path, flag), names, f"{flag} {path}", faults)
    for name, entry in entries:
        found.append(check_graph(entry, name, faults))
    faults.check(f"{flag} {path}", allowed)
    return keys, found


def read_clauses(
    path: Path,
    names: Sequence[str] | None,
    allowed: int = 0,
    graphs: Sequence[Lists] | None = None,
    flag: str = CLAUSES,
) -> tuple[tuple[str, ...], list[Lists]]:
    """Return the names of the K classes and for each the lists of `CLAUSE_FIELDS`.

    As `read_graph`; with the `graphs` of the classes, each must also have as many clauses as triples.
    """
    faults, found = Faults(), []
    keys, entries = _entries(read_yaml(path, flag), names, f"{flag} {path}", faults)
    for number, (name, entry) in enumerate(entries):
        found.append(check_lists(entry, CLAUSE_FIELDS, name, faults, ("label",)))
        if graphs is not None:
            check_counts(found[-1], graphs[number], name, faults)
    faults.check(f"{flag} {path}", allowed)
    return keys, found


def check_graph(entry: Any, name: str, faults: Faults) -> Lists:
    """Return the well-formed items of a class's graph; the others are faults."""
    lists = check_lists(entry, GRAPH_FIELDS, name, faults, ("label",))
    for field in CLAUSES_OF:
        lists[field] = tuple(text for text in lists[field] if _is_triple(text, f"{_of(name)}{field}", faults))
    return lists


def check_counts(clauses: Lists, graph: Lists, name: str, faults: Faults) -> None:
    """Note each list of clauses that has not as many as the graph has triples."""
    for triples, field in CLAUSES_OF.items():
        if len(clauses[field]) != len(graph[triples]):
            faults.add(f"{_of(name)}{field}: has {len(clauses[field])} clauses for {len(graph[triples])} triples")


def check_lists(entry: Any, fields: Sequence[str], name: str, faults: Faults, others: Sequence[str] = ()) -> Lists:
    """Return the texts of an entry's lists without surrounding space; what is no text, empty or missing is a fault.

    `others` are fields that the entry may have besides.
    """
    if not isinstance(entry, Mapping):
        faults.add(f"{_of(name)}has {quoted(entry)} and not the fields {', '.join(fields)}")
        return dict.fromkeys(fields, ())
    for field in [field for field in entry if field not in (*fields, *others)]:
        faults.add(f"{_of(name)}has the unknown field {quoted(field)}")
    return {field: _texts(entry.get(field), f"{_of(name)}{field}", faults) for field in fields}


def _texts(items: Any, where: str, faults: Faults) -> tuple[str, ...]:
    if items is None or items in ("", []):
        faults.add(f"{where} is {'missing' if items is None else 'empty'}")
        return ()
    if not isinstance(items, list):
        faults.add(f"{where} is {quoted(items)} and not a list")
        return ()
    texts = []
    for number, item in enumerate(items, 1):
        if isinstance(item, str) and item.strip():
            texts.append(" ".join(item.split()))
        else:
            fault = "is empty" if isinstance(item, str) else f"is {quoted(item)} and no text"
            faults.add(f"{where}, item {number}, {fault}")
    return tuple(texts)


def _is_triple(text: str, where: str, faults: Faults) -> bool:
    """Return whether a text is `<a, relation, b>`."""
    fields = text[1:-1].split(",") if text.startswith("<") and text.endswith(">") else []
    if len(fields) == 3 and all(field.strip("<> ") for field in fields):
        return True
    faults.add(f"{where}: {quoted(text)} is not of the form <a, relation, b>")
    return False


def _of(name: str) -> str:
    return f"class {quoted(name)}, " if name else ""


def _entries(
    content: Any, names: Sequence[str] | None, where: str, faults: Faults
) -> tuple[tuple[str, ...], Iterator[tuple[str, Any]]]:
    """Return the names of the classes, and an iterator over (name, entry), after checking positions and names."""
    if not isinstance(content, dict) or not content:
        raise ValueError(f"{where} has no entry for a class: write one for each, in their order.")
    by_name(content, where)
    names = tuple(content) if names is None else tuple(names)
    place = {normalised(name): number for number, name in enumerate(names)}
    if len(content) != len(names):
        lacking = [name for name in names if normalised(name) not in set(map(normalised, content))]
        surplus = [key for key in content if normalised(key) not in place]
        raise ValueError(
            f"{where} has {len(content)} classes and the data set {len(names)} (it lacks {some(lacking) or 'none'}; "
            f"not in the data set: {some(surplus) or 'none'}): pass the file that belongs to it."
        )
    for number, (key, name) in enumerate(zip(content, names, strict=True)):
        if (other := place.get(normalised(key))) is None:
            faults.add(f"class {number} is called {quoted(key)} there and {quoted(name)} in the data set")
        elif other != number:
            raise ValueError(
                f"{where} has {quoted(key)} in position {number}, where the data set has {quoted(name)}: the order is "
                "that of the classes, so correct it."
            )
    return names, _labelled(content, names, faults)


def _labelled(content: Mapping[str, Any], names: Sequence[str], faults: Faults) -> Iterator[tuple[str, Any]]:
    for (key, entry), name in zip(content.items(), names, strict=True):
        label = entry.get("label", key) if isinstance(entry, dict) else key
        if not isinstance(label, str) or normalised(label) not in (normalised(key), normalised(name)):
            faults.add(f"{_of(name)}label is {quoted(label)}")
        yield name, entry
