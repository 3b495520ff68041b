"""A CLIP runs as its weights were trained: its activation, heads, pixels and words match open_clip and transformers."""

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import save_file

from dataloaders import transforms
from dataloaders.transforms import normalise, resize_and_crop, squash
from modules import backbones
from modules.backbones import ARCHITECTURES, STATISTICS, Backbone, Preprocessing, StatedFacts
from modules.clip import CLIP
from modules.clip_weights import backbone_sha256, load_clip, to_openai_keys
from modules.tokenizer import Tokenizer, find_tokenizer, tokenizer_of
from tests.captions import CAPTIONS
from tests.modules.hub_folder import CONFIG, as_our_pixels, changed, picture, relative, write_hub_folder

HALF = {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]}
WIDE_HEADS = {"width": 160, "head_width": 80}
CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "gelu": (CONFIG, {}),
    "quick_gelu": (changed(quick_gelu=True), {}),
    "head_width 80": (changed(vision_cfg=WIDE_HEADS), {}),
    "0.5 statistics": (CONFIG, HALF),
    "squash": (changed(quick_gelu=True, vision_cfg=WIDE_HEADS), {"resize_mode": "squash"}),
    "wide MLPs": (changed(vision_cfg={"mlp_ratio": 4.9231}, text_cfg={"mlp_ratio": 2.0}), {}),
    "squash, bilinear, 0.5": (CONFIG, {**HALF, "resize_mode": "squash", "interpolation": "bilinear"}),
}


@pytest.fixture(scope="module", params=CASES)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any, Any, CLIP]:
    """Return the folder, open_clip's model, its transform of pictures, and our CLIP, of one case."""
    folder = tmp_path_factory.mktemp("hub")
    config, pixels = CASES[request.param]
    write_hub_folder(folder, config, pixels)
    theirs, _, transform = open_clip.create_model_and_transforms(f"local-dir:{folder}")
    return folder, theirs.eval(), transform, load_clip(folder)


@torch.no_grad()
def test_features_and_logits_are_open_clips(pair: tuple[Path, Any, Any, CLIP]) -> None:
    _, theirs, _, ours = pair
    generator = torch.Generator().manual_seed(1)
    pixels = torch.randn(3, 3, 32, 32, generator=generator)
    token_ids = open_clip.tokenize(CAPTIONS[:5])
    image, text = ours.visual(pixels), ours.text(token_ids)
    assert relative(image, theirs.encode_image(pixels)) < 1e-5
    assert relative(text, theirs.encode_text(token_ids)) < 1e-5
    expected, _ = theirs.get_logits(pixels, token_ids)
    logits = ours.logit_scale.exp() * F.normalize(image, dim=-1) @ F.normalize(text, dim=-1).T
    assert relative(logits, expected) < 1e-5


@pytest.mark.parametrize(("width", "height"), [(64, 48), (45, 97), (33, 32), (32, 32), (320, 180)])
def test_pixels_are_open_clips(pair: tuple[Path, Any, Any, CLIP], width: int, height: int) -> None:
    _, _, transform, ours = pair
    frame = picture(width, height)
    expected = transform(Image.fromarray(frame))
    found = as_our_pixels(frame, ours)
    grey_levels = (found - expected) * 255 * torch.tensor(ours.backbone.preprocessing.std).view(3, 1, 1)
    # Pillow and torch round the weights of a resize differently, which shows most where an edge is sharp.
    assert grey_levels.abs().max() < 3.01
    assert (grey_levels.abs() < 1.01).float().mean() > 0.97


def test_token_ids_are_open_clips(tmp_path: Path) -> None:
    write_hub_folder(tmp_path, CONFIG)
    clip = load_clip(tmp_path)
    find_tokenizer(clip, "tiny")
    theirs = open_clip.get_tokenizer(f"local-dir:{tmp_path}")
    assert torch.equal(tokenizer_of(clip.backbone, 77)(CAPTIONS), theirs(CAPTIONS))
    assert torch.equal(tokenizer_of(clip.backbone, 12)(CAPTIONS), theirs(CAPTIONS, context_length=12))


def test_each_fact_of_the_cases_changes_the_result(tmp_path: Path) -> None:
    """Each fact that the cases vary changes the result by far more than the tolerances above."""
    write_hub_folder(tmp_path, changed(quick_gelu=True, vision_cfg=WIDE_HEADS), HALF)
    clip = load_clip(tmp_path)
    state, pixels = to_openai_keys(clip.state_dict()), torch.randn(3, 3, 32, 32)
    save_file(state, tmp_path / "bare.safetensors")
    right = {"activation": "quick_gelu", "vision_heads": 2, "text_heads": 2}
    for wrong in ({"activation": "gelu"}, {"vision_heads": 20}):
        other = load_clip(tmp_path / "bare.safetensors", asked=StatedFacts(**{**right, **wrong}))
        assert relative(other.visual(pixels), clip.visual(pixels)) > 1e-3
    frame = picture(64, 48)
    middle, whole = resize_and_crop(frame[None], 32), squash(frame[None], 32)
    assert (middle.float() - whole.float()).abs().mean() > 5
    assert (squash(frame[None], 32, "bilinear").float() - whole.float()).abs().mean() > 1
    assert (normalise(middle) - normalise(middle, *STATISTICS["half"])).abs().mean() > 0.05


@pytest.mark.parametrize("safe", [True, False, "both"])
def test_weights_of_either_kind(tmp_path: Path, safe: bool | str) -> None:
    theirs = write_hub_folder(tmp_path, CONFIG, safe=safe)
    ours = load_clip(tmp_path)
    assert torch.equal(ours.visual.proj, theirs.visual.proj)
    assert ours.architecture.activation == "gelu"
    file = "open_clip_pytorch_model.bin" if safe is False else "open_clip_model.safetensors"
    assert load_clip(tmp_path / file).backbone == ours.backbone  # the config beside it counts


def test_an_open_clip_training_checkpoint(tmp_path: Path) -> None:
    """Its weights are in "state_dict", beside the optimizer's, and every name begins with "module."."""
    theirs = write_hub_folder(tmp_path, CONFIG)
    wrapped = {f"module.{name}": tensor for name, tensor in theirs.state_dict().items()}
    for name in ("state_dict", "model_state_dict"):
        torch.save({"epoch": 3, "name": "run", name: wrapped, "optimizer": {"state": {}}}, tmp_path / "epoch_3.pt")
        loaded = load_clip(tmp_path / "epoch_3.pt", asked=StatedFacts("gelu", 2, 2))
        assert backbone_sha256(loaded) == backbone_sha256(load_clip(tmp_path))


@pytest.mark.parametrize(
    "statistics",
    [((math.nan, 0.5, 0.5), (0.5,) * 3), ((0.5,) * 3, (0.5, math.nan, 0.5)), ((0.5,) * 3, (math.inf,) * 3)],
)
def test_statistics_that_would_give_nan_are_refused(statistics: tuple) -> None:
    with pytest.raises(ValueError, match="must be three finite numbers each, the deviation above 0"):
        Preprocessing(*statistics)


class TestTheObject:
    def test_one_line_has_every_fact(self) -> None:
        line = str(Backbone(ARCHITECTURES["ViT-B/32"]))
        assert line == (
            "vision 224/32 pixels, 12 x 768 wide, 12 heads; text 77 of 49408 tokens (CLIP's byte pairs), "
            "12 x 512 wide, 8 heads; joint 512; quick_gelu; pixels short side and middle square, bicubic, "
            "mean 0.4815 0.4578 0.4082, deviation 0.2686 0.2613 0.2758; softmax"
        )
        squashed = Backbone(ARCHITECTURES["ViT-B/32"], Preprocessing(resize_mode="squash", interpolation="bilinear"))
        assert "pixels squashed, bilinear" in str(squashed)

    def test_its_content_is_named_by_a_hash(self) -> None:
        one, same = Backbone(ARCHITECTURES["ViT-B/32"]), Backbone(dataclasses.replace(ARCHITECTURES["ViT-B/32"]))
        assert one.sha256() == same.sha256()
        others = [
            Backbone(dataclasses.replace(ARCHITECTURES["ViT-B/32"], activation="gelu")),
            Backbone(dataclasses.replace(ARCHITECTURES["ViT-B/32"], vision_heads=16)),
            Backbone(ARCHITECTURES["ViT-B/32"], Preprocessing(resize_mode="squash")),
            Backbone(ARCHITECTURES["ViT-B/32"], Preprocessing(*STATISTICS["half"])),
        ]
        assert len({backbone.sha256() for backbone in (one, *others)}) == 5

    def test_facts_travel_as_json_and_differences_are_named(self) -> None:
        one = Backbone(ARCHITECTURES["ViT-B/32"])
        facts = json.loads(json.dumps(one.facts()))
        assert one.differences(facts) == []
        facts["architecture"]["activation"] = "gelu"
        facts["preprocessing"]["mean"] = [0.5, 0.5, 0.5]
        facts["unknown"] = {"of a later version": 1}
        assert one.differences(facts) == [
            "activation is gelu there and quick_gelu here",
            "mean is 0.5 0.5 0.5 there and 0.4815 0.4578 0.4082 here",
        ]
        assert one.differences({}) == []

    def test_an_impossible_preprocessing_is_refused(self) -> None:
        for change in ({"resize_mode": "longest"}, {"interpolation": "nearest"}, {"std": (1.0, 0.0, 1.0)}):
            with pytest.raises(ValueError, match="CLIP's"):
                Preprocessing(**change)

    def test_data_and_modules_agree_on_every_mode(self) -> None:
        """Neither may import the other."""
        assert (transforms.RESIZE_MODES, transforms.INTERPOLATIONS) == (
            backbones.RESIZE_MODES,
            backbones.INTERPOLATIONS,
        )
        assert STATISTICS["clip"] == (transforms.CLIP_MEAN, transforms.CLIP_STD)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ViT-B-32", "ViT-B-16-quickgelu"])
@torch.no_grad()
def test_a_model_of_real_size(tmp_path: Path, name: str) -> None:
    """Twelve blocks of open_clip's own configuration, with the pixels of a picture and the words of a caption."""
    # More noise than this makes weights so large that attention amplifies rounding errors.
    write_hub_folder(tmp_path, open_clip.get_model_config(name), HALF, noise=0.01)
    theirs, _, transform = open_clip.create_model_and_transforms(f"local-dir:{tmp_path}")
    ours, frame = load_clip(tmp_path), picture(320, 240)
    pixels = as_our_pixels(frame, ours)[None]
    assert ((pixels - transform(Image.fromarray(frame))).abs() * 255 * 0.5).max() < 3.01
    token_ids = Tokenizer(77)(CAPTIONS[:3])
    theirs.eval()
    image, text = ours.visual(pixels), ours.text(token_ids)
    assert relative(image, theirs.encode_image(pixels)) < 1e-5
    assert relative(text, theirs.encode_text(token_ids)) < 1e-5
