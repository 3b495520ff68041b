"""The time table of STAN: one learned row for each frame.

Shapes: T frames, D width.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

ROWS = 64


class TimeTable(nn.Module):
    """`weight` is `[64,D]`. Frame t has row t, or with `frames` a row between the first `frames` ones.

    It starts as N(0,1), torch's own start of an embedding, as in the released code; other position tables of CLIP
    start at 0.02 or less.
    """

    def __init__(self, width: int, frames: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(ROWS, width))
        self.frames = frames

    def forward(self, frames: int) -> Tensor:
        """Return the rows of a clip of T frames, `[T,D]`.

        Interpolation is linear, and frame t lies at (t + 1/2) / T of the clip: the same moment has about the same row
        for any T.

        Raises:
            ValueError: if the clip has more than 64 frames, and `frames` was not given.
        """
        check_rows(frames, self.frames)
        if self.frames in (0, frames):
            return self.weight[:frames]
        rows = self.weight[: self.frames].T.unsqueeze(0)  # [1, D, frames]
        return F.interpolate(rows, size=frames, mode="linear", align_corners=False).squeeze(0).T


def check_rows(frames: int, trained: int) -> None:
    """Raise ValueError if a clip has more frames than the table has rows, and no interpolation is asked for."""
    if not trained and frames > ROWS:
        raise ValueError(
            f"STAN's time table has {ROWS} rows, and the clips have {frames} frames: pass --max_frames {ROWS} or less, "
            "or with --time_frames the number of frames that the rows are for, to interpolate between them"
        )
