"""Rotary positions of patches in two dimensions (RoPE), which Perception Encoder adds to its learned positions.

A pair of channels of a query or key is turned by an angle that grows with the patch's column or row, so that a product
of the two depends on how far apart the patches are. Class tokens and prompts have no place and are never turned.

Source: Su et al., "RoFormer", 2021, section 3.2; in two dimensions as in Perception Encoder (Bolya et al., 2025,
github.com/facebookresearch/perception_models), whose places start at 1 and whose columns come first.

Shapes: N rows, L tokens of a row, P patches, D width, d width of a head.
"""

from typing import Any

import torch
from torch import Tensor, nn

BASE = 10_000.0  # the slowest pair turns by about 1 / BASE a patch


class RotaryPositions(nn.Module):
    """Turns queries or keys [N, L, D]: `first` tokens that stay as they are, then patches, row by row of each frame."""

    turns: Tensor

    def __init__(self, first: int, grid: int, width: int, heads: int) -> None:
        super().__init__()
        of_head = width // heads
        if of_head % 4:
            raise ValueError(f"Rotary positions take heads of a width that 4 divides, not {of_head}.")
        self.first, self.heads, self.sizes = first, heads, (grid, of_head)
        self.register_buffer("turns", _turns(grid, of_head), persistent=False)

    def _load_from_state_dict(self, *arguments: Any, **options: Any) -> None:
        """Do what torch does. No file has the turns, so a module that was built without values gets them here."""
        super()._load_from_state_dict(*arguments, **options)
        if self.turns.is_meta:
            with torch.device("cpu"):
                self.turns = _turns(*self.sizes)

    def forward(self, x: Tensor) -> Tensor:
        frames = x[:, self.first :].unflatten(1, (-1, self.turns.shape[1]))  # fails if patches are missing
        real, imaginary = frames.unflatten(-1, (self.heads, -1, 2)).unbind(-1)  # [N, frames, P, heads, d / 2]
        cos, sin = self.turns.to(x.dtype)
        turned = torch.stack([real * cos - imaginary * sin, real * sin + imaginary * cos], dim=-1)
        return torch.cat([x[:, : self.first], turned.flatten(3).flatten(1, 2)], dim=1)


def _turns(grid: int, of_head: int) -> Tensor:
    """Return exp(i angle) of every patch and pair of channels, real and imaginary parts: [2, P, 1, d / 2]."""
    speeds = BASE ** -torch.linspace(0, 1, of_head // 4 + 1)[:-1]  # one for each pair of a half
    places = torch.arange(1, grid + 1, dtype=torch.float32)
    rows, columns = torch.meshgrid(places, places, indexing="ij")
    angles = torch.stack([columns, rows], dim=-1).flatten(0, 1).unsqueeze(-1) * speeds  # [P, 2, d / 4]
    angles = angles.flatten(1)
    return torch.stack([angles.cos(), angles.sin()]).unsqueeze(2)
