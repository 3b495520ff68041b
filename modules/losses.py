"""Training losses on similarities, and `LOSSES`, which names them. Shapes: N caption-video pairs of the global batch.

A loss is a module, since it may own learned parameters: they are optimised, saved and resumed beside the method's.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from modules.clip import CLIP
from modules.options import one_of


def symmetric_info_nce(logits: Tensor, video_index: Tensor | None = None) -> Tensor:
    """Return the mean of the cross-entropies over the rows and over the columns of `[N,N]` logits; pair i belongs
    together.

    The loss of CLIP, CLIP4Clip and STOP. Other captions of the same video count as negatives, as in that lineage,
    unless `video_index`, int64 `[N]`, gives the number of each pair's video. Then every pair of the same video is a
    positive, and the mean is over the positives' log-probabilities: L_out of SupCon (Khosla et al., NeurIPS 2020,
    eq. 2) between captions and videos and in both directions, as UniCL (Yang et al., CVPR 2022). The positives stay in
    the denominators, so the result equals the plain loss if a video's pairs all have the same clip embedding.

    Raises:
        ValueError: if the logits are not square, or if `video_index` does not have one number per pair.
    """
    logits = _square("symmetric_info_nce", logits, video_index)
    if video_index is None:
        target = torch.arange(len(logits), device=logits.device)
    else:
        positive = (video_index[:, None] == video_index).to(logits.dtype)
        target = positive / positive.sum(dim=1, keepdim=True)  # symmetric, so it serves rows and columns
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


def _square(name: str, logits: Tensor, video_index: Tensor | None) -> Tensor:
    """Return the logits in fp32, or in fp64 if they are; ValueError if they or `video_index` have a wrong shape."""
    if logits.dim() != 2 or logits.shape[0] != logits.shape[1]:
        raise ValueError(f"{name} needs one video for each caption, a square matrix; got {tuple(logits.shape)}")
    if video_index is not None and video_index.shape != logits.shape[:1]:
        raise ValueError(
            f"{name} needs a video_index for each of the {len(logits)} pairs; got {tuple(video_index.shape)}"
        )
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


class Loss(nn.Module):
    """A loss of similarities: built from the CLIP in training, and called with the logits of a batch."""

    # True if the loss has its own temperature. Then `clip.logit_scale` cancels, and training freezes it.
    owns_scale = False

    # Names of the method's trained parameters that a checkpoint may lack, because its training had no use for them.
    unused: frozenset[str] = frozenset()

    def __init__(self, clip: CLIP) -> None:
        super().__init__()

    def forward(self, logits: Tensor, video_index: Tensor | None = None) -> Tensor:
        """Return the scalar loss of `[N,N]` logits, captions in rows; pair i belongs together.

        Args:
            logits: fp32, cosines times `exp(clip.logit_scale)`, as a method's `similarity` returns them.
            video_index: int64 `[N]`, the number of each pair's video. If given, all pairs of one video are positives.

        Raises:
            ValueError: if the logits are not square, or if `video_index` does not have one number per pair.
        """
        raise NotImplementedError


class SymmetricInfoNCE(Loss):
    """The function `symmetric_info_nce` as a module; without parameters."""

    def forward(self, logits: Tensor, video_index: Tensor | None = None) -> Tensor:
        return symmetric_info_nce(logits, video_index)


class SummedInfoNCE(Loss):
    """Twice `symmetric_info_nce`: the sum of both directions and not their mean, as in STAN's released code.

    AdamW's steps hardly notice a constant factor, but --max_grad_norm does.
    """

    def forward(self, logits: Tensor, video_index: Tensor | None = None) -> Tensor:
        return 2 * symmetric_info_nce(logits, video_index)


class SigmoidLoss(Loss):
    """SigLIP's loss (Zhai et al., ICCV 2023, arXiv 2303.15343, eq. 1): each caption and video is a binary question.

    With the cosines x_i·y_j, labels z_ij = 1 for a pair that belongs together and -1 otherwise:

        L = -1/N Σ_i Σ_j log sigmoid(z_ij (t x_i·y_j + b)),   t = exp(t')

    `logit_scale` is t' and `logit_bias` is b. Both are learned and start at log 10 and -10 (section 3.2), or at the
    backbone's values if it was trained with this loss. The sum has no softmax, so every positive counts in full. The
    cosines are the `logits` over `exp(clip.logit_scale)`, whatever a method sets this to.
    """

    owns_scale = True

    def __init__(self, clip: CLIP) -> None:
        super().__init__(clip)
        trained = clip.logit_bias is not None
        self.logit_scale = nn.Parameter(clip.logit_scale.detach().clone() if trained else torch.tensor(math.log(10.0)))
        self.logit_bias = nn.Parameter(
            torch.tensor(-10.0) if clip.logit_bias is None else clip.logit_bias.detach().clone()
        )
        self._clip = (clip,)  # in a tuple, so that its tensors do not become the loss's

    def forward(self, logits: Tensor, video_index: Tensor | None = None) -> Tensor:
        logits = _square("sigmoid", logits, video_index)
        if video_index is None:
            positive = torch.eye(len(logits), dtype=torch.bool, device=logits.device)
        else:
            positive = video_index[:, None] == video_index
        scaled = self.rescaled(logits)
        return -F.logsigmoid(torch.where(positive, scaled, -scaled)).sum() / len(logits)  # eq. 1

    def rescaled(self, logits: Tensor) -> Tensor:
        """Return t cos + b for `[N,N]` logits of `exp(clip.logit_scale)` cos, whose sigmoids are probabilities."""
        return self.logit_scale.exp() * (logits / self._clip[0].logit_scale.exp()) + self.logit_bias


LOSSES: dict[str, type[Loss]] = {
    "symmetric_info_nce": SymmetricInfoNCE,
    "summed_info_nce": SummedInfoNCE,
    "sigmoid": SigmoidLoss,
}


AUTO = "auto"
LOSS_OF = {"softmax": "symmetric_info_nce", "sigmoid": "sigmoid"}  # by the similarity a backbone was trained with


def build_loss(name: str, clip: CLIP) -> Loss:
    """Build the loss `name` of `LOSSES` for training with `clip`, or for `AUTO` the one that its backbone was trained
    with; ValueError if there is no such loss."""
    one_of("loss", name, (*LOSSES, AUTO))
    return LOSSES[LOSS_OF[clip.backbone.similarity] if name == AUTO else name](clip)
