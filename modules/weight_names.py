"""Converting the key names of CLIP's weights: OpenAI's, Hugging Face's and those of `modules.clip`.

Shapes: D width of a tower, E joint embedding.
"""

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from modules.quoting import some

State = dict[str, Tensor]

# Entries of OpenAI's archives that are not weights, and index buffers of older Hugging Face files.
NOT_WEIGHTS = {
    "input_resolution",
    "context_length",
    "vocab_size",
    "text_model.embeddings.position_ids",
    "vision_model.embeddings.position_ids",
}

# Prefixes of keys: OpenAI's, ours. All other keys are the same on both sides.
OPENAI_TO_OURS = {
    "visual.transformer.resblocks.": "visual.blocks.",
    "transformer.resblocks.": "text.blocks.",
    "token_embedding.": "text.token_embedding.",
    "positional_embedding": "text.positional_embedding",
    "ln_final.": "text.ln_final.",
    "text_projection": "text.text_projection",
}
HUGGING_FACE_TO_OPENAI = {
    "vision_model.embeddings.class_embedding": "visual.class_embedding",
    "vision_model.embeddings.patch_embedding.": "visual.conv1.",
    "vision_model.embeddings.position_embedding.weight": "visual.positional_embedding",
    "vision_model.pre_layrnorm.": "visual.ln_pre.",  # spelled so in every release
    "vision_model.encoder.layers.": "visual.transformer.resblocks.",
    "vision_model.post_layernorm.": "visual.ln_post.",
    "visual_projection.weight": "visual.proj",
    "text_model.embeddings.token_embedding.": "token_embedding.",
    "text_model.embeddings.position_embedding.weight": "positional_embedding",
    "text_model.encoder.layers.": "transformer.resblocks.",
    "text_model.final_layer_norm.": "ln_final.",
    "text_projection.weight": "text_projection",
}
HUGGING_FACE_BLOCK_PARTS = {
    ".layer_norm1.": ".ln_1.",
    ".layer_norm2.": ".ln_2.",
    ".self_attn.out_proj.": ".attn.out_proj.",
    ".self_attn.{q,k,v}_proj.": ".attn.in_proj_",  # the key of q, k and v in `join_queries_keys_values`
    ".mlp.fc1.": ".mlp.c_fc.",
    ".mlp.fc2.": ".mlp.c_proj.",
}


def has_hugging_face_keys(state: Mapping[str, Any]) -> bool:
    """Return whether the keys are those of a Hugging Face `CLIPModel`."""
    return any(key.startswith(("text_model.", "vision_model.")) for key in state)


def from_openai_keys(state: Mapping[str, Tensor]) -> State:
    """Rename OpenAI's keys to those of `modules.clip.CLIP`; tensors and unknown keys stay as they are."""
    return {_rename_start(key, OPENAI_TO_OURS): tensor for key, tensor in state.items()}


def to_openai_keys(state: Mapping[str, Tensor]) -> State:
    """Rename the keys of `modules.clip.CLIP` to OpenAI's: the inverse of `from_openai_keys`."""
    return {to_openai_key(key): tensor for key, tensor in state.items()}


def to_openai_key(key: str) -> str:
    """Return OpenAI's name for one key of `modules.clip.CLIP`."""
    return _rename_start(key, {ours: openai for openai, ours in OPENAI_TO_OURS.items()})


def from_hugging_face_keys(state: Mapping[str, Tensor]) -> State:
    """Convert keys and layout of a Hugging Face `CLIPModel` to OpenAI's.

    The projections are transposed, [E, D] -> [D, E], and q, k and v of a block are joined, three [D, D] -> [3 D, D].
    Unknown keys stay as they are. Raises ValueError if q, k or v is missing or has another shape than the others.
    """
    converted: State = {}
    for key, tensor in join_queries_keys_values(state).items():
        if key in NOT_WEIGHTS:
            continue
        renamed = _rename_start(key, HUGGING_FACE_TO_OPENAI)
        for theirs, openai in HUGGING_FACE_BLOCK_PARTS.items():
            renamed = renamed.replace(theirs, openai)
        transposed = renamed in ("visual.proj", "text_projection") and tensor.dim() == 2
        converted[renamed] = tensor.T if transposed else tensor
    return converted


def to_hugging_face_key(key: str) -> str:
    """Return the name that one of OpenAI's keys has in a Hugging Face `CLIPModel`.

    The projection of queries, keys and values has that of `join_queries_keys_values`.
    """
    renamed = _rename_start(key, {openai: theirs for theirs, openai in HUGGING_FACE_TO_OPENAI.items()})
    for theirs, openai in HUGGING_FACE_BLOCK_PARTS.items():
        renamed = renamed.replace(openai, theirs)
    return renamed


def join_queries_keys_values(state: Mapping[str, Tensor]) -> State:
    """Join q, k and v of each attention, three `[D,D]` -> `[3D,D]`, under the key `...attn.{q,k,v}_proj.weight`.

    Biases likewise. Other entries stay as they are. Raises ValueError if q, k or v is missing or has another shape than
    the others.
    """
    joined: State = {}
    faults = []
    for key, tensor in state.items():
        match = re.fullmatch(r"(.+attn\.)[qkv](_proj\.(?:weight|bias))", key)
        if match is None:
            joined[key] = tensor
            continue
        start, end = match.groups()
        parts = [f"{start}{letter}{end}" for letter in "qkv"]
        if key != next(part for part in parts if part in state):  # done with the first of them
            continue
        present = [state[part] for part in parts if part in state]
        faults += [f"{part} is missing" for part in parts if part not in state]
        if len({part.shape for part in present}) > 1:
            faults.append(f"{', '.join(parts)} have different shapes")
        else:
            joined[start + "{q,k,v}" + end] = torch.cat(present)
    if faults:
        raise ValueError(f"{some(faults)}.")
    return joined


def _rename_start(key: str, starts: Mapping[str, str]) -> str:
    for old, new in starts.items():
        if key.startswith(old):
            return new + key[len(old) :]
    return key
