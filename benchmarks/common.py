"""What the benchmarks share: parsing, checks of inputs and outputs, made batches, timing, the origin of a measurement.

Shapes: B clips with one caption each, T frames, L words, H x W pixels.
"""

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import fields
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor

from engine.cli import parse_flags
from engine.distributed import Process
from engine.flags import PICTURES, check_file
from engine.logger import provenance
from modules.clip import CLIPArchitecture
from modules.clip_weights import architecture_of
from modules.methods import METHODS, method_options
from modules.options import between

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Batch = tuple[Tensor, Tensor, Tensor]  # video uint8 [B,T,3,H,W], frame_mask bool [B,T], token_ids int64 [B,(1+T),L]
Result = TypeVar("Result")


def default_device() -> torch.device:
    """Return the GPU if torch sees one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


# Inputs and outputs


def parse_with_options(settings: type[Result], argv: Sequence[str] | None) -> tuple[Result, dict[str, Any]]:
    """Parse a command line into `settings`, a dataclass with a field `method`, and that method's own options."""
    values = parse_flags({"benchmark": settings}, settings.method, argv)  # type: ignore[attr-defined]
    parsed = settings(**{item.name: values[item.name] for item in fields(settings)})  # type: ignore[arg-type]
    return parsed, {option.name: values[option.name] for option in method_options(METHODS[values["method"]])}


def parse_settings(settings: type[Result], argv: Sequence[str] | None = None) -> Result:
    """Build a dataclass of `Annotated` fields from the command line of a benchmark; raises ValueError as `parse_flags`
    does, and what `settings` itself raises."""
    return settings(**parse_flags({"benchmark": settings}, "", argv))


def check_clip(name: str, max_words: int) -> CLIPArchitecture:
    """Return the sizes of the CLIP; raise OSError if it does not exist, ValueError if it cannot read `max_words`."""
    architecture = architecture_of(name)
    between("max_words", max_words, 3, architecture.context_length)
    return architecture


def check_outputs(output: str, chart: str = "") -> None:
    """Raise ValueError if a file that the benchmark writes at its end cannot be written; an empty name means none."""
    if output:
        check_file("--output", Path(output))
    if chart:
        check_file("--chart", Path(chart), PICTURES)
        if find_spec("matplotlib") is None:
            raise ValueError("--chart needs matplotlib: pip install matplotlib, or pass --chart= for none")


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write the measurements; creates the folder if needed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=1) + "\n")


def save_figure(figure: "Figure", path: Path) -> None:
    """Write a chart; creates the folder if needed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)


def origin_of(device: torch.device) -> tuple[dict[str, Any], str]:
    """Return hardware, versions, threads and commit of a measurement, as a dictionary and as one line of text."""
    origin: dict[str, Any] = {**provenance(Process(0, 1, device)), "threads": torch.get_num_threads()}
    threads = "" if device.type == "cuda" else f", {origin['threads']} threads"
    return origin, f"{origin['hardware']}{threads}, {origin['versions']}, commit {origin['commit']}"


# Measuring


def random_batch(
    architecture: CLIPArchitecture,
    batch_size: int,
    max_frames: int,
    max_words: int,
    device: torch.device,
    frame_captions: bool = False,
) -> Batch:
    """Return clips of noise without padding, and captions of random words with START first and END last.

    With `frame_captions`, each caption is followed by those of the frames, for methods that read them in training.
    """
    side, vocabulary = architecture.image_size, architecture.vocab_size
    video = torch.randint(256, (batch_size, max_frames, 3, side, side), dtype=torch.uint8, device=device)
    frame_mask = torch.ones(batch_size, max_frames, dtype=torch.bool, device=device)
    texts = (batch_size, 1 + max_frames) if frame_captions else (batch_size,)
    token_ids = torch.randint(vocabulary - 2, (*texts, max_words), device=device)
    token_ids[..., 0], token_ids[..., -1] = vocabulary - 2, vocabulary - 1
    return video, frame_mask, token_ids


def timed(run: Callable[[], Result], device: torch.device) -> tuple[Result, float]:
    """Return the result of `run`, and the milliseconds until the device has finished it."""

    def now() -> float:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return 1e3 * time.perf_counter()

    start = now()
    result = run()
    return result, now() - start
