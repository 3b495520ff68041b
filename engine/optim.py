"""AdamW over a method's parameter groups, and the schedules of the learning rate."""

import math
from typing import Any

import torch
from torch.autograd.graph import increment_version

BETAS = (0.9, 0.98)  # CLIP's, kept by CLIP4Clip and STOP
EPS = 1e-6
LEAST_LR = 1e-8  # where STOP's released schedule starts, and its floor


def build_optimizer(groups: list[dict[str, Any]]) -> torch.optim.AdamW:
    """Return AdamW with CLIP's constants; each group has its own learning rate and weight decay."""
    # Fused, because the other versions make the host wait for a GPU under a GradScaler, and are 3x slower on a CPU.
    optimizer = torch.optim.AdamW(groups, betas=BETAS, eps=EPS, fused=True)
    # A fused step does not count up the versions of tensors, by which `modules.precision` notices that they changed.
    optimizer.register_step_post_hook(lambda *_: increment_version([p for group in groups for p in group["params"]]))
    return optimizer


def warmup_cosine(step: int, total_steps: int, warmup_proportion: float) -> float:
    """Return the factor on every learning rate in step 0..total_steps-1: linear to 1, then half a cosine to 0."""
    warmup = warmup_proportion * total_steps
    if step < warmup:
        return (step + 1) / (warmup + 1)
    return _half_cosine(step, warmup, total_steps)


def released(step: int, total_steps: int, warmup_proportion: float, lr: float) -> float:
    """Return the learning rate of STOP's released code in step 0..total_steps-1 for a base rate `lr`: linear from
    LEAST_LR to `lr`, then half a cosine down to LEAST_LR."""
    warmup = warmup_proportion * total_steps
    if step < warmup:
        return LEAST_LR + (lr - LEAST_LR) * step / warmup
    return max(LEAST_LR, lr * _half_cosine(step, warmup, total_steps))


def _half_cosine(step: int, warmup: float, total_steps: int) -> float:
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1.0, total_steps - warmup)))


class ReleasedSchedule(torch.optim.lr_scheduler.LRScheduler):
    """The schedule `released`. It sets rates, not factors on them, because all groups share the same floor."""

    def __init__(self, optimizer: torch.optim.Optimizer, total_steps: int, warmup_proportion: float) -> None:
        self.total_steps, self.warmup_proportion = total_steps, warmup_proportion
        super().__init__(optimizer)

    def get_lr(self) -> list[float | torch.Tensor]:
        return [released(self.last_epoch, self.total_steps, self.warmup_proportion, float(lr)) for lr in self.base_lrs]


def build_schedule(
    optimizer: torch.optim.Optimizer, total_steps: int, warmup_proportion: float, schedule: str = "warmup_cosine"
) -> torch.optim.lr_scheduler.LRScheduler:
    """Return `warmup_cosine` or `released`, by name, as a scheduler to step once per training step."""
    if schedule == "released":
        return ReleasedSchedule(optimizer, total_steps, warmup_proportion)
    return torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: warmup_cosine(step, total_steps, warmup_proportion)
    )
