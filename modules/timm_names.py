"""open_clip's models with a vision tower of timm, SigLIP and Perception Encoder: their sizes, and their key names.

A configuration names such a tower alone, so that its sizes are listed here; they are facts of timm's registry
(github.com/huggingface/pytorch-image-models, `models/eva.py` and `models/vision_transformer.py`). Files call the vision
tower `visual.trunk` and its parts as timm does, and the text tower `text`.

Shapes: D width of a tower, E joint embedding.
"""

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from modules.backbones import TextParts, VisionParts
from modules.weight_names import State

WITH_TIMM = "visual.trunk."


class Tower(NamedTuple):
    """The sizes of a vision tower; `hidden` is inside an MLP."""

    width: int
    layers: int
    heads: int
    hidden: int
    pool_heads: int


# Names are one of these, a patch size, a family and an image size, as in vit_base_patch16_siglip_224.
SIGLIP = {
    "base": Tower(768, 12, 12, 3072, 12),
    "large": Tower(1024, 24, 16, 4096, 16),
    "so400m": Tower(1152, 27, 16, 4304, 16),
    "giantopt": Tower(1536, 40, 16, 6144, 16),
}
PE_CORE = {
    "tiny": Tower(192, 12, 3, 768, 8),
    "small": Tower(384, 12, 6, 1536, 8),
    "base": Tower(768, 12, 12, 3072, 8),
    "large": Tower(1024, 24, 16, 4096, 8),
}
# Fields of SigLIP's text towers that `with_towers_of_timm` translates.
OF_SIGLIP_TEXTS = {
    "no_causal_mask", "proj_bias", "pool_type", "norm_kwargs", "act_kwargs", "mlp_ratio", "hf_tokenizer_name",
    "tokenizer_kwargs",
}  # fmt: skip
# These approximate GELU by tanh, as SigLIP 2's authors do; timm runs the others with the exact one.
TANH = {
    "vit_base_patch32_siglip_256", "vit_large_patch16_siglip_512", "vit_so400m_patch16_siglip_256",
    "vit_so400m_patch16_siglip_384", "vit_so400m_patch16_siglip_512", "vit_giantopt_patch16_siglip_256",
    "vit_giantopt_patch16_siglip_384",
}  # fmt: skip


def tower_of_timm(name: str) -> tuple[Tower, int, VisionParts] | None:
    """Return the sizes, the patch size in pixels and the parts of a vision tower; None for one that is not known."""
    match = re.fullmatch(r"vit_(pe_core_)?([a-z0-9]+)_patch(\d+)_(siglip_)?\d+", name)
    if match is None or bool(match[1]) == bool(match[4]):
        return None
    tower = (PE_CORE if match[1] else SIGLIP).get(match[2])
    if tower is None:
        return None
    if match[1]:
        parts = VisionParts(rotary=True, pool="attention", pool_heads=tower.pool_heads, projection="linear")
    else:
        parts = VisionParts(
            class_token=False, patch_bias=True, pre_norm=False, pool="attention", pool_heads=tower.pool_heads,
            projection="none", norm_eps=1e-6, activation="gelu_tanh" if name in TANH else "gelu",
        )  # fmt: skip
    hidden = 0 if tower.hidden == 4 * tower.width else tower.hidden
    return tower, int(match[3]), replace(parts, hidden=hidden)


# Starts of keys, then parts of a block or of the attention pool: timm's and open_clip's, ours.
STARTS = {
    "visual.trunk.cls_token": "visual.class_embedding",
    "visual.trunk.pos_embed": "visual.positional_embedding",
    "visual.trunk.patch_embed.proj.": "visual.conv1.",
    "visual.trunk.norm_pre.": "visual.ln_pre.",
    "visual.trunk.blocks.": "visual.blocks.",
    "visual.trunk.norm.": "visual.ln_post.",
    "visual.trunk.attn_pool.latent": "visual.attention_pool.latent",
    "visual.trunk.attn_pool.proj.": "visual.attention_pool.attn.out_proj.",
    "visual.trunk.attn_pool.norm.": "visual.attention_pool.ln.",
    "visual.trunk.attn_pool.": "visual.attention_pool.",
    "visual.trunk.head.weight": "visual.proj",
    "visual.trunk.head.bias": "visual.proj_bias",
    "text.transformer.resblocks.": "text.blocks.",
    "text.text_projection.weight": "text.text_projection",
    "text.text_projection.bias": "text.projection_bias",
}
PARTS = {
    ".norm1.": ".ln_1.",
    ".norm2.": ".ln_2.",
    ".attn.qkv.": ".attn.in_proj_",
    ".attn.proj.": ".attn.out_proj.",
    ".mlp.fc1.": ".mlp.c_fc.",
    ".mlp.fc2.": ".mlp.c_proj.",
}


class WithTimm(NamedTuple):
    """A configuration of open_clip without what is said of timm's tower, and what that means."""

    model: Mapping[str, Any]
    vision: Mapping[str, Any]
    text: Mapping[str, Any]
    vision_parts: VisionParts
    text_parts: TextParts
    similarity: str


def with_towers_of_timm(
    model: Mapping[str, Any], vision: Mapping[str, Any], text: Mapping[str, Any]
) -> WithTimm | None:
    """Return the configuration of a model with one of timm's towers that `modules.clip` can run, translated into sizes
    and parts; None for any other, so that the caller refuses what it does not know."""
    tower = tower_of_timm(str(vision.get("timm_model_name", "")))
    if tower is None or vision.get("timm_pool") != "map":
        return None
    sizes, patch_size, vision_parts = tower
    rest = {name: value for name, value in text.items() if name not in OF_SIGLIP_TEXTS}
    width, ratio = text.get("width", 512), text.get("mlp_ratio", 4.0)
    siglip = not vision_parts.class_token
    text_parts = TextParts()
    if siglip:
        said = {name: text.get(name) for name in ("no_causal_mask", "proj_bias", "pool_type")}
        tanh = (text.get("act_kwargs") or {}).get("approximate") == "tanh"
        if said != {"no_causal_mask": True, "proj_bias": True, "pool_type": "last"}:
            return None
        text_parts = TextParts(
            causal=False, end="last", projection_bias=True, activation="gelu_tanh" if tanh else "gelu",
            norm_eps=(text.get("norm_kwargs") or {}).get("eps", 1e-5), hidden=0 if ratio == 4.0 else int(width * ratio),
        )  # fmt: skip
    return WithTimm(
        {name: value for name, value in model.items() if name not in ("custom_text", "init_logit_bias")},
        {
            "image_size": vision.get("image_size", 224), "patch_size": patch_size, "width": sizes.width,
            "layers": sizes.layers, "heads": sizes.heads,
        },
        rest if siglip else text,
        vision_parts,
        text_parts,
        "sigmoid" if model.get("init_logit_bias") is not None else "softmax",
    )  # fmt: skip


def has_timm_keys(state: Mapping[str, Tensor]) -> bool:
    """Return whether the vision tower is one of timm's in open_clip."""
    return any(key.startswith(WITH_TIMM) for key in state)


def from_timm_keys(state: Mapping[str, Tensor]) -> State:
    """Convert keys and layout to those of `modules.clip.CLIP`; unknown keys stay as they are.

    The last projections are transposed, [E, D] -> [D, E], but for the text tower's without a bias, which open_clip
    stores as [D, E]; the pool's query and its keys and values are joined, [D, D] and [2 D, D] -> [3 D, D].
    """
    converted: State = {}
    for key, tensor in state.items():
        renamed = next((new + key[len(old) :] for old, new in STARTS.items() if key.startswith(old)), key)
        for theirs, ours in PARTS.items():
            renamed = renamed.replace(theirs, ours)
        if key in ("visual.trunk.cls_token", "visual.trunk.pos_embed", "visual.trunk.attn_pool.latent"):
            tensor = tensor.reshape(tensor.shape[1:] if key.endswith("pos_embed") else -1)
        if key in ("visual.trunk.head.weight", "text.text_projection.weight"):
            tensor = tensor.T
        converted[renamed] = tensor
    for kind in ("weight", "bias"):
        parts = [converted.pop(f"visual.attention_pool.{part}.{kind}", None) for part in ("q", "kv")]
        query, keys_values = parts
        if query is not None and keys_values is not None:
            converted[f"visual.attention_pool.attn.in_proj_{kind}"] = torch.cat([query, keys_values])
    return converted
