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

    video, frame_mask, token_ids = method.blank_inputs(max_frames, max_words)
    # The counter does not see fused attention kernels; the plain one is two matrix products, which it counts.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        method.encode_video(video, frame_mask)
        method.encode_text(token_ids)
    return counter.get_total_flops()
