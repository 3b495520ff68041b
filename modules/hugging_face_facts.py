"""Facts of the network from the folders of Hugging Face's `CLIPModel`, `MetaClip2Model` and `SiglipModel`.

What `modules.clip` does not do is refused, and the message names it. Defaults are those of transformers' configuration
classes (github.com/huggingface/transformers, `src/transformers/models`).
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from modules.backbones import (
    ACTIVATIONS,
    OWN_FILES,
    STATISTICS,
    CLIPArchitecture,
    StatedFacts,
    TextParts,
    Tokens,
    Triple,
    VisionParts,
)
from modules.weight_files import check_kinds, read_json

# Pillow's numbers, which Hugging Face's preprocessors use.
PILLOW_INTERPOLATION = {2: "bilinear", 3: "bicubic"}

# Transformers' name for an activation, ours; others are the same.
ACTIVATION_NAMES = {"gelu_pytorch_tanh": "gelu_tanh"}
# The tokenizers of MetaCLIP 2 and their cleaning by the size of the vocabulary, as open_clip's registry has them.
OF_METACLIP_2 = {901629: ("facebook/xlm-v-base", "whitespace"), 250100: ("google/mt5-base", "canonicalize")}
# Fields whose odd values would pass for true, and those that are read by their kind.
KINDS_OF_PIXELS: dict[str, tuple[type, ...]] = {
    **dict.fromkeys(("do_resize", "do_rescale", "do_normalize", "do_center_crop"), (bool,)),
    "rescale_factor": (float,), "resample": (int,), "size": (int, dict), "crop_size": (int, dict),
}  # fmt: skip
# SigLIP's towers where their configuration states nothing.
POSITIONS = ("vocab_size", "max_position_embeddings")
SIGLIP_SIZES = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}


def facts_of_hugging_face(folder: Path) -> StatedFacts:
    """Read the configuration of a model, and that of its preprocessor; ValueError if one is not supported."""
    path = folder / "config.json"
    config = read_json(path)
    kind = config.get("model_type", "clip")
    if kind in ("clip", "metaclip_2"):
        return _of_clip(path, config)
    if kind == "siglip":
        return _of_siglip(path, config)
    naflex = " (SigLIP 2 with pictures of any shape, NaFlex)" if kind == "siglip2" else ""
    raise ValueError(
        f"{path} states the model type {kind}{naflex}; supported are clip, metaclip_2, and siglip, which SigLIP 2 with "
        "pictures of one size has too."
    )


def _of_clip(path: Path, config: Mapping[str, Any]) -> StatedFacts:
    """Read a `CLIPConfig` or `MetaClip2Config`, whose defaults are those of ViT-B/32."""
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
    words: dict[str, Any] = {}
    if config.get("model_type") == "metaclip_2":
        end = 49407 if end is None else end
        if type(end) is not int or not 0 <= end < vocabulary:
            raise ValueError(f"{path} states the END token {end}; it is one number, below {vocabulary}.")
        encoding, cleaning = OF_METACLIP_2.get(vocabulary, (OWN_FILES, "whitespace"))
        words = {"text": TextParts(end=f"id {end}"), "tokens": Tokens(encoding, cleaning, f"id {end}")}
    # The published configurations have 2 by mistake; transformers then takes the largest id, as we do.
    elif end not in (None, 2, vocabulary - 1):
        raise ValueError(
            f"{path} states the END token {end}; CLIP's is the last of its vocabulary, {vocabulary - 1}, and another "
            f"tokenizer is not supported."
        )
    heads = [vision.get("num_attention_heads", 12), text.get("num_attention_heads", 8)]
    if any(type(number) is not int or number < 1 for number in heads):
        raise ValueError(f"{path} states {heads[0]} heads (vision) and {heads[1]} (text); these are numbers above 0.")
    image_size = vision.get("image_size")
    pixels = _pixels_of_hugging_face(path.parent, image_size)
    return StatedFacts(activations[0], heads[0], heads[1], image_size=image_size, **pixels, **words)


def _of_siglip(path: Path, config: Mapping[str, Any]) -> StatedFacts:
    """Read a `SiglipConfig`, whose defaults are those of ViT-B/16 at 224 pixels."""
    stated = [_tower_of_hugging_face(config, name) for name in ("vision", "text")]
    vision: dict[str, Any] = {**SIGLIP_SIZES, "image_size": 224, "patch_size": 16, **stated[0]}
    text: dict[str, Any] = {**SIGLIP_SIZES, "vocab_size": 32000, "max_position_embeddings": 64, **stated[1]}
    for tower, sizes in ((vision, (*SIGLIP_SIZES, "image_size", "patch_size")), (text, (*SIGLIP_SIZES, *POSITIONS))):
        if odd := [f"{name} {tower[name]}" for name in sizes if type(tower[name]) is not int or tower[name] < 1]:
            raise ValueError(f"{path} states {', '.join(odd)}; these are whole numbers, and images are square.")
    check_kinds(vision, {"vision_use_head": (bool,), "num_channels": (int,)}, path)
    check_kinds(text, {"projection_size": (int,)}, path)
    embed_dim = vision["hidden_size"]
    unsupported = [
        what
        for what, is_so in (
            ("no attention pool (vision_use_head false)", not vision.get("vision_use_head", True)),
            (f"pictures of {vision.get('num_channels')} channels", vision.get("num_channels", 3) != 3),
            (
                f"texts of {text.get('projection_size')} numbers and pictures of {embed_dim}",
                (text.get("projection_size") or text["hidden_size"]) != embed_dim,
            ),
        )
        if is_so
    ]
    if unsupported:
        raise ValueError(f"{path} describes a SigLIP that is not supported: it has {', '.join(unsupported)}.")
    activations: list[str] = []
    for tower in (vision, text):
        name = tower.get("hidden_act", "gelu_pytorch_tanh")
        activations.append(ACTIVATION_NAMES.get(name, name))
        if activations[-1] not in ACTIVATIONS:
            raise ValueError(f"{path} states the activation {name}; supported are {', '.join(ACTIVATIONS)}.")
    hidden = [0 if t["intermediate_size"] == 4 * t["hidden_size"] else t["intermediate_size"] for t in (vision, text)]
    eps = [tower.get("layer_norm_eps", 1e-6) for tower in (vision, text)]
    architecture = CLIPArchitecture(
        embed_dim=embed_dim,
        image_size=vision["image_size"],
        patch_size=vision["patch_size"],
        vision_width=embed_dim,
        vision_layers=vision["num_hidden_layers"],
        vision_heads=vision["num_attention_heads"],
        context_length=text["max_position_embeddings"],
        vocab_size=text["vocab_size"],
        text_width=text["hidden_size"],
        text_layers=text["num_hidden_layers"],
        text_heads=text["num_attention_heads"],
        activation="gelu",
        vision=VisionParts(
            class_token=False, patch_bias=True, pre_norm=False, pool="attention",
            pool_heads=vision["num_attention_heads"], projection="none", activation=activations[0], norm_eps=eps[0],
            hidden=hidden[0],
        ),
        text=TextParts(
            causal=False, end="last", projection_bias=True, activation=activations[1], norm_eps=eps[1],
            hidden=hidden[1],
        ),
    )  # fmt: skip
    pixels = _pixels_of_hugging_face(path.parent, architecture.image_size, square=True)
    return StatedFacts(
        architecture.activation,
        architecture.vision_heads,
        architecture.text_heads,
        image_size=architecture.image_size,
        architecture=architecture,
        text=architecture.text,
        # Both generations were trained on lower case. What else the first removes, its tokenizer in transformers does.
        tokens=Tokens(OWN_FILES, "lower", "last"),
        similarity="sigmoid",
        **pixels,
    )


def _tower_of_hugging_face(config: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """Return the settings of a tower. Files of 2022 may have them twice; transformers then takes the second alone."""
    second: Mapping[str, Any] | None = config.get(f"{name}_config_dict")
    return (config.get(f"{name}_config") or {}) if second is None else second


def _pixels_of_hugging_face(folder: Path, image_size: int | None, square: bool = False) -> dict[str, Any]:
    """Return fields of `StatedFacts` from the image processor's settings; none if the folder has no such file.

    With `square`, defaults are those of `SiglipImageProcessor` and not of `CLIPImageProcessor`.
    """
    path = folder / "preprocessor_config.json"
    config: Mapping[str, Any] | None
    if path.is_file():
        config = read_json(path)
    else:  # transformers may save it inside the settings of a whole processor
        path = folder / "processor_config.json"
        config = read_json(path).get("image_processor") if path.is_file() else None
    if square:
        mean, std = STATISTICS["half"]
        sides = {"height": image_size, "width": image_size}
        config = {"size": sides, "do_center_crop": False, "image_mean": mean, "image_std": std, **(config or {})}
    return {} if config is None else _of_preprocessor(config, path, image_size)


def _of_preprocessor(config: Mapping[str, Any], path: Path, image_size: int | None) -> dict[str, Any]:
    check_kinds(config, KINDS_OF_PIXELS, path)
    for step in ("do_resize", "do_rescale", "do_normalize"):
        if not config.get(step, True):
            raise ValueError(f"{path} states {step} false; CLIP's pictures are resized, scaled to 0..1 and normalised.")
    if not math.isclose(config.get("rescale_factor", 1 / 255), 1 / 255, rel_tol=1e-6):
        raise ValueError(f"{path} states rescale_factor {config['rescale_factor']}; only 1/255 is supported.")
    size, crop = config.get("size"), config.get("crop_size")
    size = (image_size or 224) if size is None else size
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
        "mean": triple(config.get("image_mean", mean), path),
        "std": triple(config.get("image_std", std), path),
        "resize_mode": mode,
        "interpolation": PILLOW_INTERPOLATION[interpolation],
    }


def triple(values: Any, source: Path | str) -> Triple:
    """Return three numbers, one a channel; ValueError if `values` are not three, or one for all."""
    if type(values) in (int, float):
        values = [values] * 3
    if not isinstance(values, list | tuple) or len(values) != 3 or not all(map(_is_number, values)):
        raise ValueError(f"{source} states {values} for three channels; it must be three finite numbers.")
    red, green, blue = (float(value) for value in values)
    return red, green, blue


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)
