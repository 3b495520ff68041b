"""Folders of `SiglipModel` and `MetaClip2Model` run as in transformers, on random weights."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from modules.backbones import OWN_FILES, Preprocessing, Tokens
from modules.clip_weights import architecture_of, backbone_of, load_clip
from modules.tokenizer import clean, find_tokenizer, tokenizer_of
from tests.captions import CAPTIONS
from tests.modules.hub_folder import as_our_pixels, picture, relative

transformers = pytest.importorskip("transformers")

from tests.modules.small_tokenizers import write_siglip_tokenizer, write_xlm_tokenizer  # noqa: E402

TOWER = {"hidden_size": 32, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
VISION = {**TOWER, "image_size": 32, "patch_size": 8}


def drawn(model: Any, folder: Path) -> Any:
    """Make all weights random, so that no bias is zero and no norm is one, and save them."""
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.add_((0.3 if "logit" in name else 0.1) * torch.randn_like(parameter))
    model.save_pretrained(folder)
    return model.eval()


def write_siglip(folder: Path, activation: str = "gelu_pytorch_tanh", **vision: Any) -> Any:
    """Write a SigLIP whose towers have different widths and its tokenizer; return it."""
    size = write_siglip_tokenizer(folder)
    config = transformers.SiglipConfig(
        vision_config={**VISION, "hidden_act": activation, **vision},
        text_config={
            **TOWER, "hidden_size": 24, "projection_size": 32, "num_attention_heads": 2, "vocab_size": size,
            "max_position_embeddings": 16, "eos_token_id": 1, "pad_token_id": 0, "bos_token_id": None,
        },
    )  # fmt: skip
    return drawn(transformers.SiglipModel(config), folder)


def write_metaclip_2(folder: Path) -> Any:
    """Write a MetaCLIP 2 and its tokenizer; return it."""
    if not hasattr(transformers, "MetaClip2Model"):
        pytest.skip("this version of transformers has no MetaClip2Model")
    size = write_xlm_tokenizer(folder)
    text = {**TOWER, "vocab_size": size, "max_position_embeddings": 20, "eos_token_id": 2, "bos_token_id": 0}
    config = transformers.MetaClip2Config(
        vision_config={**VISION, "intermediate_size": 128}, text_config={**text, "intermediate_size": 128},
        projection_dim=24,
    )  # fmt: skip
    return drawn(transformers.MetaClip2Model(config), folder)


@torch.no_grad()
def check_features(folder: Path, theirs: Any, length: int) -> None:
    """Check that captions and pictures have transformers' features and logits, 1e-5 relative."""
    ours, tokens = load_clip(folder), transformers.AutoTokenizer.from_pretrained(folder)
    find_tokenizer(ours, "tiny")
    captions = [text.lower() for text in CAPTIONS if clean(text, "whitespace") == text][:40]  # they have no ftfy
    token_ids = tokenizer_of(ours.backbone, length)(captions)
    fixed = {"padding": "max_length", "truncation": True, "max_length": length, "return_tensors": "pt"}
    pixels = torch.randn(3, 3, 32, 32)
    expected = theirs(input_ids=tokens(captions, **fixed).input_ids, pixel_values=pixels)
    image, text = ours.visual(pixels), ours.text(token_ids)
    assert relative(F.normalize(image, dim=-1), expected.image_embeds) < 1e-5
    assert relative(F.normalize(text, dim=-1), expected.text_embeds) < 1e-5
    logits = ours.logit_scale.exp() * F.normalize(text, dim=-1) @ F.normalize(image, dim=-1).T
    if ours.logit_bias is not None:
        logits = logits + ours.logit_bias
    assert relative(logits, expected.logits_per_text) < 1e-5
    assert architecture_of(folder) == ours.architecture
    assert backbone_of(folder).tokens.encoding == OWN_FILES


@pytest.mark.parametrize("activation", ["gelu_pytorch_tanh", "gelu"])
def test_siglip(tmp_path: Path, activation: str) -> None:
    theirs = write_siglip(tmp_path, activation)
    check_features(tmp_path, theirs, 16)
    backbone = load_clip(tmp_path).backbone
    assert (backbone.similarity, backbone.architecture.embed_dim) == ("sigmoid", 32)
    assert backbone.tokens == Tokens(OWN_FILES, "lower", "last")


@torch.no_grad()
def test_siglip_whose_pictures_are_no_whole_number_of_patches(tmp_path: Path) -> None:
    """SO400M has 384 pixels in patches of 14; the rest at the right and at the bottom is not read."""
    theirs, ours, pixels = write_siglip(tmp_path, image_size=37), load_clip(tmp_path), torch.randn(2, 3, 37, 37)
    expected = theirs.vision_model(pixel_values=pixels).pooler_output
    assert relative(ours.visual(pixels), expected) < 1e-5


def test_metaclip_2(tmp_path: Path) -> None:
    theirs = write_metaclip_2(tmp_path)
    check_features(tmp_path, theirs, 20)
    backbone = load_clip(tmp_path).backbone
    assert (backbone.architecture.text.end, backbone.tokens.cleaning) == ("id 2", "whitespace")


@pytest.mark.parametrize("resample", [2, 3])
def test_pixels_of_siglip(tmp_path: Path, resample: int) -> None:
    """Without a preprocessor's settings they are those that SigLIP's image processor begins with."""
    write_siglip(tmp_path)
    settings = {"size": {"height": 32, "width": 32}, "resample": resample}
    processor = transformers.SiglipImageProcessor(**settings)
    if resample != 3:
        processor.save_pretrained(tmp_path)
    ours = load_clip(tmp_path)
    interpolation = {2: "bilinear", 3: "bicubic"}[resample]
    assert ours.backbone.preprocessing == Preprocessing((0.5,) * 3, (0.5,) * 3, "squash", interpolation)
    frame = picture(64, 48)
    expected = torch.as_tensor(np.asarray(processor(Image.fromarray(frame))["pixel_values"][0]))
    assert (as_our_pixels(frame, ours) - expected).abs().max() * 255 * 0.5 < 3.01


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "siglip2"}, r"model type siglip2 \(SigLIP 2 with pictures of any shape, NaFlex\); supported"),
        ({"model_type": "blip"}, "states the model type blip; supported are clip, metaclip_2, and siglip"),
        ({"vision_config": {**VISION, "vision_use_head": False}}, "no attention pool"),
        ({"vision_config": {**VISION, "num_channels": 1}}, "pictures of 1 channels"),
        ({"text_config": {**TOWER, "projection_size": 24}}, "texts of 24 numbers and pictures of 32"),
        ({"vision_config": {**VISION, "hidden_act": "silu"}}, "states the activation silu; supported are quick_gelu"),
        ({"vision_config": {**VISION, "image_size": [32, 48]}}, r"states image_size \[32, 48\]; these are whole"),
        ({"text_config": {**TOWER, "vocab_size": "many"}}, "states vocab_size many"),
        ({"text_config": {**TOWER, "num_hidden_layers": 3}}, r"missing keys \("),
        ({"text_config": {**TOWER, "layer_norm_eps": float("nan")}}, "norm_eps nan"),
        ({"text_config": {**TOWER, "layer_norm_eps": -1.0}}, r"norm_eps -1\.0"),
        ({"text_config": {**TOWER, "layer_norm_eps": "small"}}, "norm_eps small"),
        ({"text_config": {**TOWER, "hidden_size": 10**12, "projection_size": 32}}, "text_width is 1000000000000"),
        ({"text_config": {**TOWER, "num_hidden_layers": 10**9}}, "text_layers is 1000000000, which no CLIP can have"),
        ({"vision_config": {**VISION, "intermediate_size": 10**40}}, "or hidden 1000"),
        ({"vision_config": ["hidden_act"]}, "a field of a kind it should not have"),
    ],
)
def test_a_siglip_that_is_not_supported(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    write_siglip(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, **change}))
    with pytest.raises(ValueError, match=message):
        load_clip(tmp_path)


def test_siglips_weights_alone_do_not_show_what_they_are(tmp_path: Path) -> None:
    write_siglip(tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path / "bare.safetensors")
    (tmp_path / "config.json").unlink()
    with pytest.raises(ValueError, match=r"heads and pooling the weights do not show: pass .* or config\.json"):
        load_clip(tmp_path / "bare.safetensors")


@pytest.mark.parametrize("end", [None, 901629, [2]])
def test_a_metaclip_2_without_a_usable_end(tmp_path: Path, end: Any) -> None:
    write_metaclip_2(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["text_config"]["eos_token_id"] = end
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="states the END token"):
        load_clip(tmp_path)


def test_metaclip_2_is_read_with_the_tokenizer_it_was_trained_with(tmp_path: Path) -> None:
    write_metaclip_2(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["text_config"]["vocab_size"] = 901629
    (tmp_path / "config.json").write_text(json.dumps(config))
    from modules.hugging_face_facts import facts_of_hugging_face

    assert facts_of_hugging_face(tmp_path).tokens == Tokens("facebook/xlm-v-base", "whitespace", "id 2")
