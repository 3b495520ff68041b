"""Compares the training steps of all methods with each other, with the device's ceilings and with bare CLIP.

    bash scripts/benchmark.sh
    bash scripts/benchmark.sh --only stop,dgl --batch_size 8 --frames 12 --precision bf16
    bash scripts/benchmark.sh --only "stop, stop --merge 3, stop --lora_dim 8"

Needs neither data nor weights: weights, pixels and words are random. First it measures the device: the highest rate of
matrix products in each precision, and of copies. Then it measures each method in a fresh process. The training step is
that of `engine.train`, from uint8 frames to the optimiser; steps alternate with passes of the floor. The floor is the
work that every method on a frozen CLIP has to do: the bare visual tower forward on the same frames, and the gradient
back to its tokens. The floor has no text and no optimiser; a step has both.

A phase is timed until the device has finished it. On a CPU a step is the sum of its phases. On a GPU training never
waits between phases or steps, because the host runs ahead of the device. So steps and floors are timed a few in a row
there, and take less time than the sum of their phases.

With --compile the step is the one that `engine.train` takes with that flag: the method's forward pass is one graph,
compiled in the warm-up step. Text, visual and prompters cannot be separated in it; one phase `forward` stands for them.
Everything else stays eager: the floor, the evaluation (as in `engine.evaluate`) and the search for the largest batch,
which would compile every size again.

`ceiling` is the share of the measured matrix rate that a step reaches with its matrix products and convolutions.
`text`, `visual` and `prompters` are forward times. `prompters` are measured alone (`benchmarks.step` explains how and
lists them), and `visual` is the rest. `GB` is the peak memory of the process, the floor included: allocated memory on a
GPU, resident memory on a CPU, which includes the compiler.

Shapes: B clips with a caption each, T frames, L words.
"""

import multiprocessing
import resource
import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from typing import Annotated, Any, Literal

import torch
from tqdm import tqdm

from benchmarks.ceilings import BUDGET, measure_ceilings
from benchmarks.common import (
    check_clip,
    check_outputs,
    default_device,
    origin_of,
    parse_settings,
    parse_with_options,
    random_batch,
    save_figure,
    timed,
    write_json,
)
from benchmarks.operations import count_forward, count_step
from benchmarks.step import EVALUATION, REST, STEP, TEXT, measure, measure_evaluation
from benchmarks.training_step import TrainingStep, largest_batch, make_floor, time_in_a_row
from engine.compiling import compile_forward, compiler_error
from engine.errors import print_report
from engine.precision import AUTOCAST, auto_precision
from modules.clip import CLIP
from modules.clip_weights import architecture_of
from modules.methods import METHODS, build_method, options_for
from modules.options import Checked, Choices, Range, one_of

PHASES = ("text", "visual", "prompters", "backward", "optimiser")
COMPILED_PHASES = ("forward", "backward", "optimiser")


@dataclass(frozen=True)
class Settings(Checked):
    """The flags."""

    only: Annotated[
        str, "methods to measure, separated by commas, each with options if needed; empty: all that fit the CLIP"
    ] = ""
    pretrained_clip_name: Annotated[str, "a CLIP by name (ViT-B/32 ...) or by its weights; only its sizes count"] = (
        "ViT-B/32"
    )
    batch_size: Annotated[int, "B, clips per step; 0: 128 on a GPU, 2 on a CPU", Range(0)] = 0
    frames: Annotated[int, "T, frames per clip", Range(1)] = 12
    max_words: Annotated[int, "L, tokens per caption", Range(3)] = 32
    precision: Annotated[
        Literal["auto", "fp32", "bf16", "fp16"], "precision of the encoders; auto: bf16 on a GPU that has it"
    ] = "auto"
    compile: Annotated[bool, "run the step's forward pass through torch.compile, as training does"] = False
    memory_search: Annotated[bool, "search for the largest batch that fits the GPU's memory"] = True
    repeats: Annotated[
        int, "steps (on a GPU, rows of steps) to take the median of, after one warm-up step", Range(1)
    ] = 5
    ceiling_seconds: Annotated[float, "time limit for measuring the device's rate, per precision", Range(0)] = BUDGET
    output: Annotated[str, "json file for the numbers; empty: none"] = "results/benchmark.json"
    chart: Annotated[str, "picture of the steps; empty: none"] = "figs/benchmark.png"

    def __post_init__(self) -> None:
        for text in self.methods:
            with_options(text, self.frames)
        super().__post_init__()

    def for_this_machine(self) -> "Settings":
        """Return these settings with the batch size for 0 and the precision for auto on this machine."""
        device = default_device()
        batch_size = self.batch_size or (128 if device.type == "cuda" else 2)
        precision = auto_precision(device) if self.precision == "auto" else self.precision
        return replace(self, batch_size=batch_size, precision=precision)

    @property
    def methods(self) -> list[str]:
        return [name.strip() for name in self.only.split(",")] if self.only else list(METHODS)


@dataclass(frozen=True)
class Named:
    """The name of a method."""

    method: Annotated[str, "the method", Choices(METHODS)] = "stop"


def with_options(text: str, frames: int) -> tuple[str, dict[str, Any]]:
    """Return the method and its options of an entry of --only, such as "stop --merge 3", for clips of so many frames.

    Raises ValueError if there is no such method or option.
    """
    name, *flags = shlex.split(text) or [""]
    one_of("only", name, METHODS)
    fitting = [f"--{option}={value}" for option, value in options_for(name, frames).items()]
    return name, parse_with_options(Named, ["--method", name, *fitting, *flags])[1]


@dataclass(frozen=True)
class Cost:
    """The costs of one method. Times are medians in milliseconds; a pair is the least and the greatest."""

    method: str  # with its options
    trainable_parameters: int
    gflop_forward: float  # per clip with a caption
    gflop_step: float  # per clip with a caption, forward and backward
    phases: dict[str, float]  # keys: PHASES or COMPILED_PHASES
    step: float
    step_range: tuple[float, float]
    floor: float
    floor_ratio: float
    floor_ratio_range: tuple[float, float]
    clips_per_second: float
    ceiling_share: float
    evaluation_clips_per_second: float
    peak_memory_gb: float
    largest_batch: int | None  # on a GPU, with --memory_search


def measure_method(entry: str, settings: Settings, ceiling: float) -> Cost:
    """Measure one entry of --only, on a GPU if there is one; `ceiling` is in 10^12 operations per second.

    Raises ValueError if --compile is set and torch.compile does not work here.
    """
    name, options = with_options(entry, settings.frames)
    device = default_device()
    if settings.compile and (error := compiler_error(device)):
        raise error
    architecture = architecture_of(settings.pretrained_clip_name)
    torch.manual_seed(0)
    method = build_method(name, CLIP(architecture), **options).to(device).train()
    batch = random_batch(
        architecture, settings.batch_size, settings.frames, settings.max_words, device, method.reads_frame_captions
    )
    if settings.compile:
        compile_forward(method)
    step = TrainingStep(method, batch, settings.precision)
    floor = make_floor(architecture, batch[0], settings.precision)
    step.take()
    floor()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    step.take()
    memory = (
        torch.cuda.max_memory_allocated(device)
        if device.type == "cuda"
        else 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    )
    parts: list[tuple[float, float, float]] = []
    steps: list[float] = []
    floors: list[float] = []
    for _ in range(settings.repeats):
        parts.append(step.phases())
        steps.append(time_in_a_row(step.take, device) if device.type == "cuda" else sum(parts[-1]))
        floors.append(time_in_a_row(floor, device) if device.type == "cuda" else timed(floor, device)[1])
    ratios = [whole / bare for whole, bare in zip(steps, floors, strict=True)]
    forward, backward, update = (median(phase) for phase in zip(*parts, strict=True))
    whole = median(steps)

    if settings.compile:
        method._compiled_call_impl = None  # eager from here on
        evaluation = measure_evaluation(method, batch, settings.repeats, settings.precision)
        phases = dict(zip(COMPILED_PHASES, (forward, backward, update), strict=True))
    else:
        rows = {row.name: row for row in measure(method, batch, settings.repeats, settings.precision)}
        evaluation = rows[EVALUATION]
        text = rows[TEXT].forward
        prompters = sum(row.forward for part, row in rows.items() if part not in (STEP, EVALUATION, TEXT, REST))
        visual = max(0.0, forward - text - prompters)
        phases = dict(zip(PHASES, (text, visual, prompters, backward, update), strict=True))
    searched = settings.memory_search and device.type == "cuda"
    sizes = (settings.frames, settings.max_words)
    operations = count_step(name, architecture, *sizes, **options)
    clips_per_second = 1e3 * settings.batch_size / whole
    return Cost(
        method=entry,
        trainable_parameters=sum(parameter.numel() for parameter in step.parameters),
        gflop_forward=count_forward(name, architecture, *sizes, **options) / 1e9,
        gflop_step=operations / 1e9,
        phases=phases,
        step=whole,
        step_range=(min(steps), max(steps)),
        floor=median(floors),
        floor_ratio=median(ratios),
        floor_ratio_range=(min(ratios), max(ratios)),
        clips_per_second=clips_per_second,
        ceiling_share=clips_per_second * operations / 1e12 / ceiling,
        evaluation_clips_per_second=1e3 * settings.batch_size / evaluation.forward,
        peak_memory_gb=memory / 1e9,
        largest_batch=(
            largest_batch(method, architecture, settings.batch_size, *sizes, settings.precision) if searched else None
        ),
    )


def reason_against(text: str, clip_name: str, frames: int) -> str | None:
    """Return why a method cannot be built around a CLIP, such as STDD around a ViT-B/32; None if it can."""
    name, options = with_options(text, frames)
    with torch.device("meta"):
        try:
            build_method(name, CLIP(architecture_of(clip_name)), **options)
        except ValueError as error:
            return str(error)
    return None


def in_own_process(function: Callable[..., Any], *arguments: Any) -> Any:
    """Return the result of a call in a fresh process, so that its peak memory is its own."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(function, arguments)


def format_costs(costs: Sequence[Cost], leave_out: Sequence[str] = (), first: str = "method") -> str:
    """Return the table, without some of its columns; all methods must have the same phases."""
    phases = costs[0].phases
    last = ("step, ms", "clips/s", "ceiling", "floor ratio", "eval clips/s", "GB", "largest batch")
    lines: list[tuple[str, ...]] = [(first, "trained", "GFLOP per clip", *phases, *last)]
    for cost in costs:
        low, high = cost.floor_ratio_range
        lines.append(
            (
                cost.method,
                f"{cost.trainable_parameters / 1e6:.2f} M",
                f"{cost.gflop_step:.1f}",
                *(f"{cost.phases[phase]:.1f}" for phase in phases),
                f"{cost.step:.1f} ({cost.step_range[0]:.1f}-{cost.step_range[1]:.1f})",
                f"{cost.clips_per_second:.2f}",
                f"{cost.ceiling_share:.0%}",
                f"{cost.floor_ratio:.2f} ({low:.2f}-{high:.2f})",
                f"{cost.evaluation_clips_per_second:.2f}",
                f"{cost.peak_memory_gb:.2f}",
                "-" if cost.largest_batch is None else str(cost.largest_batch),
            )
        )
    kept = [place for place, title in enumerate(lines[0]) if title not in leave_out]
    lines = [tuple(line[place] for place in kept) for line in lines]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join("  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)) for line in lines)


def draw_costs(costs: Sequence[Cost], batch_size: int, title: str, path: Path) -> None:
    """Draw one bar per method: milliseconds per clip, split into phases, with a mark at the floor."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 0.7 * len(costs) + 1.6), layout="constrained")
    axes = figure.subplots()
    places = range(len(costs))
    left = [0.0] * len(costs)
    for phase in costs[0].phases:
        widths = [cost.phases[phase] / batch_size for cost in costs]
        axes.barh(places, widths, left=left, height=0.6, label=phase)
        left = [start + width for start, width in zip(left, widths, strict=True)]
    floors = [cost.floor / batch_size for cost in costs]
    axes.vlines(floors, [p - 0.4 for p in places], [p + 0.4 for p in places], colors="black", label="bare frozen tower")
    for place, end, cost in zip(places, left, costs, strict=True):
        axes.text(end, place, f" {cost.floor_ratio:.2f}x", va="center")
    axes.set_yticks(places, [cost.method for cost in costs])
    axes.invert_yaxis()
    axes.set_xlim(0, 1.1 * max(left))
    axes.set_xlabel("milliseconds per clip of a training step; beside the bars: times the bare tower")
    axes.set_title(title, fontsize=9)
    axes.legend(fontsize=8)
    save_figure(figure, path)


def report(settings: Settings) -> str:
    """Measure all methods, write the files and return the text to print."""
    check_outputs(settings.output, settings.chart)
    check_clip(settings.pretrained_clip_name, settings.max_words)
    device = default_device()
    clip, frames = settings.pretrained_clip_name, settings.frames
    against = {text: reason_against(text, clip, frames) for text in settings.methods}
    if settings.only and (reasons := [reason for reason in against.values() if reason]):
        raise ValueError(reasons[0])
    left_out = [f"left out: {name} ({reason})" for name, reason in against.items() if reason]
    ceilings = in_own_process(measure_ceilings, device, ("fp32", *AUTOCAST), settings.repeats, settings.ceiling_seconds)
    costs: list[Cost] = []
    origin, where = origin_of(device)
    for text in tqdm([text for text, reason in against.items() if not reason], "methods", leave=False):
        costs.append(in_own_process(measure_method, text, settings, ceilings.matrix[settings.precision]))
        if settings.output:  # after each method, so that an hour of measuring is not lost with the last one
            measured = {"ceilings": asdict(ceilings), "methods": [asdict(cost) for cost in costs]}
            write_json(Path(settings.output), {"settings": asdict(settings), **origin, **measured})
    sizes = f"batch {settings.batch_size}, frames {settings.frames}, words {settings.max_words}"
    how = f"{settings.precision}, compiled" if settings.compile else settings.precision
    what = f"{settings.pretrained_clip_name}, {how}, {sizes}, medians of {settings.repeats}"
    if settings.chart:
        draw_costs(costs, settings.batch_size, f"{what}\n{where}", Path(settings.chart))
    matrix = ", ".join(
        f"{rate:.3g} in {precision} (n {ceilings.sizes[precision]})" for precision, rate in ceilings.matrix.items()
    )
    return "\n".join(
        (
            what,
            where,
            *left_out,
            f"ceilings: matrix products, TFLOP/s: {matrix}; copies, GB/s: {ceilings.copy:.1f}",
            "training steps in milliseconds, the least and the greatest in brackets:",
            "",
            format_costs(costs),
        )
    )


def main(argv: Sequence[str] | None = None) -> int:
    return print_report(lambda: report(parse_settings(Settings, argv).for_this_machine()))


if __name__ == "__main__":
    sys.exit(main())
