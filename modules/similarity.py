"""How a caption is compared with a video, as pure functions.

Shapes: N captions, B videos, T frames, E joint embedding.
"""

import torch
import torch.nn.functional as F


def masked_mean(frames: torch.Tensor, frame_mask: torch.Tensor) -> torch.Tensor:
    """Mean over the real frames of L2-normalised frame embeddings (CLIP4Clip's parameter-free pooling, "meanP").

    Args:
        frames: `[B,T,E]` float, one embedding a frame, any length.
        frame_mask: `[B,T]`, true or 1 where the frame is real; at least one a row.

    Returns:
        `[B,E]`, not normalised again: `cosine_similarity` does that.
    """
    weight = frame_mask.to(frames.dtype).unsqueeze(-1)
    return (F.normalize(frames, dim=-1) * weight).sum(dim=1) / weight.sum(dim=1)


def cosine_similarity(text: torch.Tensor, video: torch.Tensor, logit_scale: torch.Tensor) -> torch.Tensor:
    """Cosine of every caption with every video times `exp(logit_scale)`: `[N,E]`, `[B,E]` -> `[N,B]`, in fp32."""
    with torch.autocast(text.device.type, enabled=False):
        text = F.normalize(text.float(), dim=-1)
        video = F.normalize(video.float(), dim=-1)
        return logit_scale.float().exp() * (text @ video.T)
