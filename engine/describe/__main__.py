"""Prints tables of all methods and of all backbones; needs no weights.

    python -m engine.describe --table
    python -m engine.describe --table --pretrained_clip_name ViT-B/16 --max_frames 8
    python -m engine.describe --backbones
    python -m engine.describe --families

The table of methods has trained parameters, operations, and parameters that cannot learn. A method that does not fit
the CLIP is listed with the reason. main_task_retrieval.py --describe takes options, too.
"""

import json
import logging
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

from engine.cli import parse_flags
from engine.describe import backbones, describe
from engine.errors import one_sentence, print_report
from modules.clip_weights import architecture_of
from modules.methods import METHODS, options_for
from modules.options import Checked, OnlyWith, Range, between

HEADER = ("method", "trained", "share of all", "GFLOP per clip", "times CLIP's", "cannot learn")


@dataclass(frozen=True)
class Settings(Checked):
    """The flags."""

    table: Annotated[bool, "print the table of all methods on a CLIP"] = False
    backbones: Annotated[
        bool, "print all backbones that can be named: sizes, pixels, licences, and which methods run on them"
    ] = False
    json: Annotated[bool, "print the backbones as JSON", OnlyWith("backbones")] = False
    families: Annotated[bool, "print which methods run on which family of backbones, as Markdown"] = False
    pretrained_clip_name: Annotated[str, "a CLIP by name (ViT-B/32 ...) or by its weights; only its sizes count"] = (
        "ViT-B/32"
    )
    pretrained_dir: Annotated[str, "folder with the weights of a CLIP that is given by the name of its file"] = ""
    max_frames: Annotated[int, "frames per clip", Range(1)] = 12
    max_words: Annotated[int, "tokens per caption, START and END included", Range(3)] = 32

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.table + self.backbones + self.families != 1:
            raise ValueError(
                "pass one of --table for a table of all methods, --backbones for one of all backbones, and --families "
                "for which runs on which; main_task_retrieval.py --describe --method NAME describes one method"
            )


def rows_of(settings: Settings) -> tuple[list[tuple[str, ...]], list[str]]:
    """Return the cells of each method's row, with those of `HEADER`, and a line for each method that does not fit."""
    architecture = architecture_of(settings.pretrained_clip_name, settings.pretrained_dir)
    between("max_words", settings.max_words, 3, architecture.context_length)
    rows: list[tuple[str, ...]] = []
    left_out, of_clip = [], 0.0
    for name in sorted(METHODS, key=lambda name: name != "clip4clip"):  # it has CLIP's operations
        options = options_for(name, settings.max_frames)
        try:
            counts = describe(
                name, settings.pretrained_clip_name, settings.pretrained_dir, options, settings.max_frames,
                settings.max_words,
            )  # fmt: skip
        except ValueError as error:
            left_out.append(f"{name} is left out: {one_sentence(error)}")
            continue
        trained, gflop = counts["trainable_parameters"], counts["gflops_per_clip"]
        of_clip = of_clip or gflop
        dead = sum(part["parameters"] for part in counts.get("dead_parameters", {}).values())
        share = f"{trained / counts['total_parameters']:.2%}"
        rows.append((name, f"{trained:,}", share, f"{gflop:.1f}", f"{gflop / of_clip:.2f}", f"{dead:,}"))
    return rows, left_out


def table(settings: Settings) -> str:
    """Return the table."""
    rows, left_out = rows_of(settings)
    widths = [max(map(len, column)) for column in zip(HEADER, *rows, strict=True)]
    lines = [
        f"{settings.pretrained_clip_name}, {settings.max_frames} frames, {settings.max_words} words; operations of one "
        "clip and one caption, forward, 2 per multiply-add",
        "",
    ]
    for row in (HEADER, *rows):
        cells = (cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))
        lines.append("  ".join((row[0].ljust(widths[0]), *cells)))
    return "\n".join([*lines, *(["", *left_out] if left_out else [])])


def report(settings: Settings) -> str:
    """Return what was asked for."""
    if settings.families:
        return backbones.families()
    if not settings.backbones:
        return table(settings)
    found = backbones.listing()
    return json.dumps(backbones.as_json(found), indent=2) if settings.json else backbones.table(found)


def main(argv: Sequence[str] | None = None) -> int:
    """Print it; return 0, or 2 after one sentence about a mistake."""
    logging.getLogger("stop").setLevel(logging.WARNING)  # methods log the values that they derive
    return print_report(lambda: report(Settings(**parse_flags({"table": Settings}, "", argv))))


if __name__ == "__main__":
    sys.exit(main())
