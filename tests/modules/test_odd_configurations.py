"""A value of the wrong kind in a configuration is refused, unless nothing reads it."""

import json
import math
from collections.abc import Iterator
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

import pytest
import torch

from modules.backbones import StatedFacts
from modules.weight_facts import stated_facts
from tests.modules.hub_folder import changed

TOWER = {"hidden_size": 32, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
PIXELS = {
    "do_resize": True, "do_rescale": True, "do_normalize": True, "do_center_crop": True, "rescale_factor": 1 / 255,
    "resample": 3, "image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.2, 0.2],
}  # fmt: skip
CLIP_FOLDER = {
    "config.json": {
        "model_type": "clip", "projection_dim": 24,
        "vision_config": {**TOWER, "image_size": 32, "patch_size": 8, "hidden_act": "gelu", "layer_norm_eps": 1e-5},
        "text_config": {**TOWER, "vocab_size": 200, "eos_token_id": 199, "hidden_act": "gelu"},
    },
    "preprocessor_config.json": {**PIXELS, "size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}},
}  # fmt: skip
SIGLIP_FOLDER = {
    "config.json": {
        "model_type": "siglip",
        "vision_config": {**TOWER, "image_size": 32, "patch_size": 8, "vision_use_head": True, "num_channels": 3},
        "text_config": {**TOWER, "vocab_size": 200, "max_position_embeddings": 16, "projection_size": 32},
    },
    "preprocessor_config.json": {**PIXELS, "do_center_crop": False, "size": {"height": 32, "width": 32}},
}  # fmt: skip
OPEN_CLIP_FOLDER = {
    "open_clip_config.json": {
        "model_cfg": {
            **changed(text_cfg={"hf_tokenizer_name": "a/b", "tokenizer_kwargs": {"clean": "lower"}, "mlp_ratio": 4.0}),
            "quick_gelu": True,
        },
        "preprocess_cfg": {
            "mean": [0.5, 0.4, 0.3], "std": [0.2, 0.2, 0.2], "resize_mode": "shortest", "interpolation": "bicubic",
            "size": 32, "mode": "RGB",
        },
    },
}  # fmt: skip
FOLDERS: dict[str, dict[str, Any]] = {"clip": CLIP_FOLDER, "siglip": SIGLIP_FOLDER, "open_clip": OPEN_CLIP_FOLDER}
ODD: list[Any] = [
    True, False, None, "", "3", "gelu", -1, 0, 1, 3, 1.5, math.nan, math.inf, 1e300, 10**30,
    [], [1], [0.5] * 3, {}, {"a": 1},
]  # fmt: skip
UNREAD = {  # the weights show these sizes; a picture has the mode that its file says
    "projection_dim", "hidden_size", "intermediate_size", "num_hidden_layers", "patch_size", "width", "mode",
}  # fmt: skip
STATISTICS = {"image_mean", "image_std", "mean", "std"}  # one number stands for three channels


def places(value: Any, at: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """Yield the places of all values in an object of JSON, itself left out."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, below in items:
        yield (*at, key)
        yield from places(below, (*at, key))


def with_value(content: Any, at: tuple[str | int, ...], value: Any) -> Any:
    copied = json.loads(json.dumps(content))
    below = copied
    for key in at[:-1]:
        below = below[key]
    below[at[-1]] = value
    return copied


def check_kinds(kind: Any, value: Any) -> None:
    """Check that a value has the type that its field declares; a bool is no number, and numbers are finite."""
    if is_dataclass(kind):
        for name, declared in get_type_hints(kind).items():
            check_kinds(declared, getattr(value, name))
    elif get_origin(kind) is tuple:
        assert type(value) is tuple
        for item in value:
            check_kinds(get_args(kind)[0], item)
    elif get_args(kind):  # X | None
        if value is not None:
            check_kinds(get_args(kind)[0], value)
    else:
        assert type(value) is kind
        assert kind is not float or math.isfinite(value)


def kind_of(value: Any) -> type:
    return float if type(value) is int else type(value)


def read(folder: Path, files: dict[str, Any], name: str) -> StatedFacts:
    for file, content in files.items():
        (folder / file).write_text(json.dumps(content))
    if name == "open_clip":
        return stated_facts(folder / "open_clip_model.safetensors", {})
    return stated_facts(folder / "model.safetensors", {"vision_model.embeddings.class_embedding": torch.zeros(1)})


CASES = [
    (name, file, place)
    for name, files in FOLDERS.items() for file, content in files.items() for place in places(content)
]  # fmt: skip


@pytest.mark.parametrize("name", FOLDERS)
def test_the_plain_files_are_read(name: str, tmp_path: Path) -> None:
    facts = read(tmp_path, FOLDERS[name], name)
    check_kinds(StatedFacts, facts)
    assert facts.activation


@pytest.mark.parametrize(("name", "file", "place"), CASES)
def test_odd_values(name: str, file: str, place: tuple[str | int, ...], tmp_path: Path) -> None:
    plain = read(tmp_path, FOLDERS[name], name)
    before: Any = FOLDERS[name][file]
    for key in place:
        before = before[key]
    accepted = []
    for value in ODD:
        files = FOLDERS[name] | {file: with_value(FOLDERS[name][file], place, value)}
        try:
            facts = read(tmp_path, files, name)
        except ValueError:
            continue
        check_kinds(StatedFacts, facts)
        one_for_three = place[-1] in STATISTICS and kind_of(value) is float
        unread = place[-1] in UNREAD and facts == plain
        if value is not None and kind_of(value) is not kind_of(before) and not (one_for_three or unread):
            accepted.append(value)
    assert accepted == []
