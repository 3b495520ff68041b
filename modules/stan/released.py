"""Key names of STAN's released checkpoints.

They are those of a Hugging Face `CLIPModel`, with less in front in the visual tower, below `backbone.` (visual) and
`text_backbone.` (text); the branch's begin with `STAN_`, in the first release with `timesFPN_`. Here they are without
`backbone.` and `text_backbone.`, and q, k and v of an attention are one, as in
`modules.weight_names.join_queries_keys_values`.
"""

import logging
import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from modules.quoting import some
from modules.weight_names import NOT_WEIGHTS, join_queries_keys_values, to_hugging_face_key, to_openai_key

log = logging.getLogger("stop")

PREFIXES = ("module.", "text_backbone.", "backbone.")
BRANCH, FIRST_BRANCH = "STAN_", "timesFPN_"
UNUSED = (f"{FIRST_BRANCH}pos_embed", f"{FIRST_BRANCH}cls_token")  # of the first release, whose code does not read them
PARTS = {"temporal": "T", "spatial": "S"}
TEMPORAL = {".norm.": ".layer_norm1.", ".fc.": ".temporal_fc."}
TRANSPOSED = ("visual_projection.weight", "text_projection.weight")


def released_key(name: str) -> str | None:
    """Return the released key of a tensor of `modules.methods.stan.STAN`; None for what the released code lacks.

    Raises:
        ValueError: for a position table of the branch's own, without which the released weights mean nothing.
    """
    if name.startswith("clip."):
        if name in ("clip.logit_scale", "clip.logit_bias"):
            return None
        key = to_hugging_face_key(to_openai_key(name.removeprefix("clip.")))
        if not key.startswith("vision_model."):
            return key
        return key.removeprefix("vision_model.").removeprefix("embeddings.").removeprefix("encoder.")
    path = name.removeprefix("branch.")
    if path == "positions":
        raise ValueError("the released STAN has no position table of the branch's own: pass --stan_embeddings released")
    if path == "time.weight":
        return f"{BRANCH}time_embed.weight"
    _, level, part, tensor = path.split(".", 3)
    if part not in PARTS:  # W_proj, which starts as the identity, what the released code does
        return None
    key = to_hugging_face_key(f"{BRANCH}{PARTS[part]}_layers.{level}.{tensor}")
    for ours, theirs in TEMPORAL.items() if part == "temporal" else ():
        key = key.replace(ours, theirs)
    return key


def flags_of(state_dict: Mapping[str, Any]) -> str:
    """Return the flags that a checkpoint of STAN's or Mug-STAN's released code needs; "" for any other file."""
    keys = " ".join(state_dict.get("state_dict", state_dict))
    levels = set(re.findall(rf"(?:{BRANCH}|{FIRST_BRANCH})S_layers\.(\d+)\.", keys))
    method = "mug_stan --mug wti" if "text_weight_fc." in keys else "stan or mug_stan"
    return f"--method {method} --stan_layers {len(levels)}" if levels else ""


def released_tensors(state_dict: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return a released checkpoint's tensors by `released_key`, in our layout; others keep their keys.

    Args:
        state_dict: the tensors by name, or the content of a file that has them below `state_dict`.

    Raises:
        ValueError: if q, k or v of an attention is missing or has another shape than the others.
    """
    tensors: dict[str, Tensor] = {}
    for key, tensor in state_dict.get("state_dict", state_dict).items():
        for prefix in PREFIXES:
            key = key.removeprefix(prefix)
        tensors[key] = tensor
    if unused := [key for key in UNUSED if key in tensors]:
        log.info("the checkpoint has %d tensors that the released code does not use (%s)", len(unused), some(unused))
    left_out = (*UNUSED, *NOT_WEIGHTS, "embeddings.position_ids")
    kept = {key: tensor for key, tensor in tensors.items() if key not in left_out}
    renamed = {key.replace(FIRST_BRANCH, BRANCH): tensor for key, tensor in kept.items()}
    joined = join_queries_keys_values(renamed)
    return {key: tensor.T if key in TRANSPOSED and tensor.dim() == 2 else tensor for key, tensor in joined.items()}
