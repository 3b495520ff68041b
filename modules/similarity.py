"""Comparing captions with videos, as pure functions.

Shapes: N captions, B videos, T frames, E joint embedding.
"""

import torch
import torch.nn.functional as F

from modules.precision import without_autocast


def masked_mean(frames: torch.Tensor, frame_mask: torch.Tensor) -> torch.Tensor:
    """Return the mean of the normalised embeddings of real frames (CLIP4Clip's parameter-free pooling, "meanP").

    Args:
        frames: `[B,T,E]` float, one embedding per frame, of any length.
        frame_mask: `[B,T]`, true or 1 where the frame is real; at least one per row.

    Returns:
        `[B,E]`, not normalised; `cosine_similarity` does that.
    """
    weight = frame_mask.to(frames.dtype).unsqueeze(-1)
    return (F.normalize(frames, dim=-1) * weight).sum(dim=1) / weight.sum(dim=1)


def cosine_similarity(text: torch.Tensor, video: torch.Tensor, logit_scale: torch.Tensor) -> torch.Tensor:
    """Return all cosines of captions with videos, times `exp(logit_scale)`: `[N,E]`, `[B,E]` -> `[N,B]` in fp32."""
    return scaled_product(unit(text), unit(video), logit_scale)


def unit(rows: torch.Tensor) -> torch.Tensor:
    """Return rows `[N,E]` with length 1, in fp32."""
    with without_autocast(rows.device.type):
        return F.normalize(rows.float(), dim=-1)


def scaled_product(text: torch.Tensor, video: torch.Tensor, logit_scale: torch.Tensor) -> torch.Tensor:
    """Return all dot products, times `exp(logit_scale)`: fp32 `[N,E]`, `[B,E]` -> fp32 `[N,B]`."""
    with without_autocast(text.device.type):
        scale, product = logit_scale.float().exp(), text @ video.T
        return scale * product if torch.is_grad_enabled() else product.mul_(scale)
