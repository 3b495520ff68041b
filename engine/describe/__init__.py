"""Counts a method's parameters, one row per component, and its operations per clip; needs neither weights nor data."""

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from modules.backbones import StatedFacts
from modules.clip import CLIP
from modules.clip_weights import backbone_of
from modules.methods import Method, build_method
from modules.operations import count_operations


def describe(
    method_name: str,
    clip_name: str,
    pretrained_dir: str,
    options: Mapping[str, Any],
    max_frames: int,
    max_words: int,
    asked: StatedFacts | None = None,
    make_loss: Callable[[Method], nn.Module] | None = None,
) -> dict[str, Any]:
    """Count a method around a CLIP that is given by name (needs no file) or by path (reads its sizes).

    Returns:
        A dictionary for JSON: the number of all parameters; the trainable ones, by component; those that cannot learn,
        with the reason; `gflops_per_clip`, for the forward pass of one clip and one caption with 2 operations per
        multiply-add; and the settings that these numbers depend on.
    """
    backbone = backbone_of(clip_name, pretrained_dir, asked)
    with torch.device("meta"):
        method = build_method(method_name, CLIP(backbone.architecture, backbone), **options)
        loss = make_loss(method) if make_loss else nn.Module()  # may freeze a parameter that it replaces
    method.eval()
    of_loss = {name: parameter.numel() for name, parameter in loss.named_parameters()}
    trainable = {name: parameter.numel() for name, parameter in method.trainable_parameters()}
    dead = {}
    for part in method.dead_parameters():
        count = sum(n for name, n in trainable.items() if f"{name}.".startswith(f"{part.name}."))
        dead[part.name] = {"parameters": round(part.share * count), "reason": part.reason}
    length = backbone.architecture.row_length(max_words)
    method.requires_grad_(False)  # the counter's hooks fail on leaves that require gradients
    return {
        "method": method_name,
        "pretrained_clip_name": clip_name,
        "backbone": str(backbone),
        **options,
        "max_frames": max_frames,
        "max_words": max_words,
        "trainable_parameters": sum(trainable.values()),
        "total_parameters": sum(parameter.numel() for parameter in method.parameters()),
        "trainable_by_part": _by_component(trainable),
        **({"loss_parameters": of_loss} if of_loss else {}),
        **({"dead_parameters": dead} if dead else {}),
        "gflops_per_clip": round(count_operations(method, max_frames, length) / 1e9, 3),
    }


def _by_component(trainable: Mapping[str, int]) -> dict[str, int]:
    counts: Counter[str] = Counter()
    for name, count in trainable.items():
        path = name.split(".")
        counts[".".join(path[: 3 if path[0] == "clip" else 1])] += count  # a child, or two levels lower for CLIP
    return dict(counts)
