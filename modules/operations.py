"""Counts the operations of a method's forward pass."""

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from modules.methods.base import Method


@torch.no_grad()
def count_operations(method: Method, max_frames: int, max_words: int) -> int:
    """Return the floating-point operations of `encode_video` for one clip plus `encode_text` for one caption.

    Counts matrix products and convolutions, as torch does; leaves out Fourier transforms.
    """
    from torch.utils.flop_counter import FlopCounterMode  # imports Triton

    visual = method.clip.visual
    device = next(method.parameters()).device
    video = torch.empty(1, max_frames, 3, visual.image_size, visual.image_size, device=device)
    frame_mask = torch.ones(1, max_frames, dtype=torch.bool, device=device)
    token_ids = torch.zeros(1, max_words, dtype=torch.int64, device=device)
    # The counter does not see fused attention kernels; the plain one is two matrix products, which it counts.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        method.encode_video(video, frame_mask)
        method.encode_text(token_ids)
    return counter.get_total_flops()
