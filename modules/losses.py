"""Training losses, as pure functions. Shapes: B caption-video pairs of the global batch."""

import torch
import torch.nn.functional as F


def symmetric_info_nce(logits: torch.Tensor) -> torch.Tensor:
    """Mean of the cross-entropies over the rows and over the columns of `[B,B]` logits; pair i belongs together.

    The loss of CLIP, CLIP4Clip and STOP. Other captions of the same video count as negatives, as in that lineage.

    Raises:
        ValueError: if the logits are not square.
    """
    if logits.dim() != 2 or logits.shape[0] != logits.shape[1]:
        raise ValueError(f"symmetric_info_nce needs one video a caption, a square matrix; got {tuple(logits.shape)}")
    logits = logits.float()
    target = torch.arange(len(logits), device=logits.device)
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2
