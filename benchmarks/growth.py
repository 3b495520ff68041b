"""Times STOP's training step over numbers of frames and clips, with a class token per frame and with a joint one.

    python -m benchmarks.growth
    python -m benchmarks.growth --frames 4,8,16 --batches 1,2,4 --precision bf16

Needs neither data nor weights. With attention `frame` all work is done frame by frame, so both curves should be
straight lines. With `joint` every patch attends to the patches of all frames, and the cost grows with the square of
their number. The table also counts operations, which have no noise.

Shapes: B clips, T frames.
"""

import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Annotated, Literal

import torch
from tqdm import tqdm

from benchmarks.common import (
    check_clip,
    check_outputs,
    default_device,
    origin_of,
    parse_settings,
    random_batch,
    save_figure,
    write_json,
)
from benchmarks.operations import count_step
from benchmarks.training_step import TrainingStep
from dataloaders.quoting import quoted
from engine.errors import print_report
from modules.clip import CLIP
from modules.clip_weights import architecture_of
from modules.methods import build_method
from modules.options import Checked, Range

ATTENTION = ("frame", "joint")
OFF_THE_LINE = 1.1  # times the cost per frame of the shortest clip


@dataclass(frozen=True)
class Settings(Checked):
    """The flags."""

    pretrained_clip_name: Annotated[str, "a CLIP by name (ViT-B/32 ...) or by its weights; only its sizes count"] = (
        "ViT-B/32"
    )
    frames: Annotated[str, "T of the first curve, with B = 1; the second curve has the least of these"] = "4,8,16,32,64"
    batches: Annotated[str, "B of the second curve"] = "1,2,4,8,16,32,64"
    max_words: Annotated[int, "L, tokens per caption", Range(3)] = 32
    precision: Annotated[Literal["fp32", "bf16"], "precision of the encoders"] = "fp32"
    repeats: Annotated[int, "steps to take the median of, after one warm-up step", Range(1)] = 3
    output: Annotated[str, "json file for the numbers; empty: none"] = "results/benchmark_growth.json"
    chart: Annotated[str, "picture of the curves; empty: none"] = "figs/benchmark_growth.png"

    def __post_init__(self) -> None:
        for name, least in (("frames", 2), ("batches", 1)):
            words = getattr(self, name).split(",")
            if not all(word.strip().isdecimal() and int(word) >= least for word in words):
                raise ValueError(
                    f"--{name} {quoted(getattr(self, name))} is not a list such as 4,8,16 of at least {least}"
                )
        super().__post_init__()

    @property
    def sizes(self) -> list[tuple[int, int]]:
        """Return (B, T) of all points: the first curve, then the second, without repetitions."""
        frames, batches = (sorted({int(word) for word in text.split(",")}) for text in (self.frames, self.batches))
        return list(dict.fromkeys([*((1, t) for t in frames), *((b, frames[0]) for b in batches)]))


@dataclass(frozen=True)
class Point:
    """A training step at one size: median milliseconds with the least and the greatest, and operations."""

    attention: str
    batch_size: int
    frames: int
    step: float
    step_range: tuple[float, float]
    gflop: float


def measure_points(settings: Settings, device: torch.device) -> list[Point]:
    """Measure all points, each with a new model."""
    architecture = architecture_of(settings.pretrained_clip_name)
    points = []
    for attention in ATTENTION:
        for batch_size, frames in tqdm(settings.sizes, attention, leave=False):
            torch.manual_seed(0)
            method = build_method("stop", CLIP(architecture), attention=attention).to(device).train()
            batch = random_batch(architecture, batch_size, frames, settings.max_words, device)
            step = TrainingStep(method, batch, settings.precision)
            times = [sum(step.phases()) for _ in range(1 + settings.repeats)][1:]
            operations = batch_size * count_step("stop", architecture, frames, settings.max_words, attention=attention)
            points.append(
                Point(attention, batch_size, frames, median(times), (min(times), max(times)), operations / 1e9)
            )
    return points


def leaves_the_line(points: Sequence[Point]) -> int | None:
    """Return the least T at which a frame costs over OFF_THE_LINE times its operations in the shortest clip."""
    by_frames = sorted(points, key=lambda point: point.frames)
    first = by_frames[0].gflop / by_frames[0].frames
    return next((point.frames for point in by_frames if point.gflop / point.frames > OFF_THE_LINE * first), None)


def curves(points: Sequence[Point], attention: str) -> tuple[list[Point], list[Point]]:
    """Return the points over T with B = 1, and the points over B with the least T."""
    own = [point for point in points if point.attention == attention]
    least = min(point.frames for point in own)
    return [point for point in own if point.batch_size == 1], [point for point in own if point.frames == least]


def format_points(points: Sequence[Point]) -> str:
    """Return the table: milliseconds per step, and milliseconds and operations per frame."""
    head = f"{'attention':<10}{'B':>4}{'T':>4}{'step, ms':>11}{'least-most':>20}"
    lines = [f"{head}{'ms per frame':>14}{'GFLOP per frame':>17}"]
    for point in points:
        images = point.batch_size * point.frames
        low, high = point.step_range
        lines.append(
            f"{point.attention:<10}{point.batch_size:>4}{point.frames:>4}{point.step:>11.1f}{f'{low:.1f}-{high:.1f}':>20}"
            f"{point.step / images:>14.2f}{point.gflop / images:>17.2f}"
        )
    return "\n".join(lines)


def draw_points(points: Sequence[Point], title: str, path: Path) -> None:
    """Draw charts over T and over B, with a straight line through each curve's first point."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4.2), layout="constrained")
    both = figure.subplots(1, 2)
    for attention, colour in zip(ATTENTION, ("tab:blue", "tab:orange"), strict=True):
        over_frames, over_batches = curves(points, attention)
        for axes, curve, size in zip(both, (over_frames, over_batches), ("frames", "batch_size"), strict=True):
            sizes = [getattr(point, size) for point in curve]
            times = [point.step for point in curve]
            axes.plot(sizes, times, marker="o", color=colour, label=f"attention {attention}")
            axes.plot(sizes, [times[0] * n / sizes[0] for n in sizes], color=colour, linestyle=":", linewidth=1)
            axes.set_xscale("log", base=2)
            axes.set_yscale("log", base=2)
            axes.set_xticks(sizes, [str(n) for n in sizes])
            axes.yaxis.set_major_formatter(lambda value, _: f"{value:.0f}")
    both[0].set_xlabel("frames of one clip, T")
    both[1].set_xlabel(f"clips of {over_batches[0].frames} frames, B")
    both[0].set_ylabel("milliseconds per training step; dotted: proportional")
    both[0].legend()
    figure.suptitle(title, fontsize=9)
    save_figure(figure, path)


def report(settings: Settings) -> str:
    """Measure, write the files and return the text to print."""
    check_outputs(settings.output, settings.chart)
    check_clip(settings.pretrained_clip_name, settings.max_words)
    device = default_device()
    points = measure_points(settings, device)
    origin, where = origin_of(device)
    title = (
        f"stop on {settings.pretrained_clip_name}, {settings.precision}, words {settings.max_words}, "
        f"medians of {settings.repeats}\n{where}"
    )
    content = {"settings": asdict(settings), **origin, "points": [asdict(point) for point in points]}
    if settings.output:
        write_json(Path(settings.output), content)
    if settings.chart:
        draw_points(points, title, Path(settings.chart))
    found = []
    for attention in ATTENTION:
        frames = leaves_the_line(curves(points, attention)[0])
        where = f"from T = {frames} on" if frames else "at no T here"
        over = f"a frame costs over {OFF_THE_LINE:g} times its operations in the shortest clip"
        found.append(f"attention {attention}: {over} {where}")
    return "\n".join((title, "", format_points(points), "", *found))


def main(argv: Sequence[str] | None = None) -> int:
    return print_report(lambda: report(parse_settings(Settings, argv)))


if __name__ == "__main__":
    sys.exit(main())
