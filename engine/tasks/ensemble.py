"""Scores together with the CLIP that a method began with, as STDD's release can do in a test.

    s = ratio s_clip + (1 - ratio) s_method

s_clip are the scores of that CLIP's frame embeddings with the same classifier and temperature. CLIP's text side is
shared, so only its vision tower is kept.

Shapes: n clips, T frames, E joint embedding.
"""

import torch
from torch import Tensor, nn

from engine.config import ModelConfig
from modules.clip_weights import load_clip
from modules.frame_rows import FrameRows
from modules.rows import Rows
from modules.similarity import masked_mean


def load_raw_tower(model: ModelConfig, device: torch.device) -> nn.Module:
    """Return the vision tower of --pretrained_clip_name, frozen; whatever --init_model holds."""
    clip = load_clip(model.pretrained_clip_name, model.pretrained_dir, asked=model.asked_of_clip())
    return clip.visual.requires_grad_(False).eval().to(device)


def raw_rows(tower: nn.Module, video: Tensor, frame_mask: Tensor, own: Rows) -> Rows:
    """Return CLIP's rows of normalised clips `[n,T,3,H,W]`, of the kind of the method's `own`, in fp32.

    These are its frame embeddings where the method's are frames too, else their mean, `[n,E]`.
    """
    frames = tower(video.flatten(0, 1)).unflatten(0, video.shape[:2]).float()
    if isinstance(own, FrameRows):
        return FrameRows.without_padding(frames, frame_mask)
    assert isinstance(own, Tensor), "no other rows have frames"
    return masked_mean(frames, frame_mask)
