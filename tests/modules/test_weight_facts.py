"""Facts that configurations, metadata and flags state about weights are used, or refused in a sentence with a name."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import save_file

from modules.backbones import ARCHITECTURES, Preprocessing, StatedFacts
from modules.clip import CLIP
from modules.clip_weights import architecture_of, backbone_of, load_clip, to_openai_keys
from tests.modules.hub_folder import CONFIG, as_our_pixels, changed, picture, relative, write_hub_folder


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The weights in a folder of CONFIG, which many tests share and none changes."""
    folder = tmp_path_factory.mktemp("plain")
    write_hub_folder(folder, CONFIG)
    return folder / "open_clip_model.safetensors"


class TestHuggingFace:
    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        transformers = pytest.importorskip("transformers")
        torch.manual_seed(0)
        shared = {"intermediate_size": 384, "hidden_size": 96, "num_hidden_layers": 2, "hidden_act": "gelu"}
        config = transformers.CLIPConfig(
            vision_config={**shared, "num_attention_heads": 6, "image_size": 32, "patch_size": 8},
            text_config={**shared, "num_attention_heads": 3, "vocab_size": 200, "eos_token_id": 199},
            projection_dim=24,
        )  # fmt: skip
        transformers.CLIPModel(config).save_pretrained(tmp_path)
        return tmp_path

    def test_heads_and_activation_are_transformers(self, folder: Path) -> None:
        transformers = pytest.importorskip("transformers")
        theirs, ours = transformers.CLIPModel.from_pretrained(folder).eval(), load_clip(folder)
        assert (ours.architecture.vision_heads, ours.architecture.text_heads) == (6, 3)
        pixels, token_ids = torch.randn(2, 3, 32, 32), torch.tensor([[198, 5, 7, 199], [198, 9, 199, 199]])
        with torch.no_grad():
            expected = theirs(input_ids=token_ids, pixel_values=pixels)
            image, text = ours.visual(pixels), ours.text(token_ids)
            logits = ours.logit_scale.exp() * F.normalize(text, dim=-1) @ F.normalize(image, dim=-1).T
        assert relative(F.normalize(image, dim=-1), expected.image_embeds) < 1e-5
        assert relative(F.normalize(text, dim=-1), expected.text_embeds) < 1e-5
        assert relative(logits, expected.logits_per_text) < 1e-5

    @pytest.mark.parametrize("first", [True, False])
    def test_if_a_tower_is_stated_twice_the_second_counts(self, folder: Path, first: bool) -> None:
        transformers = pytest.importorskip("transformers")
        config = json.loads((folder / "config.json").read_text())
        for name, heads in (("vision", 12), ("text", 6)):
            stated = config[f"{name}_config"] if first else config.pop(f"{name}_config")
            config[f"{name}_config_dict"] = {**stated, "hidden_act": "quick_gelu", "num_attention_heads": heads}
        (folder / "config.json").write_text(json.dumps(config))
        theirs, ours = transformers.CLIPModel.from_pretrained(folder).eval(), load_clip(folder)
        told = theirs.config.vision_config.num_attention_heads, theirs.config.text_config.num_attention_heads
        assert (ours.architecture.vision_heads, ours.architecture.text_heads) == told == (12, 6)
        assert ours.architecture.activation == theirs.config.vision_config.hidden_act == "quick_gelu"

    @pytest.mark.parametrize(
        ("settings", "mode", "interpolation"),
        [
            ({"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}, "shortest", "bicubic"),
            ({"size": 32, "crop_size": 32, "resample": 2}, "shortest", "bilinear"),
            ({"size": {"height": 32, "width": 32}, "do_center_crop": False}, "squash", "bicubic"),
        ],
    )
    def test_pixels_follow_the_preprocessor(
        self, folder: Path, settings: dict[str, Any], mode: str, interpolation: str
    ) -> None:
        transformers = pytest.importorskip("transformers")
        settings = {"do_normalize": True, "image_mean": [0.5] * 3, "image_std": [0.25] * 3, **settings}
        (folder / "preprocessor_config.json").write_text(json.dumps(settings))
        ours = load_clip(folder)
        assert ours.backbone.preprocessing == Preprocessing((0.5,) * 3, (0.25,) * 3, mode, interpolation)
        frame = picture(64, 48)
        processor = transformers.CLIPImageProcessor(**settings)
        expected = torch.as_tensor(np.asarray(processor(Image.fromarray(frame))["pixel_values"][0]))
        assert (as_our_pixels(frame, ours) - expected).abs().max() * 255 * 0.25 < 3.01

    def test_a_whole_processors_settings_count_too(self, folder: Path) -> None:
        transformers = pytest.importorskip("transformers")
        settings = {"size": {"shortest_edge": 32}, "crop_size": 32, "image_mean": [0.5] * 3, "image_std": [0.25] * 3}
        processor = transformers.CLIPImageProcessor(**settings)
        (folder / "processor_config.json").write_text(json.dumps({"image_processor": processor.to_dict()}))
        assert load_clip(folder).backbone.preprocessing == Preprocessing((0.5,) * 3, (0.25,) * 3)

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"size": 40, "crop_size": 40}, "states pictures of 40 pixels for a vision tower that takes 32"),
            ({"size": {"shortest_edge": 40}, "crop_size": {"height": 32, "width": 32}}, "states size .* and crop_size"),
            ({"size": {"longest_edge": 32}}, "states size .* supported are"),
            ({"do_normalize": False}, "states do_normalize false"),
            ({"rescale_factor": 1 / 127.5}, "states rescale_factor"),
            ({"resample": 0}, "states resample 0"),
            ({"image_mean": [0.5]}, r"states \[0\.5\] for three channels"),
        ],
    )
    def test_a_preprocessor_that_is_not_supported(self, folder: Path, settings: dict[str, Any], message: str) -> None:
        (folder / "preprocessor_config.json").write_text(json.dumps(settings))
        with pytest.raises(ValueError, match=rf"preprocessor_config\.json {message}"):
            load_clip(folder)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"model_type": "blip"}, "states the model type blip; supported are clip, metaclip_2, and siglip"),
            ({"text_config": {"hidden_act": "gelu", "vocab_size": 200, "eos_token_id": 7}}, "states the END token 7"),
            ({"vision_config": {"hidden_act": "gelu", "image_size": 36}}, "states images of 36 pixels, .* for 32"),
            ({"vision_config": {"hidden_act": "gelu", "num_attention_heads": 0}}, "states 0 heads"),
            ({"vision_config": {"hidden_act": "gelu", "num_attention_heads": "12"}}, "states 12 heads"),
            ({"vision_config": ["hidden_act"]}, "a field of a kind it should not have"),
            ({"vision_config": {"hidden_act": {}}, "text_config": {"hidden_act": {}}}, "a field of a kind it should"),
        ],
    )
    def test_a_config_that_is_not_supported(self, folder: Path, change: dict[str, Any], message: str) -> None:
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, **change}))
        with pytest.raises(ValueError, match=message):
            load_clip(folder)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"custom_text": True}, "a custom text tower (custom_text True)"),
        ({"vision_cfg": {"timm_model_name": "vit_x"}}, "a vision tower of timm (timm_model_name vit_x)"),
        ({"text_cfg": {"hf_model_name": "xlm"}}, "a text tower of Hugging Face (hf_model_name xlm)"),
        ({"text_cfg": {"hf_tokenizer_name": "t5", "tokenizer_mode": "clips"}}, "a tokenizer of a special kind (token"),
        ({"text_cfg": {"tokenizer_kwargs": {"strip_sep_token": True}}}, "another tokenizer's setting strip_sep_token"),
        ({"text_cfg": {"tokenizer_kwargs": {"clean": "upper"}}}, "another tokenizer's setting clean upper"),
        ({"text_cfg": {"pool_type": "last"}}, "pool_type last"),
        ({"text_cfg": {"no_causal_mask": True}}, "text attention without a causal mask"),
        ({"text_cfg": {"norm_kwargs": {"eps": 1e-6}}}, "norm_kwargs"),
        ({"vision_cfg": {"mlp_ratio": -1}}, "mlp_ratio -1"),
        ({"vision_cfg": {"layers": [3, 4, 6, 3]}}, "a ResNet as vision tower"),
        ({"vision_cfg": {"attentional_pool": True}}, "attentional_pool True"),
        ({"init_logit_bias": -10}, "a sigmoid similarity with a bias (init_logit_bias -10)"),
        ({"multimodal_cfg": {"width": 8}}, "CoCa's text decoder"),
        ({"something_new": 3}, "something_new 3"),
    ],
)
def test_the_unsupported_part_is_named(plain: Path, tmp_path: Path, change: dict[str, Any], named: str) -> None:
    (tmp_path / plain.name).symlink_to(plain)
    config = {"model_cfg": changed(**change), "preprocess_cfg": {}}
    (tmp_path / "open_clip_config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="describes a model that is not supported: it has") as caught:
        load_clip(tmp_path)
    assert named in str(caught.value)


@pytest.mark.parametrize(
    ("change", "pixels", "message"),
    [
        ({"vision_cfg": {"layers": 3}}, {}, "other sizes than its configuration says: vision_layers 2 and not 3"),
        ({}, {"resize_mode": "longest"}, "resize mode must be one of shortest, squash, not 'longest'"),
        ({}, {"size": 64}, "states pictures of 64 for a tower that takes 32"),
        ({}, {"mean": "grey"}, "states grey for three channels"),
        ({"embed_dim": "x"}, {}, "states embed_dim x"),
        ({"vision_cfg": {"head_width": 0}}, {}, "a field of a kind it should not have"),
        ({"vision_cfg": {"width": "wide"}}, {}, "a field of a kind it should not have"),
        ({"vision_cfg": 3}, {}, "lacks embed_dim, vision_cfg or text_cfg"),
    ],
)
def test_a_config_that_does_not_fit(plain: Path, tmp_path: Path, change: dict, pixels: dict, message: str) -> None:
    (tmp_path / plain.name).symlink_to(plain)
    config = {"model_cfg": changed(**change), "preprocess_cfg": pixels}
    (tmp_path / "open_clip_config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=message):
        load_clip(tmp_path)


class TestBareFiles:
    @pytest.fixture
    def bare(self, plain: Path, tmp_path: Path) -> Path:
        (tmp_path / "hub").symlink_to(plain.parent, target_is_directory=True)
        path = tmp_path / "bare.safetensors"
        save_file(to_openai_keys(load_clip(tmp_path / "hub").state_dict()), path)
        return path

    def test_a_missing_activation_is_asked_for(self, bare: Path) -> None:
        with pytest.raises(ValueError, match=r"bare\.safetensors .* pass --clip_activation quick_gelu .* or gelu"):
            load_clip(bare)

    def test_sizes_alone_need_no_activation(self, bare: Path) -> None:
        architecture = architecture_of(bare)
        known = load_clip(bare.parent / "hub").architecture
        assert dataclasses.replace(architecture, activation="gelu", vision_heads=2, text_heads=2) == known

    def test_flags_can_state_every_fact(self, bare: Path) -> None:
        asked = StatedFacts("gelu", 2, 2, (0.5,) * 3, (0.5,) * 3, "squash", "bilinear")
        clip = load_clip(bare, asked=asked)
        assert clip.backbone.preprocessing == Preprocessing((0.5,) * 3, (0.5,) * 3, "squash", "bilinear")
        assert dataclasses.asdict(clip.architecture) | {"activation": "gelu", "vision_heads": 2} == dataclasses.asdict(
            clip.architecture
        )
        assert backbone_of(bare, asked=asked) == clip.backbone

    @pytest.mark.parametrize(
        ("asked", "message"),
        [
            (StatedFacts(vision_heads=4), "states that its vision heads is 2, and 4 was asked for"),
            (StatedFacts(resize_mode="squash"), "states that its resize mode is shortest, and squash was asked for"),
            (StatedFacts(mean=(0.5, 0.5, 0.5)), "states that its mean is 0.4815 0.4578 0.4082, and 0.5 0.5 0.5 was"),
        ],
    )
    def test_flags_that_contradict_the_file_are_refused(self, bare: Path, asked: StatedFacts, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            load_clip(bare.parent / "hub", asked=asked)

    def test_heads_are_not_guessed_where_published_ones_differ(self, tmp_path: Path) -> None:
        architecture = dataclasses.replace(
            ARCHITECTURES["ViT-B/32"], image_size=32, vision_width=1280, vision_layers=1, vision_heads=16,
            vocab_size=100, text_width=64, text_layers=1, text_heads=1,
        )  # fmt: skip
        save_file(to_openai_keys(CLIP(architecture).state_dict()), tmp_path / "h14.safetensors", {"activation": "gelu"})
        with pytest.raises(ValueError, match=r"does not say how many heads its vision tower has.*--clip_vision_heads"):
            load_clip(tmp_path / "h14.safetensors")
        loaded = load_clip(tmp_path / "h14.safetensors", asked=StatedFacts(vision_heads=16))
        assert loaded.architecture.vision_heads == 16

    def test_heads_stated_in_the_file(self, bare: Path) -> None:
        state = to_openai_keys(load_clip(bare.parent / "hub").state_dict())
        save_file(state, bare, {"activation": "gelu", "vision_heads": "2", "text_heads": "2"})
        assert load_clip(bare).backbone == load_clip(bare.parent / "hub").backbone

    @pytest.mark.parametrize("wrapped", [False, True])
    def test_a_trained_model_is_sent_to_its_flag(self, bare: Path, wrapped: bool) -> None:
        state = {f"clip.{key}": value for key, value in load_clip(bare, activation="gelu").state_dict().items()}
        state |= {"sim.weight": torch.zeros(2)}
        torch.save(
            {f"module.{key}" if wrapped else key: value for key, value in state.items()}, bare.with_name("m.bin")
        )
        with pytest.raises(ValueError, match=r"m\.bin is a trained model .* pass it with --init_model"):
            load_clip(bare.with_name("m.bin"))

    def test_a_checkpoint_of_this_project_is_sent_to_its_flag(self, bare: Path) -> None:
        from engine.checkpoint import FORMAT

        save_file({"prompts": torch.zeros(2)}, bare, {"format": FORMAT})
        with pytest.raises(ValueError, match=r"is a checkpoint of this project, .* pass it with --init_model"):
            load_clip(bare)

    @pytest.mark.parametrize(
        ("key", "message"),
        [
            ("visual.trunk.cls_token", "its vision tower is one of timm"),
            ("text.transformer.resblocks.0.ln_1.bias", "its text tower is one of open_clip's custom ones"),
        ],
    )
    def test_another_family_is_named(self, tmp_path: Path, key: str, message: str) -> None:
        torch.save({key: torch.zeros(2), "logit_scale": torch.tensor(1.0)}, tmp_path / "other.pt")
        with pytest.raises(ValueError, match=message):
            load_clip(tmp_path / "other.pt", activation="gelu")
