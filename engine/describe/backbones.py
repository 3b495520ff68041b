"""Lists the backbones that run here, by name, and which methods run on which family; needs no weights.

The names are our own and those of open_clip's registry. Names whose networks are equal, so that they differ in nothing
but their weights, are one row.
"""

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from textwrap import wrap
from typing import Any, NamedTuple

from torch import nn

from modules.backbones import ARCHITECTURES, STATISTICS, Backbone
from modules.clip import CLIP
from modules.clip_weights import backbone_of
from modules.methods import METHODS
from modules.open_clip_names import PREFIX, registered_names
from modules.undrawn import undrawn

# Licences of weights by the start of open_clip's tag, and where each is stated. Weights without one here have it in
# their repository.
LICENCES = {
    "openai": ("MIT", "github.com/openai/CLIP, LICENSE"),
    "meta": ("Apache-2.0", "timm's registry, vit_pe_core_*.fb"),
    "webli": ("Apache-2.0", "timm's registry, vit_*_siglip_*.webli and .v2_webli"),
    "metaclip": ("CC-BY-NC-4.0", "timm's registry, vit_*_clip_*.metaclip_*"),
    "dfn": ("Apple's, apple-ascl", "timm's registry, vit_*_clip_*.dfn2b and .dfn5b"),
}
# One backbone of each family: what its methods are is the same for all of its sizes.
FAMILIES = {
    "CLIP": "ViT-B/32",
    "MetaCLIP 2": "open_clip:ViT-H-14-worldwide/metaclip2_worldwide",
    "Perception Encoder": "open_clip:PE-Core-B-16/meta",
    "SigLIP, SigLIP 2": "open_clip:ViT-B-32-SigLIP2-256/webli",
}
OF_SIZES = ("equal depth",)  # needs that some sizes of a family meet and others do not
HEADER = (
    "name", "params (vision)", "px/patch/width", "class", "pool", "activation", "pixels", "words", "methods"
)  # fmt: skip
COLUMNS = 120  # of a line below a row
NOTES = """
Columns: parameters of the whole and of the vision tower, in millions; pixels of a side, of a patch, and width of the
vision tower; whether there is a class token; what the vision tower is read by; activation (of both towers if they
differ); mean and deviation as in --clip_statistics, and how pictures are resized: crop (short side and middle square)
or squash; longest text in tokens; how many methods run on it.
Below a name are its other names, and the tags of open_clip:NAME/TAG with the licence of the weights where it is known;
of others see their repository.
Sizes can exclude more methods with their default options, such as an odd grid (stdd), few blocks or a short context;
the message says what to change.
"""


@dataclass
class Supported:
    """A network and its names: `names` are models of open_clip or our own names, and `tags` are those of the former."""

    backbone: Backbone
    names: list[str] = field(default_factory=list)
    tags: list[str] = field(default_factory=list)


class Listing(NamedTuple):
    """The networks that run, and the names of open_clip's models that do not, by reason."""

    supported: list[Supported]
    refused: dict[str, list[str]]


def listing() -> Listing:
    """Ask for every name; imports open_clip, which takes seconds."""
    by_hash: dict[str, Supported] = {}
    refused: dict[str, list[str]] = {}
    runs: set[str] = set()
    for name, tag in (*((name, "") for name in ARCHITECTURES), *registered_names()):
        try:
            backbone = backbone_of(f"{PREFIX}{name}/{tag}" if tag else name)
        except ValueError as error:
            refused.setdefault(short_reason(str(error)), []).append(name)
            continue
        runs.add(name)
        row = by_hash.setdefault(backbone.sha256(), Supported(backbone))
        row.names += [name] if name not in row.names else []
        row.tags += [tag] if tag and tag not in row.tags else []
    left = {reason: [name for name in dict.fromkeys(names) if name not in runs] for reason, names in refused.items()}
    return Listing(sorted(by_hash.values(), key=_order), {reason: names for reason, names in left.items() if names})


def _order(row: Supported) -> tuple[bool, str]:
    return not any(name in ARCHITECTURES for name in row.names), row.names[0].lower()


def short_reason(message: str) -> str:
    """Return why a model is refused in a few words, such as "a vision tower of timm (convnext)".

    A message names all that is not supported; the count has the part that says most.
    """
    parts = message.partition("it has ")[2].partition("; only")[0]
    for part in ("a ResNet as vision tower", "CoCa's text decoder", "a text tower of Hugging Face"):
        if part in parts:
            return part
    if tower := re.search(r"a vision tower of timm \(timm_model_name ([a-z]+)", parts):
        return f"a vision tower of timm ({tower[1]})"
    if "another tokenizer" in parts:
        return "another tokenizer"
    return parts.split(", ")[0] or message


def licence_of(tag: str) -> str | None:
    """Return the licence of the weights of a tag; None where it is not known here."""
    starts = [start for start in LICENCES if tag.startswith(start)]
    return LICENCES[max(starts, key=len)][0] if starts else None


def methods_of(backbone: Backbone) -> list[str]:
    """Return the methods that are defined on a backbone."""
    return [name for name, method in METHODS.items() if not backbone.architecture.lacks(method.needs)]


def facts_of(row: Supported) -> dict[str, Any]:
    """Return a row for JSON; parameters are counted on modules without values."""
    a, p = row.backbone.architecture, row.backbone.preprocessing
    with undrawn():
        clip = CLIP(a, row.backbone)
    activations = a.vision.activation or a.activation, a.text.activation or a.activation
    statistics = next((name for name, pair in STATISTICS.items() if pair == (p.mean, p.std)), "other")
    return {
        "names": row.names,
        "tags": {tag: licence_of(tag) for tag in row.tags},
        "parameters": _count(clip),
        "vision_parameters": _count(clip.visual),
        "image_size": a.image_size,
        "patch_size": a.patch_size,
        "vision_width": a.vision_width,
        "class_token": a.vision.class_token,
        "pool": a.vision.pool,
        "activation": {"vision": activations[0], "text": activations[1]},
        "statistics": statistics,
        "mean": list(p.mean),
        "std": list(p.std),
        "resize_mode": p.resize_mode,
        "interpolation": p.interpolation,
        "context_length": a.context_length,
        "similarity": row.backbone.similarity,
        "methods": methods_of(row.backbone),
    }


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def as_json(found: Listing) -> dict[str, Any]:
    """Return all of it for JSON."""
    licences = {start: {"licence": licence, "source": source} for start, (licence, source) in LICENCES.items()}
    rows = [facts_of(row) for row in found.supported]
    return {"backbones": rows, "not_supported": found.refused, "licences_by_start_of_tag": licences}


def table(found: Listing) -> str:
    """Return the list as plain columns, with the tags of each row below it."""
    legend: dict[tuple[str, ...], str] = {}
    facts = [facts_of(row) for row in found.supported]
    cells = [_cells(of_row, legend) for of_row in facts]
    widths = [max(map(len, column)) for column in zip(HEADER, *cells, strict=True)]
    lines = [_line(HEADER, widths)]
    for row, of_row in zip(cells, facts, strict=True):
        lines += [_line(row, widths), *_wrapped(_below(of_row), "    ")]
    lines.append("")
    for methods, mark in legend.items():
        without = [name for name in METHODS if name not in methods]
        lines += _wrapped(f"({mark}) all but {', '.join(without)}", "")
    return "\n".join([*lines, *NOTES.strip().splitlines(), "", *_wrapped(summary(found), "")])


def _below(facts: dict[str, Any]) -> str:
    """Return other names and tags of a row."""
    also = f"also {', '.join(facts['names'][1:])}; " if facts["names"][1:] else ""
    return also + ", ".join(f"{tag} ({licence})" if licence else tag for tag, licence in facts["tags"].items())


def _wrapped(text: str, indent: str) -> list[str]:
    return wrap(text, COLUMNS, initial_indent=indent, subsequent_indent=indent, break_on_hyphens=False)


def _cells(facts: dict[str, Any], legend: dict[tuple[str, ...], str]) -> tuple[str, ...]:
    methods = tuple(facts["methods"])
    if len(methods) < len(METHODS):
        legend.setdefault(methods, chr(ord("a") + len(legend)))
    vision, text = facts["activation"].values()
    resize = "crop" if facts["resize_mode"] == "shortest" else "squash"
    return (
        facts["names"][0],
        f"{facts['parameters'] / 1e6:.1f} ({facts['vision_parameters'] / 1e6:.1f})",
        f"{facts['image_size']}/{facts['patch_size']}/{facts['vision_width']}",
        "yes" if facts["class_token"] else "no",
        facts["pool"].removesuffix(" token"),
        vision if vision == text else f"{vision}, {text}",
        f"{facts['statistics']}, {resize} {facts['interpolation']}",
        str(facts["context_length"]),
        f"{len(methods)} ({legend[methods]})" if methods in legend else f"all {len(methods)}",
    )


def _line(cells: Iterable[str], widths: list[int]) -> str:
    return "  ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)).rstrip()


def summary(found: Listing) -> str:
    """Return how many models of open_clip run, and how many do not and why, in one line."""
    models = {name for row in found.supported for name in row.names if name not in ARCHITECTURES}
    reasons = Counter({reason: len(names) for reason, names in found.refused.items()})
    why = "; ".join(f"{reason} ({count})" for reason, count in reasons.most_common())
    return (
        f"{len(models)} of open_clip's models with published weights run here, {reasons.total()} do not, because they "
        f"have {why}."
    )


def families() -> str:
    """Return which methods run on which family, as a Markdown table. What depends on sizes alone is left out."""
    lacking = {family: backbone_of(name).architecture.lacks for family, name in FAMILIES.items()}
    lines = [f"| method | {' | '.join(FAMILIES)} |", "|---" * (1 + len(FAMILIES)) + "|"]
    for name, method in METHODS.items():
        needs = [need for need in method.needs if need not in OF_SIZES]
        cells = [f"no: {', '.join(lacks)}" if (lacks := of(needs)) else "yes" for of in lacking.values()]
        lines.append(f"| `{name}` | {' | '.join(cells)} |")
    return "\n".join(lines)
