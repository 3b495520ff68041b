"""The backbones of the made world: one small CLIP, and the same with the towers of two other families."""

from dataclasses import replace

from modules.backbones import STATISTICS, Backbone, CLIPArchitecture, Preprocessing, TextParts, Tokens, VisionParts
from modules.tokenizer import END_TOKEN

ARCHITECTURE = CLIPArchitecture(
    embed_dim=128,
    image_size=112,
    patch_size=16,  # the default of --patch_size
    vision_width=128,
    vision_layers=3,
    vision_heads=2,
    context_length=32,
    vocab_size=END_TOKEN + 1,
    text_width=64,
    text_layers=3,
    text_heads=1,
)
FAMILIES = {
    "clip": Backbone(ARCHITECTURE),
    "pe": Backbone(
        replace(
            ARCHITECTURE,
            activation="gelu",
            vision=VisionParts(rotary=True, pool="attention", pool_heads=2, projection="linear"),
        ),
        Preprocessing(*STATISTICS["half"], "squash", "bilinear"),
    ),
    "siglip": Backbone(
        replace(
            ARCHITECTURE,  # whose joint embedding is as wide as the vision tower, which has no projection here
            activation="gelu_tanh",
            vision=VisionParts(
                class_token=False, patch_bias=True, pre_norm=False, pool="attention", pool_heads=2, projection="none",
                norm_eps=1e-6,
            ),
            text=TextParts(causal=False, end="last", projection_bias=True, norm_eps=1e-6),
        ),
        Preprocessing(*STATISTICS["half"], "squash", "bicubic"),
        Tokens(end="last"),
        "sigmoid",
    ),
}  # fmt: skip
