"""Sets the precision of the encoders, and reads and restores the random state that dropout draws from."""

from collections.abc import Callable
from functools import partial
from typing import Literal

import torch

AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


def auto_precision(device: torch.device) -> Literal["bf16", "fp32"]:
    """Return the precision behind --precision auto: bf16 on a GPU that supports it, else fp32."""
    return "bf16" if device.type == "cuda" and torch.cuda.is_bf16_supported() else "fp32"


def autocast_for(precision: str, device: torch.device) -> Callable[[], torch.autocast]:
    """Return a function that makes the encoders' autocast context; `precision` is auto, fp32, bf16 or fp16."""
    if precision == "auto":
        precision = auto_precision(device)
    return partial(torch.autocast, device.type, AUTOCAST.get(precision), enabled=precision in AUTOCAST)


def random_state(device: torch.device) -> torch.Tensor:
    """Return the state of the generator that dropout on `device` draws from."""
    return torch.cuda.get_rng_state(device) if device.type == "cuda" else torch.get_rng_state()


def set_random_state(state: torch.Tensor, device: torch.device) -> None:
    """Restore a state that `random_state` returned."""
    if device.type == "cuda":
        torch.cuda.set_rng_state(state, device)
    else:
        torch.set_rng_state(state)
