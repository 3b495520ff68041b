"""What DiscoVLA aligns beside captions and videos: the captions of frames with the frames of a video.

Shapes: B pairs, T frames, E joint embedding; text a with frame captions i, video b with frames j.
"""

import math

import torch
from torch import Tensor

from modules.similarity import unit


def frame_similarity(text: Tensor, video: Tensor, real: Tensor, scale: Tensor) -> Tensor:
    """Return how alike frame captions and frames are, both ways: `[B,T,E]`, `[B,T,E]` -> `[B,B]`, between -1 and 1.

        c_i = max_j S_ij,   F1 = Σ_i c_i softmax_i(s c_i);   the same with i and j exchanged: F2;   (F1 + F2) / 2

    where S_ij is the cosine of caption i and frame j.

    Args:
        real: bool `[B,T]`, true where a frame and its caption count; at least one of each pair does.
        scale: s, a scalar.
    """
    cosine = torch.einsum("aie,bje->abij", unit(text), unit(video))
    captions, frames = real[:, None, :, None], real[None, :, None, :]
    of_captions = _weighted(cosine.masked_fill(~frames, -math.inf).amax(dim=3), captions[..., 0], scale)  # F1
    of_frames = _weighted(cosine.masked_fill(~captions, -math.inf).amax(dim=2), frames[:, :, 0], scale)  # F2
    return (of_captions + of_frames) / 2


def _weighted(best: Tensor, real: Tensor, scale: Tensor) -> Tensor:
    return (best * (scale * best).masked_fill(~real, -math.inf).softmax(dim=2)).sum(dim=2)


def distillation(student: Tensor, teacher: Tensor) -> Tensor:
    """Return 100 / B² Σ p_teacher (log p_teacher - log p_student), p the softmax of a row of logits `[B,B]`."""
    expected = teacher.log_softmax(dim=1)
    divergence = expected.exp() * (expected - student.log_softmax(dim=1))
    return 100 * divergence.mean()
