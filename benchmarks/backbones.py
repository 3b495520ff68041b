"""Compares a method's training step on several backbones, each with its own floor.

    python -m benchmarks.backbones
    python -m benchmarks.backbones --only "stop --lora_dim 8" --backbones ViT-B/16,open_clip:PE-Core-L-14-336/meta

Needs neither data nor weights: a backbone is given by name, and its weights, pixels and words are random. The floor is
the bare frozen vision tower of that backbone, forward and back to its tokens, on the same frames; steps and floors
alternate, so that their ratio holds on a busy machine too. `benchmarks.methods` says how both are measured. Captions
have --max_words tokens, or as many as the backbone reads if that is fewer; where the last token stands for a text, they
have all, as in training.
"""

import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated

from tqdm import tqdm

from benchmarks import methods
from benchmarks.common import check_outputs, default_device, origin_of, parse_settings, write_json
from benchmarks.methods import Cost, format_costs, in_own_process, measure_method, reason_against
from engine.errors import print_report
from modules.clip_weights import architecture_of
from modules.options import Checked, Range

NOT_MEASURED = ("method", "ceiling_share", "largest_batch")
DEFAULT = "ViT-B/32,ViT-B/16,open_clip:PE-Core-B-16/meta,open_clip:ViT-B-32-SigLIP2-256/webli"


@dataclass(frozen=True)
class Settings(Checked):
    """The flags."""

    only: Annotated[str, "the method, with options if needed"] = "stop"
    backbones: Annotated[str, "backbones by name, or by their weights, separated by commas; only sizes count"] = DEFAULT
    batch_size: Annotated[int, "B, clips per step; 0: 128 on a GPU, 2 on a CPU", Range(0)] = 0
    frames: Annotated[int, "T, frames per clip", Range(1)] = 12
    max_words: Annotated[int, "L, tokens per caption, at most", Range(3)] = 32
    precision: Annotated[str, "precision of the encoders: auto, fp32, bf16 or fp16"] = "auto"
    repeats: Annotated[
        int, "steps (on a GPU, rows of steps) to take the median of, after one warm-up step", Range(1)
    ] = 5
    output: Annotated[str, "json file for the numbers; empty: none"] = "results/benchmark_backbones.json"

    @property
    def names(self) -> list[str]:
        return [name.strip() for name in self.backbones.split(",")]

    def on(self, backbone: str) -> methods.Settings:
        """Return the settings of `benchmarks.methods` for one backbone."""
        architecture = architecture_of(backbone)
        return methods.Settings(
            only=self.only,
            pretrained_clip_name=backbone,
            batch_size=self.batch_size,
            frames=self.frames,
            max_words=architecture.row_length(min(self.max_words, architecture.context_length)),
            precision=self.precision,  # type: ignore[arg-type]  # checked there
            memory_search=False,
            repeats=self.repeats,
        ).for_this_machine()


def report(settings: Settings) -> str:
    """Measure the method on all backbones, write the file and return the text to print."""
    check_outputs(settings.output)
    each = {name: settings.on(name) for name in settings.names}
    for name in each:
        if reason := reason_against(settings.only, name, settings.frames):
            raise ValueError(f"{name}: {reason}")
    origin, where = origin_of(default_device())
    costs: list[Cost] = []
    for name, of_methods in tqdm(each.items(), "backbones", leave=False):
        cost = in_own_process(measure_method, settings.only, of_methods, float("inf"))
        costs.append(replace(cost, method=name))
        if settings.output:  # after each backbone, so that nothing is lost with the last one
            rows = [
                {"backbone": cost.method, "max_words": each[cost.method].max_words, **_figures(cost)} for cost in costs
            ]
            write_json(Path(settings.output), {"settings": asdict(settings), **origin, "backbones": rows})
    first = next(iter(each.values()))
    return "\n".join(
        (
            f"{settings.only}, {first.precision}, batch {first.batch_size}, frames {first.frames}, medians of "
            f"{settings.repeats}",
            where,
            "training steps in milliseconds, the least and the greatest in brackets:",
            "",
            format_costs(costs, leave_out=("ceiling", "largest batch"), first="backbone"),
        )
    )


def _figures(cost: Cost) -> dict[str, object]:
    """Return what was measured; the rate of the device was not."""
    return {name: value for name, value in asdict(cost).items() if name not in NOT_MEASURED}


def main(argv: Sequence[str] | None = None) -> int:
    return print_report(lambda: report(parse_settings(Settings, argv)))


if __name__ == "__main__":
    sys.exit(main())
