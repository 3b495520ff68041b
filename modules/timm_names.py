"""Converting the key names of open_clip's CLIPs with a vision tower of timm (SigLIP, Perception Encoder) to ours.

Such files call the vision tower `visual.trunk` and its parts as timm does, and the text tower `text`.

Shapes: D width of a tower, E joint embedding.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from modules.weight_names import State

WITH_TIMM = "visual.trunk."

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
