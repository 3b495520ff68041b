"""Finds trained tensors that do not learn, before training or soon after its start."""

from collections.abc import Mapping

import torch
from torch import nn

from modules.quoting import some

SHOWN = 3
LOOK_AFTER = 10  # steps: a tensor before a Linear of zeros has a gradient only from the second step on


def unreached(parameters: Mapping[str, nn.Parameter], one_frame: bool = False) -> ValueError | None:
    """Return an error that names the trained tensors without a gradient after a backward pass, or None if all have one.

    A single process would go on and never train them; DistributedDataParallel would refuse the next step. `one_frame`
    says that clips have one frame, which is then the most likely reason.
    """
    names = [name for name, parameter in parameters.items() if parameter.grad is None]
    if not names:
        return None
    of_frames, more = (" of clips of 1 frame", "pass --max_frames 2 or more, or ") if one_frame else ("", "")
    return ValueError(
        f"{len(names)} of the {len(parameters)} trained tensors have no part in the loss{of_frames} and cannot learn: "
        f"{some(names, SHOWN)}; {more}switch off the part of the method that they belong to"
    )


def idle(optimizer: torch.optim.Optimizer, parameters: Mapping[str, nn.Parameter]) -> list[str]:
    """Return the names of the parameters whose gradient was exactly zero in all steps of Adam so far."""
    return [
        name
        for name, parameter in parameters.items()
        if "exp_avg" in (state := optimizer.state.get(parameter, {})) and not state["exp_avg"].any()
    ]
