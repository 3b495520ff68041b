"""Views of a video: clips at several moments and squares at several places, whose scores a test brings together.

Shapes: V views, S image side, H x W pixels.
"""

import re
from dataclasses import dataclass

import torch

from dataloaders.quoting import quoted

SPATIAL = (1, 3)
MOST_CLIPS = 100  # more is a slip, and all views of a video are in memory at once


@dataclass(frozen=True)
class Views:
    """How many clips and squares are taken from each test video: V = temporal * spatial.

    View t * spatial + s has the t-th clip and the s-th square. `dataloaders.frame_sampling` places the clips. The
    squares are the middle one, or three along the long side: at its start, middle and end. Raises ValueError for
    another number of squares, for less than one clip and for more than 100.
    """

    temporal: int = 1
    spatial: int = 1

    def __post_init__(self) -> None:
        if not 1 <= self.temporal <= MOST_CLIPS or self.spatial not in SPATIAL:
            raise ValueError(
                f"--test_views is {self}: pass CLIPSxSQUARES, with 1 to {MOST_CLIPS} clips and 1 or 3 squares, such as "
                "3x1."
            )

    @classmethod
    def parse(cls, text: str) -> "Views":
        """Return the views that a text such as "3x1" names; ValueError for any other text."""
        numbers = re.fullmatch(r"(\d{1,4})x(\d{1,4})", text, re.ASCII)
        if numbers is None:
            raise ValueError(f"--test_views is {quoted(text)}: pass CLIPSxSQUARES, such as 1x1, 3x1 or 4x3.")
        return cls(*map(int, numbers.groups()))

    def __str__(self) -> str:
        return f"{self.temporal}x{self.spatial}"

    def __len__(self) -> int:
        return self.temporal * self.spatial


def squares(frames: torch.Tensor, size: int, count: int) -> torch.Tensor:
    """Cut `count` squares, 1 or 3, out of frames with H, W >= S: uint8 [..., 3, H, W] -> uint8 [count, ..., 3, S, S].

    They lie in the middle of the short side. On the long side one lies in the middle; three lie at its start, middle
    and end, in that order, which is from left to right or from top to bottom.
    """
    height, width = frames.shape[-2:]
    middle = (round((height - size) / 2), round((width - size) / 2))  # as torchvision's CenterCrop rounds
    if count == 1:
        corners = [middle]
    elif width >= height:
        corners = [(middle[0], left) for left in (0, middle[1], width - size)]
    else:
        corners = [(top, middle[1]) for top in (0, middle[0], height - size)]
    return torch.stack([frames[..., top : top + size, left : left + size] for top, left in corners])
