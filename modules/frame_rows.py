"""Rows of clips whose frames stay apart, for scores that compare every frame with a text (see `modules.rows`).

Shapes: B clips, T frames, E joint embedding.
"""

from typing import NamedTuple

from torch import Tensor


class FrameRows(NamedTuple):
    """The embeddings of the frames of B clips.

    `frames` is float `[B,T,E]`, not normalised, and zero where the frame is padding. `frame_mask` is bool `[B,T]`, true
    where the frame is real; at least one of each clip is.
    """

    frames: Tensor
    frame_mask: Tensor

    @classmethod
    def without_padding(cls, frames: Tensor, frame_mask: Tensor) -> "FrameRows":
        """Return rows of embeddings `[B,T,E]`, of any value at padding, and a mask `[B,T]`, bool or of 0 and 1."""
        real = frame_mask.bool()
        return cls(frames.masked_fill(~real.unsqueeze(-1), 0), real)
