"""The texts of classes that are enriched by clauses, as STDD builds them (AAAI 2025, arXiv 2412.09895).

A class's phrases are its name, and its name with each of its clauses: "peel orange", "peel orange, which uses a knife".
Each phrase stands in each template: "a video of action peel orange, which uses a knife."

Shapes: K classes, P templates, N phrases of the class that has most, M = P N texts of each class.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle, islice

from dataloaders.class_clauses import CLAUSE_FIELDS, PLACE, Lists

# The lists of clauses that a mode takes.
MODES: Mapping[str, tuple[str, ...]] = {
    "name": (),
    "xoo": CLAUSE_FIELDS[:1],
    "xao": CLAUSE_FIELDS[1:2],
    "xaa": CLAUSE_FIELDS[2:],
    "xmix": CLAUSE_FIELDS,
}


@dataclass(frozen=True)
class PromptLists:
    """M texts of each of K classes; text m is phrase m mod N in template m // N.

    `mask` is False for a repeat: a class with fewer than N phrases starts again with its first.
    """

    texts: tuple[tuple[str, ...], ...]
    mask: tuple[tuple[bool, ...], ...]

    def __len__(self) -> int:
        return len(self.texts)


def phrases_of(name: str, clauses: Lists, mode: str) -> tuple[str, ...]:
    """Return the different phrases of a class: the name first, then clauses in the order of their lists.

    The authors' code takes a set, whose order, and so which phrases are repeated, changes from run to run.
    """
    lists = (clauses[field] for field in MODES[mode])
    return tuple(dict.fromkeys([name, *(f"{name}, {clause}" for own in lists for clause in own)]))


def prompt_lists(
    names: Sequence[str], clauses: Sequence[Lists], templates: Sequence[str], mode: str = "xmix"
) -> PromptLists:
    """Return the texts of all classes; `clauses` are the lists of each class, which mode "name" does not read.

    Raises ValueError for an unknown mode, and without a name, a template, or the lists of each class.
    """
    if mode not in MODES:
        raise ValueError(f"{mode!r} is not one of the modes {', '.join(MODES)}: choose one.")
    if not names or not templates or len(clauses) != len(names):
        raise ValueError(
            f"{len(names)} names, {len(clauses)} of them with clauses, do not fit {len(templates)} templates."
        )
    phrases = [phrases_of(name, own, mode) for name, own in zip(names, clauses, strict=True)]
    longest = max(map(len, phrases))
    padded = [tuple(islice(cycle(own), longest)) for own in phrases]
    return PromptLists(
        tuple(tuple(template.replace(PLACE, phrase) for template in templates for phrase in own) for own in padded),
        tuple(tuple(place < len(own) for place in range(longest)) * len(templates) for own in phrases),
    )
