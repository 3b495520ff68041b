"""The flags of random crops of training clips, for every task that trains on clips."""

from dataclasses import dataclass
from typing import Annotated

from engine.config import TaskSettings
from modules.options import Range


@dataclass(frozen=True)
class CropSettings(TaskSettings):
    """Which parts of their frames training clips show; `dataloaders.augmentation.Augmentation` explains the values."""

    crop_scale: Annotated[
        float,
        "random crops of training clips have at least this share of a frame's area; 1: the middle square",
        Range(0, 1, above=True),
    ] = 1.0
    short_side_max: Annotated[
        int,
        "instead of --crop_scale: the short side of training clips gets a length drawn from CLIP's to so many pixels, "
        "and a square at a random place is cut out, as in PySlowFast; 0: off",
        Range(0),
    ] = 0
