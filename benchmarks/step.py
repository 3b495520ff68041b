"""Times a training step part by part, for any method; needs neither data nor weights.

    python -m benchmarks.step --method stop_released --batch_size 2
    python -m benchmarks.step --method dgl --shared_latent_space linear --repeats 10 --precision bf16

Weights, pixels and words are random. The whole step goes from uint8 frames to the loss and back, as in `engine.train`
without the optimiser. Then each part runs alone on the inputs that it had in one step: the text encoder, and every
module that the method adds to CLIP. Processor caches hold different data when a part runs alone, so the shares of the
parts are accurate to a few percent.

Shapes: B clips with one caption each, T frames, L words.
"""

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from functools import partial
from statistics import median
from typing import Annotated, Any, Literal

import torch
from torch import Tensor, nn

from benchmarks.common import (
    Batch,
    check_clip,
    default_device,
    origin_of,
    parse_with_options,
    random_batch,
    timed,
)
from benchmarks.operations import count_forward
from engine.data import normalise_for
from engine.errors import print_report
from engine.precision import autocast_for
from engine.tasks.contrastive import ContrastiveStep
from modules.clip import CLIP
from modules.methods import METHODS, Method, build_method
from modules.options import Checked, Choices, Range

STEP, EVALUATION, TEXT, REST = "whole step", "evaluation forward", "text", "towers and the rest"


@dataclass(frozen=True)
class Settings(Checked):
    """The flags."""

    method: Annotated[str, "the method", Choices(METHODS)] = "stop"
    pretrained_clip_name: Annotated[str, "a CLIP by name (ViT-B/32 ...) or by its weights; only its sizes count"] = (
        "ViT-B/32"
    )
    batch_size: Annotated[int, "clips, and captions, per step", Range(1)] = 2
    max_frames: Annotated[int, "T, frames per clip", Range(1)] = 12
    max_words: Annotated[int, "tokens per caption, START and END included", Range(3)] = 32
    repeats: Annotated[int, "runs to take the median of, after one warm-up run", Range(1)] = 3
    precision: Annotated[Literal["fp32", "bf16"], "precision of the encoders"] = "fp32"


@dataclass(frozen=True)
class Row:
    """Median times in milliseconds."""

    name: str
    forward: float
    backward: float | None  # None in evaluation, which has no backward pass

    @property
    def both(self) -> float:
        return self.forward + (self.backward or 0.0)


@dataclass(frozen=True)
class Call:
    """One call of a module in a training step, which can be repeated alone."""

    module: nn.Module
    arguments: tuple[Any, ...]
    keywords: dict[str, Any]

    def __call__(self) -> Any:
        arguments, keywords = map_tensors(detached, (self.arguments, self.keywords))
        return self.module(*arguments, **keywords)


def measure(method: Method, batch: Batch, repeats: int, precision: str = "fp32") -> list[Row]:
    """Time a training step and its parts on the batch's device; leaves `method` unchanged and in training mode.

    Returns:
        Rows: the whole step; the forward pass in evaluation; `encode_text` without the parts that it calls; each child
        of the method other than `clip` that a step calls, where the modules of a container share a row; the rest of
        the step. The rows after evaluation add up to the whole step, except that a negative rest becomes zero.
    """
    video, _, token_ids = batch
    captions = alone(token_ids)
    autocast = autocast_for(precision, video.device)
    train_step = ContrastiveStep(method, autocast)

    def step() -> Tensor:
        return train_step(*batch)

    def encode_text() -> Tensor:
        with autocast():
            return method.encode_text(captions)

    def row(name: str, forward: Callable[[], Any]) -> Row:
        return time_both_ways(name, forward, method, video.device, repeats)

    def row_of_calls(name: str, calls: Sequence[Call]) -> Row:
        def again() -> list[Any]:
            with autocast():
                return [call() for call in calls]

        return row(name, again)

    evaluation = measure_evaluation(method, batch, repeats, precision)
    whole = row(STEP, step)
    calls_in_text = [call for calls in record_calls(method, encode_text).values() for call in calls]
    text = remainder(TEXT, row(TEXT, encode_text), [row_of_calls("parts in it", calls_in_text)])
    parts = [row_of_calls(name, calls) for name, calls in record_calls(method, step).items()]
    return [whole, evaluation, text, *parts, remainder(REST, whole, [text, *parts])]


def measure_evaluation(method: Method, batch: Batch, repeats: int, precision: str) -> Row:
    """Time the forward pass of clips and captions in evaluation; leaves `method` in training mode."""
    video, frame_mask, token_ids = batch
    autocast = autocast_for(precision, video.device)

    def evaluate() -> Any:
        with torch.no_grad(), autocast():
            return method(normalise_for(method.clip, video), frame_mask, alone(token_ids))

    method.eval()
    row = time_both_ways(EVALUATION, evaluate, method, video.device, repeats)
    method.train()
    return replace(row, backward=None)


def alone(token_ids: Tensor) -> Tensor:
    """Return the captions without those of frames, which only training reads: int64 `[B,(1+T),L]` -> `[B,L]`."""
    return token_ids if token_ids.dim() == 2 else token_ids[:, 0]


def time_both_ways(name: str, forward: Callable[[], Any], method: Method, device: torch.device, repeats: int) -> Row:
    """Time `forward`, and the backward pass from random gradients on its results; one warm-up run."""
    times = []
    for _ in range(1 + repeats):
        results, there = timed(forward, device)
        wanted = [tensor for tensor in tensors_in(results) if tensor.requires_grad]
        gradients = [torch.randn_like(tensor) for tensor in wanted]
        back = timed(partial(torch.autograd.backward, wanted, gradients), device)[1] if wanted else 0.0
        method.zero_grad(set_to_none=True)
        times.append((there, back))
    forwards, backwards = zip(*times[1:], strict=True)
    return Row(name, median(forwards), median(backwards))


def remainder(name: str, whole: Row, parts: Sequence[Row]) -> Row:
    """Return `whole` minus `parts`, at least zero: a small difference may be noise."""
    forward = whole.forward - sum(part.forward for part in parts)
    backward = (whole.backward or 0.0) - sum(part.backward or 0.0 for part in parts)
    return Row(name, max(forward, 0.0), max(backward, 0.0))


def record_calls(method: Method, run: Callable[[], Any]) -> dict[str, list[Call]]:
    """Run `run` and return the calls of the modules that the method adds to CLIP, by direct child, in order of first
    calls."""
    calls: dict[str, list[Call]] = {}

    def recorder(name: str) -> Callable[..., None]:
        def record(module: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
            # Detach now: the inputs would keep the whole step's graph alive.
            calls.setdefault(name, []).append(Call(module, *map_tensors(detached, (arguments, keywords))))

        return record

    hooks = [
        module.register_forward_pre_hook(recorder(name), with_kwargs=True)
        for name, child in method.named_children()
        if child is not method.clip
        for module in called_modules(child)
    ]
    try:
        run()
    finally:
        for hook in hooks:
            hook.remove()
    return calls


def called_modules(module: nn.Module) -> Iterator[nn.Module]:
    """Yield the module, or the modules inside it if it is a container, which is never called itself."""
    if isinstance(module, nn.ModuleList | nn.ModuleDict):
        for child in module.children():
            yield from called_modules(child)
    else:
        yield module


def detached(tensor: Tensor) -> Tensor:
    """Return a leaf with the same values and layout, which requires a gradient if the tensor does."""
    return tensor.detach().requires_grad_(tensor.requires_grad)


def map_tensors(function: Callable[[Tensor], Any], value: Any) -> Any:
    """Apply `function` to each tensor in `value`; enters (named) tuples, lists, dictionaries and dataclasses."""
    if isinstance(value, Tensor):
        return function(value)
    if is_dataclass(value) and not isinstance(value, type):
        return replace(value, **{f.name: map_tensors(function, getattr(value, f.name)) for f in fields(value)})
    if isinstance(value, dict):
        return {key: map_tensors(function, item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        items = [map_tensors(function, item) for item in value]
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    return value


def tensors_in(value: Any) -> list[Tensor]:
    """Return all tensors in `value`, as `map_tensors` finds them."""
    found: list[Tensor] = []
    map_tensors(found.append, value)
    return found


def format_rows(rows: Sequence[Row]) -> str:
    """Return the table. Shares are of the first row; a row without a backward pass has none."""
    lines = [f"{'ms':<28}{'forward':>11}{'backward':>11}{'both':>11}{'share':>10}"]
    for row in rows:
        line = f"{row.name:<28}{row.forward:>11.2f}"
        if row.backward is not None:
            line += f"{row.backward:>11.2f}{row.both:>11.2f}{row.both / rows[0].both:>10.1%}"
        lines.append(line)
    return "\n".join(lines)


def report(settings: Settings, options: dict[str, Any]) -> str:
    """Measure the method and return the text to print."""
    device = default_device()
    architecture = check_clip(settings.pretrained_clip_name, settings.max_words)
    frames, words = settings.max_frames, settings.max_words
    operations = count_forward(settings.method, architecture, frames, words, **options)
    torch.manual_seed(0)
    method = build_method(settings.method, CLIP(architecture), **options).to(device)
    batch = random_batch(architecture, settings.batch_size, frames, words, device, method.reads_frame_captions)
    rows = measure(method, batch, settings.repeats, settings.precision)
    training, evaluation = (1e3 * settings.batch_size / row.both for row in rows[:2])
    return "\n".join(
        (
            f"{settings.method} on {settings.pretrained_clip_name}, {settings.precision}, batch {settings.batch_size}, "
            f"frames {frames}, words {words}, medians of {settings.repeats}",
            origin_of(device)[1],
            "",
            format_rows(rows),
            "",
            f"{operations / 1e9:.3f} GFLOP per clip forward, {training:.2f} clips per second in training, "
            f"{evaluation:.2f} in evaluation",
        )
    )


def main(argv: Sequence[str] | None = None) -> int:
    return print_report(lambda: report(*parse_with_options(Settings, argv)))


if __name__ == "__main__":
    sys.exit(main())
