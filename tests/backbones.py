"""Tiny backbones of every family with random weights, for tests."""

from dataclasses import replace

from modules.backbones import TextParts, VisionParts
from modules.clip import CLIP
from tests.tiny import TINY, tiny_clip

FAMILIES = {
    "clip": TINY,
    "pe": replace(
        TINY, activation="gelu", vision=VisionParts(rotary=True, pool="attention", pool_heads=2, projection="linear")
    ),
    "siglip": replace(
        TINY,
        embed_dim=32,  # the vision tower's width: it has no projection
        activation="gelu",
        vision=VisionParts(
            class_token=False,
            patch_bias=True,
            pre_norm=False,
            pool="attention",
            pool_heads=2,
            projection="none",
            norm_eps=1e-6,
        ),
        text=TextParts(causal=False, end="last", projection_bias=True, activation="gelu_tanh", norm_eps=1e-6),
    ),
}


def family_clip(family: str, seed: int = 0) -> CLIP:
    """Return a tiny backbone of a family."""
    return tiny_clip(seed, FAMILIES[family], "sigmoid" if family == "siglip" else "softmax")
