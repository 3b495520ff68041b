"""Where the time of a training step goes, part by part, for any method; needs neither data nor weights.

    python -m benchmarks.step --method stop_released --batch_size 2
    python -m benchmarks.step --method dgl --shared_latent_space linear --repeats 10 --precision bf16

Weights, pixels and words are random. The whole step is from uint8 frames to the loss and back, as in `engine.train`
without the optimiser. Then each part runs alone, on the inputs that it got in one step: the text encoder, and every
module that the method adds to CLIP. What stays in a cache within a step may not do so alone, and the other way round,
so the parts' shares are good to a few percent.

Shapes: B clips with a caption each, T frames, L words.
"""

import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Annotated, Any, Literal, TypeVar

import torch
from torch import Tensor, nn

from dataloaders.quoting import quoted
from engine.cli import parse_flags, print_report
from engine.config import between
from engine.data import normalise_for
from engine.describe import count_operations
from engine.distributed import Process
from engine.flags import PICTURES, check_file
from engine.logger import provenance
from engine.train import ContrastiveStep, autocast_for
from modules.clip import CLIP, CLIPArchitecture
from modules.clip_weights import architecture_of
from modules.methods import METHODS, Method, build_method, method_options

Batch = tuple[Tensor, Tensor, Tensor]  # video uint8 [B,T,3,H,W], frame_mask bool [B,T], token_ids int64 [B,L]
Result = TypeVar("Result")

STEP, EVALUATION, TEXT, REST = "whole step", "evaluation forward", "text", "towers and the rest"


@dataclass(frozen=True)
class Settings:
    """What is measured."""

    method: Annotated[str, "one of modules.methods.METHODS"] = "stop"
    pretrained_clip_name: Annotated[str, "a CLIP by name (ViT-B/32 ...) or by its weights; only its sizes count"] = (
        "ViT-B/32"
    )
    batch_size: Annotated[int, "clips, and captions, of a step"] = 2
    max_frames: Annotated[int, "T, frames of a clip"] = 12
    max_words: Annotated[int, "tokens of a caption, START and END included"] = 32
    repeats: Annotated[int, "runs of which the median counts, after one to warm up"] = 3
    precision: Annotated[Literal["fp32", "bf16"], "of the encoders"] = "fp32"

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise ValueError(f"--method {quoted(self.method)} is not one of: {', '.join(METHODS)}")
        for name, low in (("batch_size", 1), ("max_frames", 1), ("max_words", 3), ("repeats", 1)):
            between(name, getattr(self, name), low)


@dataclass(frozen=True)
class Row:
    """Median times in milliseconds."""

    name: str
    forward: float
    backward: float | None  # None where there is no way back, in evaluation

    @property
    def both(self) -> float:
        return self.forward + (self.backward or 0.0)


@dataclass(frozen=True)
class Call:
    """One call of a module in a training step, that can be made again alone."""

    module: nn.Module
    arguments: tuple[Any, ...]
    keywords: dict[str, Any]

    def __call__(self) -> Any:
        arguments, keywords = map_tensors(detached, (self.arguments, self.keywords))
        return self.module(*arguments, **keywords)


def measure(method: Method, batch: Batch, repeats: int, precision: str = "fp32") -> list[Row]:
    """Time a training step and its parts, where the batch is; `method` comes back in training mode, unchanged.

    Returns:
        The whole step; the forward pass in evaluation; `encode_text` less what it calls of the parts; a row for each
        child of the method other than `clip` that a step calls, a container's modules together; what remains of the
        step. Those after evaluation add up to the whole step, but for remainders below zero, which become zero.
    """
    video, _, token_ids = batch
    autocast = autocast_for(precision, video.device)
    train_step = ContrastiveStep(method, autocast)

    def step() -> Tensor:
        return train_step(*batch)

    def encode_text() -> Tensor:
        with autocast():
            return method.encode_text(token_ids)

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
    """Time the forward pass in evaluation, of clips and captions; `method` comes back in training mode."""
    video, frame_mask, token_ids = batch
    autocast = autocast_for(precision, video.device)

    def evaluate() -> Any:
        with torch.no_grad(), autocast():
            return method(normalise_for(method.clip, video), frame_mask, token_ids)

    method.eval()
    row = time_both_ways(EVALUATION, evaluate, method, video.device, repeats)
    method.train()
    return replace(row, backward=None)


def time_both_ways(name: str, forward: Callable[[], Any], method: Method, device: torch.device, repeats: int) -> Row:
    """Time `forward`, and the way back from random gradients on all its results that want one; once to warm up."""
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


def timed(run: Callable[[], Result], device: torch.device) -> tuple[Result, float]:
    """What `run` gives, and the milliseconds until the device has finished it."""

    def now() -> float:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return 1e3 * time.perf_counter()

    start = now()
    result = run()
    return result, now() - start


def remainder(name: str, whole: Row, parts: Sequence[Row]) -> Row:
    """`whole` less `parts`, not below zero: what is left of a small difference may be noise alone."""
    forward = whole.forward - sum(part.forward for part in parts)
    backward = (whole.backward or 0.0) - sum(part.backward or 0.0 for part in parts)
    return Row(name, max(forward, 0.0), max(backward, 0.0))


def record_calls(method: Method, run: Callable[[], Any]) -> dict[str, list[Call]]:
    """The calls, while `run` runs, of what the method adds to CLIP, by direct child in the order of first calls."""
    calls: dict[str, list[Call]] = {}

    def recorder(name: str) -> Callable[..., None]:
        def record(module: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
            # Detached now already, so that what is kept does not keep the whole step's graph.
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
    """The module itself, or if it is a container, which nobody calls, what is in it."""
    if isinstance(module, nn.ModuleList | nn.ModuleDict):
        for child in module.children():
            yield from called_modules(child)
    else:
        yield module


def detached(tensor: Tensor) -> Tensor:
    """The same values in the same layout as a leaf, which wants a gradient if the tensor does."""
    return tensor.detach().requires_grad_(tensor.requires_grad)


def map_tensors(function: Callable[[Tensor], Any], value: Any) -> Any:
    """`value` with `function` of each tensor in it; enters (Named)Tuples, lists, dictionaries and dataclasses."""
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
    """All tensors in what `map_tensors` enters."""
    found: list[Tensor] = []
    map_tensors(found.append, value)
    return found


def random_batch(
    architecture: CLIPArchitecture, batch_size: int, max_frames: int, max_words: int, device: torch.device
) -> Batch:
    """Clips of noise without padding, captions of any words that fill all places between START and END."""
    side, vocabulary = architecture.image_size, architecture.vocab_size
    video = torch.randint(256, (batch_size, max_frames, 3, side, side), dtype=torch.uint8, device=device)
    frame_mask = torch.ones(batch_size, max_frames, dtype=torch.bool, device=device)
    token_ids = torch.randint(vocabulary - 2, (batch_size, max_words), device=device)
    token_ids[:, 0], token_ids[:, -1] = vocabulary - 2, vocabulary - 1
    return video, frame_mask, token_ids


def format_rows(rows: Sequence[Row]) -> str:
    """The table; shares are of the first row, and a row without a way back has none."""
    lines = [f"{'ms':<28}{'forward':>11}{'backward':>11}{'both':>11}{'share':>10}"]
    for row in rows:
        line = f"{row.name:<28}{row.forward:>11.2f}"
        if row.backward is not None:
            line += f"{row.backward:>11.2f}{row.both:>11.2f}{row.both / rows[0].both:>10.1%}"
        lines.append(line)
    return "\n".join(lines)


def origin_of(device: torch.device) -> tuple[dict[str, Any], str]:
    """Hardware, versions, threads and commit of a measurement: by name for a file, and as a line."""
    origin: dict[str, Any] = {**provenance(Process(0, 1, device)), "threads": torch.get_num_threads()}
    threads = "" if device.type == "cuda" else f", {origin['threads']} threads"
    return origin, f"{origin['hardware']}{threads}, {origin['versions']}, commit {origin['commit']}"


def check_outputs(output: str, chart: str = "") -> None:
    """Whether the files that a benchmark writes at its end can be written, none if empty; ValueError if not."""
    if output:
        check_file("--output", Path(output))
    if chart:
        check_file("--chart", Path(chart), PICTURES)
        if find_spec("matplotlib") is None:
            raise ValueError("--chart needs matplotlib: pip install matplotlib, or pass --chart= for none")


def check_clip(name: str, max_words: int) -> CLIPArchitecture:
    """The sizes of the CLIP that is measured; OSError if there is none, ValueError if captions are too long for it."""
    architecture = architecture_of(name)
    between("max_words", max_words, 3, architecture.context_length)
    return architecture


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write what was measured, into a new folder if need be."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=1) + "\n")


def report(settings: Settings, options: dict[str, Any]) -> str:
    """Build what the settings name, measure it, and say how."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    architecture = check_clip(settings.pretrained_clip_name, settings.max_words)
    frames, words = settings.max_frames, settings.max_words
    with torch.device("meta"):
        counted = build_method(settings.method, CLIP(architecture), **options).eval().requires_grad_(False)
    operations = count_operations(counted, frames, words)
    torch.manual_seed(0)
    method = build_method(settings.method, CLIP(architecture), **options).to(device)
    batch = random_batch(architecture, settings.batch_size, frames, words, device)
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
            f"{operations / 1e9:.3f} GFLOP a clip forward, {training:.2f} clips a second in training, "
            f"{evaluation:.2f} in evaluation",
        )
    )


def parse_with_options(kind: type[Result], argv: Sequence[str] | None) -> tuple[Result, dict[str, Any]]:
    """Settings, a dataclass with a `method`, and that method's own options, from the command line."""
    values = parse_flags({"benchmark": kind}, kind.method, argv)  # type: ignore[attr-defined]
    settings = kind(**{item.name: values[item.name] for item in fields(kind)})  # type: ignore[arg-type]
    return settings, {option.name: values[option.name] for option in method_options(METHODS[values["method"]])}


def main(argv: Sequence[str] | None = None) -> int:
    return print_report(lambda: report(*parse_with_options(Settings, argv)))


if __name__ == "__main__":
    sys.exit(main())
