"""Curves of the learning rate: pure functions of the step, and `RATES`, which names them.

Each takes step 0..total_steps-1, the share of all steps in which the rate rises, and the base rate `lr`.
"""

import math
from collections.abc import Callable

LEAST_LR = 1e-8  # where STOP's released schedule starts, and its floor
PERIODIC_START = 0.05  # the share of the base rate at which STAN's released schedule starts


def warmup_cosine(step: int, total_steps: int, warmup_proportion: float, lr: float = 1.0) -> float:
    """Return the learning rate of CLIP4Clip's schedule: linear to `lr`, then half a cosine to 0."""
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


def periodic_cosine(step: int, total_steps: int, warmup_proportion: float, lr: float, fall: float = 1.0) -> float:
    """Return the learning rate of STAN's released code: linear from 5 % to `lr`, then a cosine that never ends.

    The cosine first reaches 0 after `fall` of all steps, `lr` again after twice as many, and so on. The last step of
    the rise already has `lr`, as in mmengine, and so has the one after it.
    """
    warmup = round(warmup_proportion * total_steps)
    if step < warmup:
        return lr * (PERIODIC_START + (1 - PERIODIC_START) * step / max(1, warmup - 1))
    return lr * 0.5 * (1 + math.cos(math.pi * (step - warmup) / (fall * total_steps)))


def _half_cosine(step: int, warmup: float, total_steps: int) -> float:
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1.0, total_steps - warmup)))


RATES: dict[str, Callable[..., float]] = {
    "warmup_cosine": warmup_cosine, "released": released, "one_percent": one_percent,
    "periodic_cosine": periodic_cosine,
}  # fmt: skip
