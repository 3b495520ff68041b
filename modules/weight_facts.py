"""Reading facts of the network from what is beside the weights: configurations of open_clip, and metadata.

A configuration that asks for something that `modules.clip` does not do is refused, and the message names it: weights
that load always run as they were trained. open_clip's fields and their defaults:
https://github.com/mlfoundations/open_clip/blob/main/src/open_clip/model.py
"""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from modules.backbones import (
    CLEANINGS,
    HEAD_WIDTH,
    STATISTICS,
    CLIPArchitecture,
    StatedFacts,
    TextParts,
    Tokens,
    VisionParts,
)
from modules.hugging_face_facts import facts_of_hugging_face, triple
from modules.stated_backbone import facts_of_metadata
from modules.timm_names import with_towers_of_timm
from modules.weight_files import (
    OPEN_CLIP_CONFIG,
    OPEN_CLIP_FILES,
    check_kinds,
    is_open_clip_folder,
    metadata_of,
    read_json,
)
from modules.weight_names import State, has_hugging_face_keys

# Fields of open_clip's towers with the values that `modules.clip` supports; other fields must be empty or false.
VISION_FIELDS: dict[str, tuple[Any, ...]] = {
    "pos_embed_type": ("learnable",),
    "pool_type": ("tok",),
    "block_type": ("default",),
}
TEXT_FIELDS: dict[str, tuple[Any, ...]] = {
    "pool_type": ("argmax", "eos"),
    "proj_type": ("linear",),
    "block_type": ("default",),
}
OF_TOKENS = {"hf_tokenizer_name", "tokenizer_kwargs"}  # `_tokens` reads them
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
    "tokenizer_mode": "a tokenizer of a special kind",
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


def facts_of_open_clip_file(path: Path) -> StatedFacts:
    """Read an open_clip_config.json as open_clip writes it to the Hugging Face Hub."""
    config = read_json(path)
    model, pixels = config.get("model_cfg"), config.get("preprocess_cfg")
    pixels = {} if pixels is None else pixels
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
    check_kinds(model, {"quick_gelu": (bool,)}, source)
    check_kinds(vision, {"mlp_ratio": (float,), "head_width": (int,)}, source)
    check_kinds(text, {"mlp_ratio": (float,), "hf_tokenizer_name": (str,), "tokenizer_kwargs": (dict,)}, source)
    check_kinds(pixels, {"resize_mode": (str,), "interpolation": (str,)}, source)
    words = {name: text.get(name) for name in OF_TOKENS}
    check_kinds(words["tokenizer_kwargs"] or {}, {"clean": (str,)}, source)
    of_timm = with_towers_of_timm(model, vision, text)
    if of_timm is not None:
        model, vision, text = of_timm.model, of_timm.vision, of_timm.text
    text = {name: value for name, value in text.items() if name not in OF_TOKENS}
    ratios = [tower.get("mlp_ratio", 4.0) for tower in (vision, text)]
    if all(isinstance(ratio, int | float) and ratio > 0 for ratio in ratios):
        vision, text = ({name: tower[name] for name in tower if name != "mlp_ratio"} for tower in (vision, text))
    unsupported = [*_unsupported(model, {}), *_unsupported(vision, VISION_FIELDS), *_unsupported(text, TEXT_FIELDS)]
    if isinstance(vision.get("layers"), list | tuple):
        unsupported.insert(0, "a ResNet as vision tower")
    unsupported += _unsupported_words(words.get("tokenizer_kwargs"))
    if unsupported:
        raise ValueError(
            f"{source} describes a model that is not supported: it has {', '.join(dict.fromkeys(unsupported))}; only "
            "CLIPs with a plain vision transformer, SigLIP and Perception Encoder are."
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
    odd = [f"{name} {size}" for name, size in sizes.items() if type(size) is not int or size < 1]
    if odd:
        raise ValueError(f"{source} states {', '.join(odd)}; these are whole numbers, and images are square.")
    if pixels.get("size", image_size) not in (None, image_size, [image_size] * 2):
        raise ValueError(f"{source} states pictures of {pixels['size']} for a tower that takes {image_size} pixels.")
    of_vision, of_text = (
        0 if ratio == 4 else int(sizes[f"{tower}_width"] * ratio)
        for tower, ratio in zip(("vision", "text"), ratios, strict=True)
    )
    resize_mode, interpolation = pixels.get("resize_mode") or "shortest", pixels.get("interpolation") or "bicubic"
    mean, std = STATISTICS["clip"]
    activation = "quick_gelu" if model.get("quick_gelu") else "gelu"
    end = f"id {text.get('eos_id', 2)}" if text.get("pool_type") == "eos" else "largest id"
    parts: dict[str, Any] = (
        {"vision": VisionParts(hidden=of_vision), "text": TextParts(end=end, hidden=of_text)}
        if of_timm is None
        else {
            "vision": of_timm.vision_parts,
            "text": replace(of_timm.text_parts, hidden=of_timm.text_parts.hidden or of_text),
        }
    )
    architecture = CLIPArchitecture(**sizes, activation=activation, **parts)
    return StatedFacts(
        architecture.activation,
        architecture.vision_heads,
        architecture.text_heads,
        mean if pixels.get("mean") is None else triple(pixels["mean"], source),
        std if pixels.get("std") is None else triple(pixels["std"], source),
        resize_mode,
        "bicubic" if interpolation == "random" else interpolation,  # as open_clip does outside training
        image_size,
        architecture,
        architecture.text,
        _tokens(words, architecture.text.end),
        None if of_timm is None else of_timm.similarity,
    )


def _tokens(words: Mapping[str, Any], end: str) -> Tokens:
    """Return the tokenizer of a text tower's configuration; where it names none, it is CLIP's own."""
    name, cleaning = words.get("hf_tokenizer_name"), (words.get("tokenizer_kwargs") or {}).get("clean")
    return Tokens(str(name), cleaning or "whitespace", end) if name else Tokens(cleaning=cleaning or "lower", end=end)


def _unsupported_words(arguments: Any) -> Iterator[str]:
    """Yield what a tokenizer would do besides cleaning its texts, and a cleaning that is not known."""
    for name, value in (arguments or {}).items():
        if value and (name != "clean" or value not in CLEANINGS):
            yield f"another tokenizer's setting {name} {value}"


def _unsupported(fields: Mapping[str, Any], built_for: Mapping[str, tuple[Any, ...]]) -> Iterator[str]:
    for name, value in fields.items():
        if name in SIZES or name in WITHOUT_EFFECT or value in (None, False, {}, ""):
            continue
        if value not in built_for.get(name, ()):
            shown = "" if isinstance(value, Mapping) else f" {value}"
            yield f"{KINDS[name]} ({name}{shown})" if name in KINDS else f"{name}{shown}"
