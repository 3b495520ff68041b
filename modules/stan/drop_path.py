"""Stochastic depth (Huang et al., ECCV 2016, arXiv 1603.09382) of attention branches."""

import torch
from torch import Tensor, nn


class DropPath(nn.Module):
    """In training, set whole rows of `[N,...]` to zero with probability `rate`, and divide the others by 1 - rate.

    A row is what its attention has in one row of its batch: a location in STAN's cross-frame part, a frame in its
    intra-frame part. The draws come from torch's own random state on the device of the rows.
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, rows: Tensor) -> Tensor:
        """Drop rows of `[N,...]` of any float type."""
        if not self.training or self.rate == 0:
            return rows
        keep = 1 - self.rate
        drawn = torch.rand(len(rows), *(1,) * (rows.dim() - 1), device=rows.device)
        return rows / keep * (keep + drawn).floor().to(rows.dtype)

    def extra_repr(self) -> str:
        return f"rate={self.rate:.3g}"
