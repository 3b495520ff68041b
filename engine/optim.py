"""AdamW over a method's parameter groups, and the schedules of the learning rate."""

import math
from typing import Any

import torch
from torch.autograd.graph import increment_version

BETAS = (0.9, 0.98)  # CLIP's, kept by CLIP4Clip and STOP
EPS = 1e-6
LEAST_LR = 1e-8  # where STOP's released schedule starts, and its floor


def build_optimizer(groups: list[dict[str, Any]], beta2: float = BETAS[1], eps: float = EPS) -> torch.optim.AdamW:
    """Return AdamW, by default with CLIP's constants; each group has its own learning rate and weight decay."""
    # Fused, because the other versions make the host wait for a GPU under a GradScaler, and are 3x slower on a CPU.
    optimizer = torch.optim.AdamW(groups, betas=(BETAS[0], beta2), eps=eps, fused=True)
    # A fused step does not count up the versions of tensors, by which `modules.precision` notices that they changed.
    optimizer.register_step_post_hook(lambda *_: increment_version([p for group in groups for p in group["params"]]))
    return optimizer


def warmup_cosine(step: int, total_steps: int, warmup_proportion: float, lr: float = 1.0) -> float:
    """Return the learning rate in step 0..total_steps-1 for a base rate `lr`: linear to it, then half a cosine to 0."""
    warmup = warmup_proportion * total_steps
    return lr * ((step + 1) / (warmup + 1) if step < warmup else _half_cosine(step, warmup, total_steps))


def released(step: int, total_steps: int, warmup_proportion: float, lr: float) -> float:
    """Return the learning rate of STOP's released code: linear from LEAST_LR to `lr`, then half a cosine back."""
    warmup = warmup_proportion * total_steps
    if step < warmup:
        return LEAST_LR + (lr - LEAST_LR) * step / warmup
    return max(LEAST_LR, lr * _half_cosine(step, warmup, total_steps))


def one_percent(step: int, total_steps: int, warmup_proportion: float, lr: float) -> float:
    """Return the learning rate of STDD's released code: linear from `lr` / 100 to `lr`, then half a cosine back."""
    warmup = warmup_proportion * total_steps
    share = step / warmup if step < warmup else _half_cosine(step, warmup, total_steps)
    return lr / 100 + (lr - lr / 100) * share


def _half_cosine(step: int, warmup: float, total_steps: int) -> float:
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1.0, total_steps - warmup)))


RATES = {"warmup_cosine": warmup_cosine, "released": released, "one_percent": one_percent}


class Schedule(torch.optim.lr_scheduler.LRScheduler):
    """A schedule by its name in RATES, to step once per training step; each group has its own base rate."""

    def __init__(
        self, optimizer: torch.optim.Optimizer, total_steps: int, warmup_proportion: float, name: str = "warmup_cosine"
    ) -> None:
        self.name, self.of_rate = name, (total_steps, warmup_proportion)
        super().__init__(optimizer)

    def get_lr(self) -> list[float | torch.Tensor]:
        return [RATES[self.name](self.last_epoch, *self.of_rate, float(lr)) for lr in self.base_lrs]
