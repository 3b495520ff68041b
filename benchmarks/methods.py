"""All methods side by side: what a training step costs, against the device's own ceilings and against bare CLIP.

    bash scripts/benchmark.sh
    bash scripts/benchmark.sh --only stop,dgl --batch_size 8 --frames 12 --precision bf16

Needs neither data nor weights: weights, pixels and words are random. First the device: its largest rate of matrix
products in each precision, and of copying. Then each method in a process of its own: a training step as in
`engine.train`, from uint8 frames to the optimiser, taking turns with the floor. The floor is what any method has to do
that prompts a frozen CLIP: the bare visual tower forward on the same frames, and the gradient back to its tokens. The
floor has no text and no optimiser, a step has both.

A phase is timed until the device has finished it, and on a CPU a step is the sum of its phases. On a GPU nothing waits
between the phases or steps of a training, where the host is ahead of the device; so there steps, and floors, are timed
a few in a row, and take less time than their phases by themselves.

With --compile the step is the one that `engine.train` takes with it: the method's forward pass is one graph, made in
the step that warms up. Text, visual and prompters cannot be told apart in it, so there is one phase `forward` instead.
Everything else stays eager: the floor, the evaluation (as in `engine.evaluate`) and the search for the largest batch,
each size of which would be compiled anew.

`ceiling` is the share of the measured matrix rate that a step reaches, counting the matrix products and convolutions
that it computes. `text`, `visual` and `prompters` are forward times; `prompters` are measured alone (`benchmarks.step`
says how and lists them), and `visual` is what remains. `GB` is the most memory that a process of this kind held, the
floor's included: allocated on a GPU, resident on a CPU, there with the compiler's own.

Shapes: B clips with a caption each, T frames, L words.
"""

import multiprocessing
import resource
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from math import prod
from pathlib import Path
from statistics import median
from typing import Annotated, Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

from benchmarks.ceilings import BUDGET, measure_ceilings
from benchmarks.step import (
    EVALUATION,
    REST,
    STEP,
    TEXT,
    Batch,
    check_clip,
    check_outputs,
    measure,
    measure_evaluation,
    origin_of,
    random_batch,
    timed,
    write_json,
)
from dataloaders.quoting import quoted
from dataloaders.transforms import normalise
from engine.cli import parse_settings, print_report
from engine.config import between
from engine.describe import count_operations
from engine.optim import build_optimizer
from engine.train import AUTOCAST, ContrastiveStep, auto_precision, autocast_for, compile_forward, compiler_error
from modules.clip import CLIP, CLIPArchitecture
from modules.clip_weights import architecture_of
from modules.methods import METHODS, Method, build_method

PHASES = ("text", "visual", "prompters", "backward", "optimiser")
COMPILED_PHASES = ("forward", "backward", "optimiser")
MOST_CLIPS = 4096  # where the search for the largest batch ends
IN_A_ROW = 4  # steps, or floors, on a GPU


@dataclass(frozen=True)
class Settings:
    """What is measured."""

    only: Annotated[str, "methods, with commas between them; all of them if empty"] = ""
    pretrained_clip_name: Annotated[str, "a CLIP by name (ViT-B/32 ...) or by its weights; only its sizes count"] = (
        "ViT-B/32"
    )
    batch_size: Annotated[int, "B, clips of a step; 0: 128 on a GPU, 2 without"] = 0
    frames: Annotated[int, "T, frames of a clip"] = 12
    max_words: Annotated[int, "L, tokens of a caption"] = 32
    precision: Annotated[
        Literal["auto", "fp32", "bf16", "fp16"], "of the encoders; auto: bf16 on a GPU that has it"
    ] = "auto"
    compile: Annotated[bool, "the step's forward pass through torch.compile, as training does it"] = False
    memory_search: Annotated[bool, "look for the largest batch that the GPU's memory holds"] = True
    repeats: Annotated[int, "steps (on a GPU, rows of steps) of which the median counts, after one to warm up"] = 5
    ceiling_seconds: Annotated[float, "the most that measuring the device's rate takes, in each precision"] = BUDGET
    output: Annotated[str, "a json file for the numbers"] = "results/benchmark.json"
    chart: Annotated[str, "a picture of the steps"] = "figs/benchmark.png"

    def __post_init__(self) -> None:
        for name in self.methods:
            if name not in METHODS:
                raise ValueError(f"--only {quoted(name)} is not one of: {', '.join(METHODS)}")
        for name, low in (("batch_size", 0), ("frames", 1), ("max_words", 3), ("repeats", 1)):
            between(name, getattr(self, name), low)
        between("ceiling_seconds", self.ceiling_seconds, 0)

    def for_this_machine(self) -> "Settings":
        """With the batch and the precision that stand for 0 and auto here."""
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        batch_size = self.batch_size or (128 if device.type == "cuda" else 2)
        precision = auto_precision(device) if self.precision == "auto" else self.precision
        return replace(self, batch_size=batch_size, precision=precision)

    @property
    def methods(self) -> list[str]:
        return [name.strip() for name in self.only.split(",")] if self.only else list(METHODS)


@dataclass(frozen=True)
class Cost:
    """What one method costs; times in milliseconds, medians, with the least and the largest where a pair stands."""

    method: str
    trainable_parameters: int
    gflop_forward: float  # of a clip with a caption
    gflop_step: float  # of a clip with a caption, forward and backward
    phases: dict[str, float]  # by PHASES, or by COMPILED_PHASES
    step: float
    step_range: tuple[float, float]
    floor: float
    floor_ratio: float
    floor_ratio_range: tuple[float, float]
    clips_per_second: float
    ceiling_share: float
    evaluation_clips_per_second: float
    peak_memory_gb: float
    largest_batch: int | None  # on a GPU, if looked for


def count_step(name: str, architecture: CLIPArchitecture, frames: int, max_words: int, **options: Any) -> int:
    """Operations of a training step a clip, forward and backward, without the optimiser.

    Of a batch of two clips on the meta device, halved: what a method shares between clips would count twice in one.
    """
    counter = FlopCounterMode(
        display=False,
        custom_mapping={
            torch.ops.aten.convolution_backward: _convolution_backward,
            torch.ops.aten.addmm_: _added_product,
        },
    )
    with torch.device("meta"):
        method = build_method(name, CLIP(architecture), **options).train()
        side = architecture.image_size
        video = torch.empty(2, frames, 3, side, side)
        frame_mask = torch.ones(2, frames, dtype=torch.bool)
        token_ids = torch.zeros(2, max_words, dtype=torch.int64)
    with sdpa_kernel(SDPBackend.MATH), counter:
        text, clips = method(video, frame_mask, token_ids)
        (text.sum() + clips.sum()).backward()  # similarity's share is nothing, and autocast knows no meta device
    return counter.get_total_flops() // 2


def _convolution_backward(
    of_output: list[int], volume: list[int], kernel: list[int], *arguments: Any, out_shape: Any = None, **_: Any
) -> int:
    """Operations for the gradients wanted of a convolution's input and kernel, each as many as forward; torch's own
    count takes a depth-wise kernel for a full one."""
    wanted = sum(arguments[-1][:2])
    return wanted * 2 * of_output[0] * prod(of_output[2:]) * prod(kernel)


def _added_product(into: list[int], a: list[int], b: list[int], **_: Any) -> int:
    """Operations of a product added to what is there, which torch's own count passes over."""
    return 2 * prod(a) * b[1]


class TrainingStep:
    """The step of `engine.train` on one batch, over and over, in its phases."""

    def __init__(self, method: Method, batch: Batch, precision: str) -> None:
        self.method, self.batch = method, batch
        self.device = batch[0].device
        self.contrastive = ContrastiveStep(method, autocast_for(precision, self.device))
        self.parameters = [parameter for _, parameter in method.trainable_parameters()]
        # So small a rate that nothing is learned, however often the step is taken.
        self.optimizer = build_optimizer(method.parameter_groups(1e-9, 1.0, 0.2))

    def update(self) -> None:
        nn.utils.clip_grad_norm_(self.parameters, 1.0, foreach=True)
        self.optimizer.step()
        self.method.after_step()

    def take(self) -> None:
        """A step as training takes it, waiting for nothing."""
        self.optimizer.zero_grad(set_to_none=True)
        self.contrastive(*self.batch).backward()
        self.update()

    def phases(self) -> tuple[float, float, float]:
        """Milliseconds of forward, backward and optimiser of a step."""
        self.optimizer.zero_grad(set_to_none=True)
        loss, forward = timed(lambda: self.contrastive(*self.batch), self.device)
        _, backward = timed(loss.backward, self.device)
        _, update = timed(self.update, self.device)
        return forward, backward, update


def make_floor(architecture: CLIPArchitecture, video: Tensor, precision: str) -> Callable[[], None]:
    """The bare frozen visual tower on frames uint8 `[B,T,3,H,W]`: forward, and the gradient back to its tokens."""
    visual = CLIP(architecture).visual.requires_grad_(False).to(video.device)
    autocast = autocast_for(precision, video.device)
    images = video.flatten(0, 1)

    def floor() -> None:
        with autocast():
            tokens = visual.embed(normalise(images)).detach().requires_grad_()
            *blocks, last = visual.blocks
            hidden = tokens
            for block in blocks:
                hidden = block(hidden)
            embeddings = visual.pool(last.first_token(hidden))  # type: ignore[operator]
        embeddings.float().sum().backward()

    return floor


def measure_method(name: str, settings: Settings, ceiling: float) -> Cost:
    """Everything about one method, on a GPU if there is one; `ceiling` in 10^12 operations a second.

    Raises ValueError if torch.compile is asked for and does not work here.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if settings.compile and (error := compiler_error(device)):
        raise error
    architecture = architecture_of(settings.pretrained_clip_name)
    torch.manual_seed(0)
    method = build_method(name, CLIP(architecture)).to(device).train()
    batch = random_batch(architecture, settings.batch_size, settings.frames, settings.max_words, device)
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
    with torch.device("meta"):
        counted = build_method(name, CLIP(architecture)).eval().requires_grad_(False)
    operations = count_step(name, architecture, settings.frames, settings.max_words)
    clips_per_second = 1e3 * settings.batch_size / whole
    return Cost(
        method=name,
        trainable_parameters=sum(parameter.numel() for parameter in step.parameters),
        gflop_forward=count_operations(counted, settings.frames, settings.max_words) / 1e9,
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
        largest_batch=largest_batch(method, architecture, settings) if searched else None,
    )


def time_in_a_row(run: Callable[[], None], device: torch.device) -> float:
    """Milliseconds of each of `IN_A_ROW` runs, which wait for the device only at the end."""

    def row() -> None:
        for _ in range(IN_A_ROW):
            run()

    return timed(row, device)[1] / IN_A_ROW


def largest_batch(method: Method, architecture: CLIPArchitecture, settings: Settings) -> int:
    """Clips of the largest eager step that the GPU's memory holds, to an eighth; at most MOST_CLIPS."""

    def fits(batch_size: int) -> bool:
        try:
            batch = random_batch(architecture, batch_size, settings.frames, settings.max_words, torch.device("cuda"))
            TrainingStep(method, batch, settings.precision).take()
        except torch.OutOfMemoryError:
            return False
        finally:
            method.zero_grad(set_to_none=True)
            torch.cuda.empty_cache()
        return True

    good = 0
    size = settings.batch_size
    while size <= MOST_CLIPS and fits(size):
        good, size = size, 2 * size
    if size > MOST_CLIPS:
        return good
    while size - good > max(1, good // 8):
        middle = (good + size) // 2
        good, size = (middle, size) if fits(middle) else (good, middle)
    return good


def in_own_process(function: Callable[..., Any], *arguments: Any) -> Any:
    """The result of a call in a fresh process, whose memory is its own."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(function, arguments)


def format_costs(costs: Sequence[Cost]) -> str:
    """The table, of methods with the same phases."""
    phases = costs[0].phases
    last = ("step, ms", "clips/s", "ceiling", "floor ratio", "eval clips/s", "GB", "largest batch")
    lines: list[tuple[str, ...]] = [("method", "trained", "GFLOP a clip", *phases, *last)]
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
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join("  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)) for line in lines)


def draw_costs(costs: Sequence[Cost], batch_size: int, title: str, path: Path) -> None:
    """A bar for each method: milliseconds a clip, in phases; a mark where the floor lies."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(9, 0.7 * len(costs) + 1.6), layout="constrained")
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
    axes.set_xlabel("milliseconds a clip of a training step; behind the bars, how many times the bare tower")
    axes.set_title(title, fontsize=9)
    axes.legend(fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def report(settings: Settings) -> str:
    """Measure everything and say how."""
    check_outputs(settings.output, settings.chart)
    check_clip(settings.pretrained_clip_name, settings.max_words)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    ceilings = in_own_process(measure_ceilings, device, ("fp32", *AUTOCAST), settings.repeats, settings.ceiling_seconds)
    costs = [
        in_own_process(measure_method, name, settings, ceilings.matrix[settings.precision])
        for name in tqdm(settings.methods, "methods", leave=False)
    ]
    origin, where = origin_of(device)
    sizes = f"batch {settings.batch_size}, frames {settings.frames}, words {settings.max_words}"
    how = f"{settings.precision}, compiled" if settings.compile else settings.precision
    what = f"{settings.pretrained_clip_name}, {how}, {sizes}, medians of {settings.repeats}"
    if settings.output:
        measured = {"ceilings": asdict(ceilings), "methods": [asdict(cost) for cost in costs]}
        write_json(Path(settings.output), {"settings": asdict(settings), **origin, **measured})
    if settings.chart:
        draw_costs(costs, settings.batch_size, f"{what}\n{where}", Path(settings.chart))
    matrix = ", ".join(
        f"{rate:.3g} in {precision} (n {ceilings.sizes[precision]})" for precision, rate in ceilings.matrix.items()
    )
    return "\n".join(
        (
            what,
            where,
            f"ceilings: matrix products, TFLOP/s: {matrix}; copies, GB/s: {ceilings.copy:.1f}",
            "training steps in milliseconds, in brackets the least and the most:",
            "",
            format_costs(costs),
        )
    )


def main(argv: Sequence[str] | None = None) -> int:
    return print_report(lambda: report(parse_settings(Settings, argv).for_this_machine()))


if __name__ == "__main__":
    sys.exit(main())
