"""Measures how the time of training steps divides into phases."""

import time
from typing import Any

import torch

PHASES = ("data", "forward", "backward", "optimiser")


class StepClock:
    """Measures the time of each phase, in seconds, without making a GPU wait."""

    def __init__(self, device: torch.device) -> None:
        self.on_gpu = device.type == "cuda"
        self.restart()

    def restart(self) -> None:
        """Discard all measurements and start now."""
        self.marks: list[tuple[str, Any]] = [("start", self._now())]
        self.began = time.perf_counter()

    def mark(self, phase: str) -> None:
        """Record that `phase` has just ended."""
        self.marks.append((phase, self._now()))

    def _now(self) -> Any:
        if not self.on_gpu:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def shares(self) -> dict[str, float]:
        """Return each phase's share of the time since the start, 0 to 1."""
        spent = dict.fromkeys(PHASES, 0.0)
        if self.on_gpu:
            torch.cuda.synchronize()
        for (_, before), (phase, now) in zip(self.marks, self.marks[1:], strict=False):
            spent[phase] += before.elapsed_time(now) if self.on_gpu else now - before
        total = sum(spent.values()) or 1.0
        return {phase: seconds / total for phase, seconds in spent.items()}
