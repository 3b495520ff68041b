"""Training losses, as pure functions. Shapes: B caption-video pairs of the global batch."""

import torch
import torch.nn.functional as F


def symmetric_info_nce(logits: torch.Tensor, video_index: torch.Tensor | None = None) -> torch.Tensor:
    """Mean of the cross-entropies over the rows and over the columns of `[B,B]` logits; pair i belongs together.

    The loss of CLIP, CLIP4Clip and STOP. Other captions of the same video count as negatives, as in that lineage,
    unless `video_index`, int64 `[B]`, names each pair's video by a number. Then every pair of the same video is a
    positive, and the mean is over the positives' log-probabilities: L_out of SupCon (Khosla et al., NeurIPS 2020,
    eq. 2) between captions and videos and in both directions, as UniCL (Yang et al., CVPR 2022). The positives stay in
    the denominators, so where a video's pairs all have the same clip embedding it is the plain loss again.

    Raises:
        ValueError: if the logits are not square, or if there is not one number a pair.
    """
    if logits.dim() != 2 or logits.shape[0] != logits.shape[1]:
        raise ValueError(f"symmetric_info_nce needs one video a caption, a square matrix; got {tuple(logits.shape)}")
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    if video_index is None:
        target = torch.arange(len(logits), device=logits.device)
    else:
        if video_index.shape != logits.shape[:1]:
            raise ValueError(
                f"symmetric_info_nce needs a video_index for each of the {len(logits)} pairs; got "
                f"{tuple(video_index.shape)}"
            )
        positive = (video_index[:, None] == video_index).to(logits.dtype)
        target = positive / positive.sum(dim=1, keepdim=True)  # symmetric, so it serves rows and columns
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2
