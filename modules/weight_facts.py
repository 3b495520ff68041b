"""Reading facts of the network from configurations beside the weights: Hugging Face's and open_clip's.

A configuration that asks for something that `modules.clip` does not do is refused, and the message names it: weights
that load always run as they were trained. open_clip's fields and their defaults:
https://github.com/mlfoundations/open_clip/blob/main/src/open_clip/model.py
"""

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from modules.backbones import ACTIVATIONS, HEAD_WIDTH, STATISTICS, CLIPArchitecture, StatedFacts, Triple
from modules.stated_backbone import facts_of_metadata
from modules.timm_names import with_towers_of_timm
from modules.weight_files import OPEN_CLIP_CONFIG, OPEN_CLIP_FILES, is_open_clip_folder, metadata_of, read_json
from modules.weight_names import State, has_hugging_face_keys

# Pillow's numbers, which Hugging Face's preprocessors use.
PILLOW_INTERPOLATION = {2: "bilinear", 3: "bicubic"}

# Fields of open_clip's towers with the values that `modules.clip` supports; other fields must be empty or false.
VISION_FIELDS: dict[str, tuple[Any, ...]] = {
    "mlp_ratio": (4.0,),
    "pos_embed_type": ("learnable",),
    "pool_type": ("tok",),
    "block_type": ("default",),
}
TEXT_FIELDS: dict[str, tuple[Any, ...]] = {
    "mlp_ratio": (4.0,),
    "pool_type": ("argmax",),
    "proj_type": ("linear",),
    "block_type": ("default",),
}
SIZES = {
    "image_size", "layers", "width", "head_width", "patch_size", "context_length", "vocab_size", "heads",
    "vision_cfg", "text_cfg", "embed_dim", "quick_gelu",
}  # fmt: skip
# Fields for training, for fresh weights, for other poolings than those above, or for the form of the output.
WITHOUT_EFFECT = {
    "patch_dropout", "output_tokens", "output_dict", "init_logit_scale", "attn_pooler_queries", "attn_pooler_heads",
    "pad_id", "eos_id", "cast_dtype", "timm_pool", "timm_proj", "timm_proj_bias", "timm_drop", "timm_drop_path",
    "timm_model_pretrained", "hf_model_pretrained", "hf_proj_type", "hf_pooler_type",
}  # fmt: skip
KINDS = {  # names of unsupported parts, for the message
    "timm_model_name": "a vision tower of timm",
    "hf_model_name": "a text tower of Hugging Face",
    "hf_tokenizer_name": "another tokenizer than CLIP's",
    "tokenizer_kwargs": "another tokenizer than CLIP's",
    "multimodal_cfg": "CoCa's text decoder",
    "init_logit_bias": "a sigmoid similarity with a bias",
    "custom_text": "a custom text tower",
    "no_causal_mask": "text attention without a causal mask",
}


def stated_facts(path: Path, state: State) -> StatedFacts:
    """Return the facts that the source `path` with these tensors states; ValueError if one is not supported."""
    folder = path if path.is_dir() else path.parent
    try:
        if has_hugging_face_keys(state):
            if (folder / "config.json").is_file():
                return facts_of_hugging_face(folder)
        elif (path.name in OPEN_CLIP_FILES and (folder / OPEN_CLIP_CONFIG).is_file()) or is_open_clip_folder(path):
            return facts_of_open_clip_file(folder / OPEN_CLIP_CONFIG)
    except (TypeError, AttributeError, ArithmeticError) as error:  # text for a number, a list for an object, ...
        raise ValueError(
            f"the configuration in {folder} has a field of a kind it should not have ({error})."
        ) from error
    metadata = metadata_of(path)
    if (facts := facts_of_metadata(metadata)) is not None:
        return facts
    vision_heads, text_heads = (metadata.get(name, "") for name in ("vision_heads", "text_heads"))
    return StatedFacts(
        metadata.get("activation"),
        int(vision_heads) if vision_heads.isdecimal() else None,
        int(text_heads) if text_heads.isdecimal() else None,
    )


def facts_of_hugging_face(folder: Path) -> StatedFacts:
    """Read a `CLIPConfig`, whose defaults are those of ViT-B/32, and the preprocessor's configuration."""
    path = folder / "config.json"
    config = read_json(path)
    kind = config.get("model_type", "clip")
    if kind != "clip":
        raise ValueError(f"{path} states the model type {kind}; only clip is supported.")
    vision, text = _tower_of_hugging_face(config, "vision"), _tower_of_hugging_face(config, "text")
    activations = [tower.get("hidden_act", "quick_gelu") for tower in (vision, text)]
    if activations[0] != activations[1] or activations[0] not in ACTIVATIONS:
        raise ValueError(
            f"{path} states the activations {activations[0]} (vision) and {activations[1]} (text); "
            f"both towers need the same one, of {' and '.join(ACTIVATIONS)}."
        )
    for tower in (vision, text):
        if not math.isclose(tower.get("layer_norm_eps", 1e-5), 1e-5):
            raise ValueError(f"{path} states layer_norm_eps {tower['layer_norm_eps']}; CLIP's is 1e-05.")
    vocabulary, end = text.get("vocab_size", 49408), text.get("eos_token_id")
    # The published configurations have 2 by mistake; transformers then takes the largest id, as we do.
    if end not in (None, 2, vocabulary - 1):
        raise ValueError(
            f"{path} states the END token {end}; CLIP's is the last of its vocabulary, {vocabulary - 1}, and another "
            f"tokenizer is not supported."
        )
    heads = [vision.get("num_attention_heads", 12), text.get("num_attention_heads", 8)]
    if any(type(number) is not int or number < 1 for number in heads):
        raise ValueError(f"{path} states {heads[0]} heads (vision) and {heads[1]} (text); these are numbers above 0.")
    image_size = vision.get("image_size")
    pixels = _pixels_of_hugging_face(folder, image_size)
    return StatedFacts(activations[0], heads[0], heads[1], image_size=image_size, **pixels)


def _tower_of_hugging_face(config: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """Return the settings of a tower. Files of 2022 may have them twice; transformers then takes the second alone."""
    second: Mapping[str, Any] | None = config.get(f"{name}_config_dict")
    return (config.get(f"{name}_config") or {}) if second is None else second


def _pixels_of_hugging_face(folder: Path, image_size: int | None) -> dict[str, Any]:
    """Return fields of `StatedFacts` from the image processor's settings; none if the folder has no such file."""
    path = folder / "preprocessor_config.json"
    config: Mapping[str, Any] | None
    if path.is_file():
        config = read_json(path)
    else:  # transformers may save it inside the settings of a whole processor
        path = folder / "processor_config.json"
        config = read_json(path).get("image_processor") if path.is_file() else None
    return {} if config is None else _of_preprocessor(config, path, image_size)


def _of_preprocessor(config: Mapping[str, Any], path: Path, image_size: int | None) -> dict[str, Any]:
    for step in ("do_resize", "do_rescale", "do_normalize"):
        if not config.get(step, True):
            raise ValueError(f"{path} states {step} false; CLIP's pictures are resized, scaled to 0..1 and normalised.")
    if not math.isclose(config.get("rescale_factor", 1 / 255), 1 / 255, rel_tol=1e-6):
        raise ValueError(f"{path} states rescale_factor {config['rescale_factor']}; only 1/255 is supported.")
    size, crop = config.get("size") or image_size or 224, config.get("crop_size")
    crop_side = crop.get("height") if isinstance(crop, Mapping) else crop
    if isinstance(size, Mapping) and "height" in size:
        mode, side = "squash", size["height"]
        known = size.get("width") == side and (not config.get("do_center_crop") or crop_side in (None, side))
    else:
        mode, side = "shortest", size.get("shortest_edge") if isinstance(size, Mapping) else size
        known = config.get("do_center_crop", True) and crop_side in (None, side)
    if not known or not isinstance(side, int):
        raise ValueError(
            f"{path} states size {size} and crop_size {crop}; supported are a short side that is cropped to the same "
            f"size, and a square."
        )
    if image_size is not None and side != image_size:
        raise ValueError(f"{path} states pictures of {side} pixels for a vision tower that takes {image_size}.")
    interpolation = config.get("resample", 3)
    if interpolation not in PILLOW_INTERPOLATION:
        raise ValueError(f"{path} states resample {interpolation}; supported are 2 (bilinear) and 3 (bicubic).")
    mean, std = STATISTICS["clip"]
    return {
        "mean": _triple(config.get("image_mean", mean), path),
        "std": _triple(config.get("image_std", std), path),
        "resize_mode": mode,
        "interpolation": PILLOW_INTERPOLATION[interpolation],
    }


def facts_of_open_clip_file(path: Path) -> StatedFacts:
    """Read an open_clip_config.json as open_clip writes it to the Hugging Face Hub."""
    config = read_json(path)
    model, pixels = config.get("model_cfg"), config.get("preprocess_cfg") or {}
    if not isinstance(model, Mapping) or not isinstance(pixels, Mapping):
        raise ValueError(f"{path} holds no model_cfg; open_clip writes it with that and preprocess_cfg.")
    return facts_of_open_clip(model, pixels, str(path))


def facts_of_open_clip(model: Mapping[str, Any], pixels: Mapping[str, Any], source: str) -> StatedFacts:
    """Return all facts in open_clip's configurations of the model and of preprocessing; `source` is for messages.

    Raises ValueError if `modules.clip` cannot run the model.
    """
    vision, text = model.get("vision_cfg"), model.get("text_cfg")
    if not isinstance(vision, Mapping) or not isinstance(text, Mapping) or "embed_dim" not in model:
        raise ValueError(f"{source} lacks embed_dim, vision_cfg or text_cfg.")
    of_timm = with_towers_of_timm(model, vision, text)
    if of_timm is not None:
        model, vision, text = of_timm.model, of_timm.vision, of_timm.text
    unsupported = [*_unsupported(model, {}), *_unsupported(vision, VISION_FIELDS), *_unsupported(text, TEXT_FIELDS)]
    if isinstance(vision.get("layers"), list | tuple):
        unsupported.insert(0, "a ResNet as vision tower")
    if unsupported:
        raise ValueError(
            f"{source} describes a model that is not supported: it has {', '.join(dict.fromkeys(unsupported))}; only "
            f"CLIPs with a plain vision transformer and CLIP's own tokenizer are."
        )
    width = vision.get("width", 768)
    heads = vision.get("heads", width // vision.get("head_width", HEAD_WIDTH))
    image_size = vision.get("image_size", 224)
    if isinstance(image_size, list | tuple) and len(set(image_size)) == 1:
        image_size = image_size[0]
    sizes = {
        "embed_dim": model["embed_dim"],
        "image_size": image_size,
        "patch_size": vision.get("patch_size", 16),
        "vision_width": width,
        "vision_layers": vision.get("layers", 12),
        "vision_heads": heads,
        "context_length": text.get("context_length", 77),
        "vocab_size": text.get("vocab_size", 49408),
        "text_width": text.get("width", 512),
        "text_layers": text.get("layers", 12),
        "text_heads": text.get("heads", 8),
    }
    odd = [f"{name} {size}" for name, size in sizes.items() if not isinstance(size, int) or size < 1]
    if odd:
        raise ValueError(f"{source} states {', '.join(odd)}; these are whole numbers, and images are square.")
    if pixels.get("size", image_size) not in (None, image_size, [image_size] * 2):
        raise ValueError(f"{source} states pictures of {pixels['size']} for a tower that takes {image_size} pixels.")
    resize_mode, interpolation = pixels.get("resize_mode") or "shortest", pixels.get("interpolation") or "bicubic"
    mean, std = STATISTICS["clip"]
    activation = "quick_gelu" if model.get("quick_gelu") else "gelu"
    parts: dict[str, Any] = {} if of_timm is None else {"vision": of_timm.vision_parts, "text": of_timm.text_parts}
    architecture = CLIPArchitecture(**sizes, activation=activation, **parts)
    return StatedFacts(
        architecture.activation,
        architecture.vision_heads,
        architecture.text_heads,
        _triple(pixels.get("mean") or mean, source),
        _triple(pixels.get("std") or std, source),
        resize_mode,
        "bicubic" if interpolation == "random" else interpolation,  # as open_clip does outside training
        image_size,
        architecture,
        None if of_timm is None else of_timm.tokens,
        None if of_timm is None else of_timm.similarity,
    )


def _unsupported(fields: Mapping[str, Any], built_for: Mapping[str, tuple[Any, ...]]) -> Iterator[str]:
    for name, value in fields.items():
        if name in SIZES or name in WITHOUT_EFFECT or value in (None, False, {}, ""):
            continue
        if value not in built_for.get(name, ()):
            shown = "" if isinstance(value, Mapping) else f" {value}"
            yield f"{KINDS[name]} ({name}{shown})" if name in KINDS else f"{name}{shown}"


def _triple(values: Any, source: Path | str) -> Triple:
    if isinstance(values, int | float):
        values = [values] * 3
    if not isinstance(values, list | tuple) or len(values) != 3 or any(not isinstance(v, int | float) for v in values):
        raise ValueError(f"{source} states {values} for three channels.")
    red, green, blue = (float(value) for value in values)
    return red, green, blue
