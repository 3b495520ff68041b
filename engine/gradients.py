"""Trained tensors that do not learn: which they are, before or soon after they cost anything."""

from collections.abc import Mapping

import torch
from torch import nn

from modules.quoting import some

SHOWN = 3
LOOK_AFTER = 10  # steps: what starts behind a Linear of zeros has a gradient from the second on


def unreached(parameters: Mapping[str, nn.Parameter], frames: int) -> ValueError | None:
    """After a backward pass: an error that names the trained tensors that took no part in it, None if all did.

    One process would go on and never train them; DistributedDataParallel would refuse the next step.
    """
    names = [name for name, parameter in parameters.items() if parameter.grad is None]
    if not names:
        return None
    of_frames, fix = f"{frames} frames", "switch"
    if frames == 1:
        of_frames, fix = "1 frame", "pass --max_frames 2 or more, or switch"
    return ValueError(
        f"{len(names)} of the {len(parameters)} trained tensors have no part in the loss of clips of {of_frames} and "
        f"cannot learn: {some(names, SHOWN)}; {fix} the part of the method that they belong to off"
    )


def idle(optimizer: torch.optim.Optimizer, parameters: Mapping[str, nn.Parameter]) -> list[str]:
    """The names of those that have had a gradient of exactly zero in all steps of Adam so far."""
    return [
        name
        for name, parameter in parameters.items()
        if "exp_avg" in (state := optimizer.state.get(parameter, {})) and not state["exp_avg"].any()
    ]
