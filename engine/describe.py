"""What a method costs, without weights or data: trainable and total parameters, operations a clip, a line a part."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from modules.backbones import StatedFacts
from modules.clip import CLIP
from modules.clip_weights import backbone_of
from modules.methods import Method, build_method
from modules.methods.base import DeadParameters


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
    """Counts for a method around a CLIP given by name (no file needed) or by path (its sizes are read).

    Returns:
        A dictionary for JSON: parameters (all, trained ones by part, and those of them that cannot learn, with the
        reason), `gflops_per_clip` of one clip and one caption
        forward with 2 operations a multiply-add, and the settings these depend on.
    """
    backbone = backbone_of(clip_name, pretrained_dir, asked)
    with torch.device("meta"):
        method = build_method(method_name, CLIP(backbone.architecture, backbone), **options)
        loss = make_loss(method) if make_loss else nn.Module()  # which may freeze what it replaces
    method.eval()
    of_loss = {name: parameter.numel() for name, parameter in loss.named_parameters()}
    trainable = {name: parameter.numel() for name, parameter in method.trainable_parameters()}
    dead = {
        part.name: {"parameters": _count_dead(trainable, part), "reason": part.reason}
        for part in method.dead_parameters()
    }
    method.requires_grad_(False)  # the operation counter's hooks stumble over leaves that want gradients
    return {
        "method": method_name,
        "pretrained_clip_name": clip_name,
        "backbone": str(backbone),
        **options,
        "max_frames": max_frames,
        "max_words": max_words,
        "trainable_parameters": sum(trainable.values()),
        "total_parameters": sum(parameter.numel() for parameter in method.parameters()),
        "trainable_by_part": _by_part(trainable),
        **({"loss_parameters": of_loss} if of_loss else {}),
        **({"dead_parameters": dead} if dead else {}),
        "gflops_per_clip": round(count_operations(method, max_frames, max_words) / 1e9, 3),
    }


def _count_dead(trainable: Mapping[str, int], part: DeadParameters) -> int:
    return round(part.share * sum(n for name, n in trainable.items() if f"{name}.".startswith(f"{part.name}.")))


def _by_part(trainable: Mapping[str, int]) -> dict[str, int]:
    parts: dict[str, int] = {}
    for name, count in trainable.items():
        path = name.split(".")
        part = ".".join(path[: 3 if path[0] == "clip" else 1]) if len(path) > 1 else name
        parts[part] = parts.get(part, 0) + count
    return parts


@torch.no_grad()
def count_operations(method: Method, max_frames: int, max_words: int) -> int:
    """Floating-point operations of `encode_video` for one clip plus `encode_text` for one caption.

    Those of matrix products and convolutions, as torch counts them; Fourier transforms are not among them.
    """
    visual = method.clip.visual
    device = next(method.parameters()).device
    video = torch.empty(1, max_frames, 3, visual.image_size, visual.image_size, device=device)
    frame_mask = torch.ones(1, max_frames, dtype=torch.bool, device=device)
    token_ids = torch.zeros(1, max_words, dtype=torch.int64, device=device)
    # Fused attention kernels are invisible to the counter; the plain one is two counted matrix products.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        method.encode_video(video, frame_mask)
        method.encode_text(token_ids)
    return counter.get_total_flops()
