"""AdamW over a method's parameter groups, and the schedule of its learning rates."""

import math
from typing import Any

import torch
from torch.autograd.graph import increment_version

from modules.learning_rates import LEAST_LR, RATES, one_percent, periodic_cosine, released, warmup_cosine

__all__ = ["LEAST_LR", "RATES", "one_percent", "periodic_cosine", "released", "warmup_cosine"]
BETAS = (0.9, 0.98)  # CLIP's, kept by CLIP4Clip and STOP
EPS = 1e-6


def build_optimizer(groups: list[dict[str, Any]], beta2: float = BETAS[1], eps: float = EPS) -> torch.optim.AdamW:
    """Return AdamW, by default with CLIP's constants; each group has its own learning rate and weight decay."""
    # Fused, because the other versions make the host wait for a GPU under a GradScaler, and are 3x slower on a CPU.
    optimizer = torch.optim.AdamW(groups, betas=(BETAS[0], beta2), eps=eps, fused=True)
    # A fused step does not count up the versions of tensors, by which `modules.precision` notices that they changed.
    optimizer.register_step_post_hook(lambda *_: increment_version([p for group in groups for p in group["params"]]))
    return optimizer


def leave_eps_uncorrected(optimizer: torch.optim.Optimizer, schedule: "Schedule", eps: float) -> None:
    """Make AdamW add `eps` to the root of its mean of squares before that is corrected for its start at zero.

    In step k the step is then lr √(1 - β2^k) / (1 - β1^k) m / (√v + eps), as in TempMe's own AdamW.
    """

    def hook(*_: Any) -> None:
        for group in optimizer.param_groups:
            group["eps"] = eps / math.sqrt(1 - group["betas"][1] ** (schedule.last_epoch + 1))

    optimizer.register_step_pre_hook(hook)


class Schedule(torch.optim.lr_scheduler.LRScheduler):
    """A schedule by its name in RATES, to step once per training step; each group has its own base rate.

    `fall` is the share of all steps in which the cosine of "periodic_cosine" falls to 0; the others do not use it.
    """

    def __init__(
        self, optimizer: torch.optim.Optimizer, total_steps: int, warmup_proportion: float,
        name: str = "warmup_cosine", fall: float = 1.0,
    ) -> None:  # fmt: skip
        self.name, self.of_rate = name, (total_steps, warmup_proportion)
        self.further = {"fall": fall} if name == "periodic_cosine" else {}
        super().__init__(optimizer)

    def get_lr(self) -> list[float | torch.Tensor]:
        rate = RATES[self.name]
        return [rate(self.last_epoch, *self.of_rate, float(lr), **self.further) for lr in self.base_lrs]
