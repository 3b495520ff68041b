"""Weights whose own metadata states the whole backbone: they load as they are, and what cannot be is refused."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from modules.backbones import STATISTICS, Backbone, Preprocessing, StatedFacts, Tokens
from modules.clip import CLIP
from modules.clip_weights import architecture_of, load_clip, to_openai_keys
from modules.stated_backbone import facts_of_metadata
from tests.backbones import FAMILIES
from tests.tiny import TINY

HALF = Preprocessing(*STATISTICS["half"], "squash", "bilinear")
BACKBONES = {
    "clip": Backbone(TINY),
    "pe": Backbone(FAMILIES["pe"], HALF),
    "siglip": Backbone(FAMILIES["siglip"], HALF, Tokens(end="last"), "sigmoid"),
}


def small(family: str) -> CLIP:
    """Return a CLIP with fresh weights and few words."""
    backbone = BACKBONES[family]
    architecture = replace(backbone.architecture, vocab_size=50)
    torch.manual_seed(0)
    return CLIP(architecture, replace(backbone, architecture=architecture))


def written(path: Path, family: str, named=to_openai_keys, **metadata: str) -> Path:
    clip = small(family)
    state = {key: tensor.contiguous() for key, tensor in named(clip.state_dict()).items()}
    save_file(state, path, {"backbone": json.dumps(clip.backbone.facts())} | metadata)
    return path


@pytest.mark.parametrize("named", [to_openai_keys, dict], ids=["OpenAI's names", "our names"])
@pytest.mark.parametrize("family", BACKBONES)
def test_what_is_written_is_read(tmp_path, family, named):
    path, clip = written(tmp_path / "weights.safetensors", family, named), small(family)
    loaded = load_clip(path)
    assert loaded.backbone == clip.backbone
    assert architecture_of(path) == clip.architecture
    assert loaded.state_dict().keys() == clip.state_dict().keys()
    assert all(torch.equal(tensor, loaded.state_dict()[key]) for key, tensor in clip.state_dict().items())


def facts(family: str = "siglip") -> dict:
    return small(family).backbone.facts()


def changed(**values) -> dict:
    return facts() | values


def of_architecture(**values) -> dict:
    return changed(architecture=facts()["architecture"] | values)


@pytest.mark.parametrize(
    ("stated", "message"),
    [
        (changed(colour="red"), "metadata backbone states colour, which this version does not know"),
        (of_architecture(vision={"class_token": False, "swiglu": True}), "metadata vision states swiglu"),
        ({"similarity": "softmax"}, "metadata backbone lacks architecture"),
        (changed(architecture={}), "metadata architecture lacks embed_dim, image_size, patch_size and 8 more"),
        (changed(architecture=3), "metadata architecture is 3 and not an object"),
        ([], "is [] and not an object"),
        (of_architecture(vision_heads="2"), 'states vision_heads "2", which is of the wrong kind'),
        (of_architecture(vision_heads=True), "states vision_heads true, which is of the wrong kind"),
        (of_architecture(vision_heads=0), "its vision_heads is 0, which no CLIP can have"),
        (of_architecture(vision_layers=10**9), "its vision_layers is 1000000000, which no CLIP can have"),
        (of_architecture(embed_dim=10**40), "its embed_dim is 1000"),
        (of_architecture(text={"norm_eps": float("nan")}), "norm_eps nan"),
        (changed(preprocessing={"mean": [0.5, 0.5]}), "states mean [0.5, 0.5], which is of the wrong kind"),
        (changed(preprocessing={"mean": [0.5, 0.5, "a"]}), 'states mean "a", which is of the wrong kind'),
        (changed(preprocessing={"resize_mode": "pad"}), "resize mode must be one of shortest, squash, not 'pad'"),
        (changed(similarity="hinge"), "states the similarity hinge; there is softmax and sigmoid"),
        (changed(tokens={"end": "largest id"}), "contradicts itself: texts are read at the token largest id"),
        (of_architecture(vision_heads=3), "width 32 does not divide into 3 attention heads"),
        (changed(similarity="softmax"), "surplus keys (1): logit_bias"),
        (of_architecture(embed_dim=16), "wrong shapes"),
        (of_architecture(vision={"class_token": True}), "missing keys"),
    ],
)
def test_what_cannot_be_is_refused_in_one_sentence(tmp_path, stated, message):
    path = written(tmp_path / "weights.safetensors", "siglip", backbone=json.dumps(stated))
    with pytest.raises(ValueError) as caught:  # noqa: PT011 (the message is compared below)
        load_clip(path)
    assert str(caught.value).startswith(f"{path} cannot be loaded as CLIP weights: ")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "metadata backbone is not JSON"),
        ('{"similarity": "softmax", "similarity": "sigmoid"}', "similarity is in it twice"),
        ("[" * 100_000, "nested too deeply"),
    ],
)
def test_text_that_is_no_object(text, message):
    with pytest.raises(ValueError, match=message):
        facts_of_metadata({"backbone": text})


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"activation": "quick_gelu"}, "activation is quick_gelu there and gelu in the backbone"),
        ({"vision_heads": "4"}, "vision_heads is 4 there and 2 in the backbone"),
    ],
)
def test_entries_that_contradict_each_other(tmp_path, other, message):
    with pytest.raises(ValueError, match=message):
        load_clip(written(tmp_path / "weights.safetensors", "siglip", **other))


def test_a_user_cannot_ask_for_other_facts(tmp_path):
    path = written(tmp_path / "weights.safetensors", "pe")
    with pytest.raises(ValueError, match="it states that its activation is gelu, and quick_gelu was asked for"):
        load_clip(path, activation="quick_gelu")
    with pytest.raises(ValueError, match="it states that its resize mode is squash, and shortest was asked for"):
        load_clip(path, asked=StatedFacts(resize_mode="shortest"))


def test_other_files_state_nothing_of_it():
    assert facts_of_metadata({"activation": "gelu"}) is None
