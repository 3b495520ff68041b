"""A small SigLIP and a small MetaCLIP 2 in open_clip's layout on the Hugging Face Hub, with tokenizers of their own."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import timm
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from modules.timm_names import SIGLIP, Tower
from tests.modules.hub_folder import changed, write_hub_folder
from tests.modules.small_tokenizers import write_siglip_tokenizer, write_xlm_tokenizer

TOWER = Tower(32, 2, 2, 128, 2)
HALF = {"mean": [0.5] * 3, "std": [0.5] * 3, "resize_mode": "squash", "interpolation": "bicubic"}
REPOSITORY = "somebody/small-siglip"


def vit_tiny_patch8_siglip_32(pretrained: bool = False, **arguments: Any) -> VisionTransformer:
    """timm's tower of SigLIP, of TOWER's size."""
    return VisionTransformer(
        img_size=32, patch_size=8, embed_dim=TOWER.width, depth=TOWER.layers, num_heads=TOWER.heads, class_token=False,
        norm_layer=partial(nn.LayerNorm, eps=1e-6), num_classes=arguments["num_classes"],
        global_pool=arguments["global_pool"],
    )  # fmt: skip


timm.models.register_model(vit_tiny_patch8_siglip_32)


def know_small_siglip(setitem: Callable[[Any, str, Any], None]) -> None:
    """Enter TOWER under the name "tiny", by a function such as `MonkeyPatch.setitem`."""
    setitem(SIGLIP, "tiny", TOWER)


def write_siglip(folder: Path, context: int = 16) -> Any:
    """Write the folder and return open_clip's model."""
    vocabulary = write_siglip_tokenizer(folder)
    config = {
        "embed_dim": TOWER.width, "init_logit_bias": -10, "custom_text": True,
        "vision_cfg": {
            "image_size": 32, "timm_model_name": "vit_tiny_patch8_siglip_32", "timm_model_pretrained": False,
            "timm_pool": "map", "timm_proj": "none",
        },
        "text_cfg": {
            "context_length": context, "vocab_size": vocabulary, "hf_tokenizer_name": REPOSITORY,
            "tokenizer_kwargs": {"clean": "canonicalize"}, "width": 24, "heads": 2, "layers": 2,
            "no_causal_mask": True, "proj_bias": True, "pool_type": "last", "norm_kwargs": {"eps": 1e-6},
            "act_kwargs": {"approximate": "tanh"},
        },
    }  # fmt: skip
    return write_hub_folder(folder, config, HALF)


def write_metaclip_2(folder: Path) -> Any:
    """Write the folder and return open_clip's model."""
    vocabulary = write_xlm_tokenizer(folder)
    words = {"hf_tokenizer_name": "somebody/xlm", "pool_type": "eos", "eos_id": 2, "vocab_size": vocabulary}
    return write_hub_folder(folder, changed(quick_gelu=True, text_cfg=words))
