"""The texts of classes: a name in each of several templates.

Shapes: K classes, P templates.
"""

import os
from collections.abc import Sequence
from pathlib import Path

from dataloaders.quoting import quoted, some
from engine.logger import log
from modules.caption_lengths import count_cut
from modules.tokenizer import Tokenizer

PLACE = "{}"  # of the name in a template


def class_texts(names: Sequence[str], templates: Sequence[str]) -> list[list[str]]:
    """Return K lists of P texts: each class's name in each template, as in `a video of a person {}.`.

    Raises ValueError for a template without one `{}`, and where no template or no class is given.
    """
    if not templates or not names:
        raise ValueError(
            f"class texts need a name and a template, not {len(names)} names in {len(templates)} templates"
        )
    for template in templates:
        if template.count(PLACE) != 1:
            raise ValueError(
                f"the template {quoted(template)} has {template.count(PLACE)} times {PLACE}: write {PLACE} once, where "
                "the name of the class belongs"
            )
    return [[template.replace(PLACE, name) for template in templates] for name in names]


def read_templates(setting: str, default: Sequence[str]) -> tuple[str, ...]:
    """Return the templates that --templates gives: one text, the lines of a file, or `default` if it is empty.

    Raises ValueError for a text without `{}` that is no file either, and for a file without a line or one that is no
    text.
    """
    if not setting:
        return tuple(default)
    if PLACE in setting:
        return (setting,)
    path = Path(setting)
    if not os.path.isfile(setting):  # False also for a text too long to be a name
        raise ValueError(
            f"--templates {quoted(setting)} is no file, and has no {PLACE} where the name of the class belongs: pass a "
            f"text such as 'a video of a person {PLACE}.', or a file with one a line"
        )
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    except UnicodeDecodeError as error:
        raise ValueError(f"--templates {path} is no text file ({error.reason}): write it as UTF-8") from error
    if not lines:
        raise ValueError(f"--templates {path} has no line: write one template a line")
    return tuple(lines)


def check_texts(names: Sequence[str], texts: Sequence[Sequence[str]], tokenizer: Tokenizer, max_words: int) -> None:
    """Log how many class texts `max_words` cuts; check that they have names and no two classes read alike.

    Raises:
        ValueError: the names are only numbers, or all texts of two classes are the same, at once or only after the cut.
    """
    if all(map(str.isdecimal, names)):
        raise ValueError(
            f"the classes are only called {some(names, 3)}, which tells a model nothing: pass --labels_csv or "
            "--class_names with a file of their names, or --classifier linear"
        )
    cut = count_cut((text for own in texts for text in own), tokenizer, max_words)
    log.info(
        "%d texts of %d classes, such as %r; %d lose words at --max_words %d (the longest has %d)", cut.captions,
        len(names), texts[0][0], cut.cut, max_words, cut.longest,
    )  # fmt: skip
    first: dict[tuple[int, ...], str] = {}
    alike = []
    for name, own in zip(names, texts, strict=True):
        other = first.setdefault(tuple(tokenizer(own).flatten().tolist()), name)
        if other is not name:
            alike.append(f"{other} = {name}")
    if alike:
        raise ValueError(
            f"classes read alike at --max_words {max_words}, so no model can tell them apart ({some(alike, 3)}): raise "
            "--max_words, or pass other --class_names or --templates"
        )
