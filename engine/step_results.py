"""Checks the results of training steps without making a GPU wait for the host."""

import math
from collections import deque
from dataclasses import dataclass

import torch

from engine.tasks.base import TrainingItems


@dataclass(frozen=True)
class StepResult:
    """The result of a step, possibly still being copied from the device to the host."""

    step: int
    items: torch.Tensor  # int64 [b], on the CPU: this process's share of the batch
    lr: float  # the largest learning rate of all groups
    values: torch.Tensor  # fp32 [3], on the CPU: loss, norm of the gradient, 1 for a skipped step
    arrived: torch.cuda.Event | None  # recorded after the copy of `values`; None on a CPU


class StepResults:
    """A queue of results that are not checked yet, and the values of those that are.

    Args:
        items: the training items, for messages.
        rank: the rank of this process, for messages.
        scaled: whether the loss is scaled for fp16, so that a gradient may overflow.
    """

    def __init__(self, items: TrainingItems, rank: int, scaled: bool) -> None:
        self.items, self.rank, self.scaled = items, rank, scaled
        self.waiting: deque[StepResult] = deque()
        self.values: dict[str, float] = {}  # of the newest checked step
        self.skipped = 0

    def add(
        self, step: int, items: torch.Tensor, lr: float, loss: torch.Tensor, norm: torch.Tensor, skipped: torch.Tensor
    ) -> None:
        """Queue the result of a step; its scalars are copied to the host while the device goes on working."""
        values = torch.stack([loss, norm, skipped.to(loss.dtype)]).to("cpu", non_blocking=True)
        arrived = torch.cuda.Event() if loss.is_cuda else None
        if arrived is not None:
            arrived.record()
        self.waiting.append(StepResult(step, items, lr, values, arrived))

    def check(self, lag: int = 0) -> None:
        """Check all queued results but the newest `lag`; use 0 before the weights are saved or evaluated.

        Raises:
            ValueError: a loss is not finite, or without fp16 a gradient; the message names the step and the videos.
        """
        while len(self.waiting) > lag:
            result = self.waiting.popleft()
            if result.arrived is not None:
                result.arrived.synchronize()
            loss, norm, skipped = result.values.tolist()
            if not math.isfinite(loss):
                raise self._not_finite("loss", loss, result)
            if not math.isfinite(norm) and not self.scaled:
                raise self._not_finite("norm of the gradient", norm, result)
            self.values = {"loss": loss, "gradient_norm": norm, "lr": result.lr}
            self.skipped += int(skipped)

    def _not_finite(self, what: str, value: float, result: StepResult) -> ValueError:
        videos = ", ".join(self.items.video_id(item) for item in result.items[:8].tolist())
        return ValueError(
            f"the {what} is {value} in step {result.step} on process {self.rank}, with the videos {videos} "
            f"...; lower --lr{', pass --precision fp32' if self.scaled else ''} or check these files"
        )
