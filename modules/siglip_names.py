"""The key names of Hugging Face's `SiglipModel`, which SigLIP 2 with pictures of one size is too.

Shapes: D width of a tower, E joint embedding.
"""

from collections.abc import Mapping

from torch import Tensor

from modules.weight_names import HUGGING_FACE_BLOCK_PARTS, State, join_queries_keys_values

POOL = "vision_model.head."
# Starts of keys: Hugging Face's, ours.
STARTS = {
    "vision_model.embeddings.patch_embedding.": "visual.conv1.",
    "vision_model.embeddings.position_embedding.weight": "visual.positional_embedding",
    "vision_model.encoder.layers.": "visual.blocks.",
    "vision_model.post_layernorm.": "visual.ln_post.",
    "vision_model.head.probe": "visual.attention_pool.latent",
    "vision_model.head.attention.": "visual.attention_pool.attn.",
    "vision_model.head.layernorm.": "visual.attention_pool.ln.",
    "vision_model.head.mlp.": "visual.attention_pool.mlp.",
    "text_model.embeddings.token_embedding.": "text.token_embedding.",
    "text_model.embeddings.position_embedding.weight": "text.positional_embedding",
    "text_model.encoder.layers.": "text.blocks.",
    "text_model.final_layer_norm.": "text.ln_final.",
    "text_model.head.weight": "text.text_projection",
    "text_model.head.bias": "text.projection_bias",
}


def has_siglip_keys(state: Mapping[str, Tensor]) -> bool:
    """Return whether the weights are a `SiglipModel`: its vision tower has an attention pool."""
    return any(key.startswith(POOL) for key in state)


def from_siglip_keys(state: Mapping[str, Tensor]) -> State:
    """Convert keys and layout to those of `modules.clip.CLIP`; unknown keys stay as they are.

    q, k and v of a block are joined, the text projection is transposed, [E, D] -> [D, E], and the pool's latent and the
    two numbers of the similarity lose their dimensions of one. Raises ValueError as `join_queries_keys_values`.
    """
    converted: State = {}
    for key, tensor in join_queries_keys_values(state).items():
        renamed = next((new + key[len(old) :] for old, new in STARTS.items() if key.startswith(old)), key)
        for theirs, ours in HUGGING_FACE_BLOCK_PARTS.items():
            renamed = renamed.replace(theirs, ours)
        if renamed == "text.text_projection":
            tensor = tensor.T
        elif renamed == "visual.attention_pool.latent":
            tensor = tensor.flatten()
        elif renamed in ("logit_scale", "logit_bias") and tensor.numel() == 1:
            tensor = tensor.reshape(())
        converted[renamed] = tensor
    return converted
