"""AdamW over a method's parameter groups, and the learning rate's way up and down."""

import math
from typing import Any

import torch

BETAS = (0.9, 0.98)  # CLIP's, kept by CLIP4Clip and STOP
EPS = 1e-6


def build_optimizer(groups: list[dict[str, Any]], device: torch.device) -> torch.optim.AdamW:
    """AdamW with the lineage's constants; each group brings its own learning rate and weight decay."""
    return torch.optim.AdamW(groups, betas=BETAS, eps=EPS, fused=device.type == "cuda")


def warmup_cosine(step: int, total_steps: int, warmup_proportion: float) -> float:
    """The factor on every group's learning rate in step 0..total_steps-1: linear to 1, then half a cosine to 0."""
    warmup = warmup_proportion * total_steps
    if step < warmup:
        return (step + 1) / (warmup + 1)
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1.0, total_steps - warmup)))


def build_schedule(
    optimizer: torch.optim.Optimizer, total_steps: int, warmup_proportion: float
) -> torch.optim.lr_scheduler.LambdaLR:
    """`warmup_cosine` as a scheduler that is stepped once an optimiser step."""
    return torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: warmup_cosine(step, total_steps, warmup_proportion)
    )
