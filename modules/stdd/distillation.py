"""Distillation from the CLIP that training began with, as STDD's paper describes it.

The term comes from FROSTER (Huang et al., ICLR 2024, arXiv 2402.03241), whose code also computes it with gradient.

    f~_bt = f_bt + 0.1 g(f_bt)       f: unit embedding of a frame, g: linear, GELU, linear; starts at zero
    L     = ratio (1 - mean over clips b and frames t of cos(f~_bt, r_bt))       r: the frozen CLIP's embedding

The released code of STDD computes f~ without gradient, so its term changes nothing.

Shapes: B clips, T frames, E joint embedding.
"""

import copy
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from modules.clip import CLIP
from modules.frame_rows import FrameRows
from modules.similarity import unit

SHARE = 0.1  # of g in f~


class Distillation(nn.Module):
    """The term L, and g, which is trained with it.

    The frozen CLIP is a copy of the vision tower that `clip` has now. It moves with this module. But it is no part of
    its parameters or of its `state_dict`, because checkpoints need no second CLIP and loading one must not change it.
    """

    def __init__(self, clip: CLIP, ratio: float) -> None:
        super().__init__()
        width = clip.architecture.embed_dim
        self.ratio = ratio
        first, last = (nn.Linear(width, width, bias=False) for _ in range(2))
        nn.init.kaiming_normal_(first.weight, nonlinearity="relu")
        nn.init.zeros_(last.weight)
        self.residual = nn.Sequential(first, nn.GELU(), last)
        self._frozen = (copy.deepcopy(clip.visual).requires_grad_(False).eval(),)  # a tuple: not registered

    def forward(self, video: Tensor, rows: FrameRows) -> Tensor:
        """Return L as a scalar, fp32, of clips `[B,T,3,H,W]` and the trained embeddings of their frames."""
        with torch.no_grad():
            raw = self._frozen[0](video.flatten(0, 1)).unflatten(0, video.shape[:2])
        frames = unit(rows.frames)
        frames = frames + SHARE * self.residual(frames).float()
        alike = F.cosine_similarity(frames, raw.float(), dim=-1).masked_fill(~rows.frame_mask, 0)  # [B,T]
        # Over the frames of each clip first, so that parts of a batch give what the whole gives.
        return self.ratio * (1 - (alike.sum(dim=1) / rows.frame_mask.sum(dim=1)).mean())

    def unsaved_tensors(self) -> dict[str, Tensor]:
        """Return the frozen CLIP's tensors, by name."""
        return {f"distillation.frozen.{name}": tensor for name, tensor in self._frozen[0].state_dict().items()}

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        """Do what torch does behind `to`, `double` ..., with the frozen CLIP too."""
        self._frozen[0]._apply(fn, recurse)
        return super()._apply(fn, recurse)
