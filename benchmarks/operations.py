"""Floating-point operations of a clip, counted on the meta device: no weights, no pixels, no noise."""

from math import prod
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from modules.clip import CLIP, CLIPArchitecture
from modules.methods import build_method
from modules.operations import count_operations
from modules.rows import tensors_of


def count_forward(name: str, architecture: CLIPArchitecture, frames: int, max_words: int, /, **options: Any) -> int:
    """Return the operations of the forward pass of one clip and one caption (`modules.operations.count_operations`)."""
    with torch.device("meta"):
        method = build_method(name, CLIP(architecture), **options).eval().requires_grad_(False)
    return count_operations(method, frames, max_words)


def count_step(name: str, architecture: CLIPArchitecture, frames: int, max_words: int, /, **options: Any) -> int:
    """Return the operations of a training step per clip, forward and backward, without the optimiser.

    Counts a batch of two clips and halves the sum: a batch of one would count twice what a method shares between clips.
    """
    from torch.utils.flop_counter import FlopCounterMode  # imports Triton

    counter = FlopCounterMode(
        display=False,
        custom_mapping={
            torch.ops.aten.convolution_backward: _convolution_backward,
            torch.ops.aten.addmm_: _added_product,
        },
    )
    with torch.device("meta"):
        method = build_method(name, CLIP(architecture), **options).train()
        side = architecture.image_size
        video = torch.empty(2, frames, 3, side, side)
        frame_mask = torch.ones(2, frames, dtype=torch.bool)
        texts = (2, 1 + frames) if method.reads_frame_captions else (2,)
        token_ids = torch.zeros(*texts, max_words, dtype=torch.int64)
    with sdpa_kernel(SDPBackend.MATH), counter:
        # The similarity costs next to nothing, and autocast does not work on the meta device.
        outputs = [part for rows in method(video, frame_mask, token_ids) for part in tensors_of(rows)]
        torch.stack([part.sum() for part in outputs if part.requires_grad]).sum().backward()
    return counter.get_total_flops() // 2


def _convolution_backward(
    of_output: list[int], volume: list[int], kernel: list[int], *arguments: Any, out_shape: Any = None, **_: Any
) -> int:
    """Return the operations of a convolution's gradients to its input and its kernel, whichever are wanted.

    Each takes as many as the forward pass. torch's own count takes a depth-wise kernel for a full one.
    """
    wanted = sum(arguments[-1][:2])
    return wanted * 2 * of_output[0] * prod(of_output[2:]) * prod(kernel)


def _added_product(into: list[int], a: list[int], b: list[int], **_: Any) -> int:
    """Return the operations of an in-place `addmm_`, which torch's own count leaves out."""
    return 2 * prod(a) * b[1]
