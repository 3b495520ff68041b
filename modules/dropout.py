"""Dropout of prompts."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

STEPS = 1 << 16  # the probability is rounded to a multiple of 1 / STEPS


class PromptDropout(nn.Dropout):
    """torch's dropout, at a third of the time on CPUs: there torch draws one number for each value, and this one 64-bit
    number for four."""

    def forward(self, x: Tensor) -> Tensor:
        """`[...]` -> `[...]`."""
        if not self.training or x.device.type != "cpu" or torch.compiler.is_compiling():
            return F.dropout(x, self.p, self.training)
        dropped = round(self.p * STEPS)
        numbers = torch.empty((x.numel() + 3) // 4, dtype=torch.int64).random_(-(2**63), None)
        keep = numbers.view(torch.int16)[: x.numel()].view(x.shape) >= dropped - STEPS // 2
        return x * (keep * (STEPS / (STEPS - dropped))).to(x.dtype)
