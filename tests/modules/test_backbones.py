"""A CLIP runs as its weights were trained: activation, heads, pixels and words are those of open_clip, transformers."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from dataloaders import transforms
from dataloaders.transforms import normalise, resize_and_crop, squash
from modules import backbones
from modules.backbones import ARCHITECTURES, STATISTICS, Backbone, Preprocessing, StatedFacts
from modules.clip import CLIP
from modules.clip_weights import architecture_of, backbone_of, backbone_sha256, load_clip, to_openai_keys
from modules.tokenizer import Tokenizer, check_vocabulary
from tests.modules.hub_folder import CONFIG, changed, write_hub_folder

HALF = {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]}
WIDE_HEADS = {"width": 160, "head_width": 80}
CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "gelu": (CONFIG, {}),
    "quick_gelu": (changed(quick_gelu=True), {}),
    "head_width 80": (changed(vision_cfg=WIDE_HEADS), {}),
    "0.5 statistics": (CONFIG, HALF),
    "squash": (changed(quick_gelu=True, vision_cfg=WIDE_HEADS), {"resize_mode": "squash"}),
    "squash, bilinear, 0.5": (CONFIG, {**HALF, "resize_mode": "squash", "interpolation": "bilinear"}),
}
SIDES = ("up", "left")
CAPTIONS = [
    "a man rides a horse",
    "  Two   Dogs &amp; a CAT \n play ",
    "don't stop -- it's 3:45pm, 100% sure!!",
    "naïve café, 日本語, Привет, 🙂 emoji",
    "",
    "word " * 100,
    "supercalifragilisticexpialidocious antidisestablishmentarianism",
    "l&#39;homme &lt;b&gt; &quot;x&quot;",
    *(f"clip number {number} shows {number % 7} red cubes moving {side}" for number in range(96) for side in SIDES),
]  # fmt: skip


@pytest.fixture(scope="module", params=CASES)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any, Any, CLIP]:
    """(folder, open_clip's model, its transform of pictures, ours), of one case."""
    folder = tmp_path_factory.mktemp("hub")
    config, pixels = CASES[request.param]
    write_hub_folder(folder, config, pixels)
    theirs, _, transform = open_clip.create_model_and_transforms(f"local-dir:{folder}")
    return folder, theirs.eval(), transform, load_clip(folder)


def relative(found: Tensor, expected: Tensor) -> float:
    return ((found - expected).norm() / expected.norm()).item()


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


def picture(width: int, height: int) -> np.ndarray:
    """Something with edges, slopes and fine grain, uint8 [H, W, 3]."""
    x, y = np.meshgrid(np.linspace(0, 9, width), np.linspace(0, 7, height))
    waves = np.stack([np.sin(x * y), np.cos(x - y), np.sign(np.sin(3 * x))], axis=-1)
    grain = np.random.default_rng(0).normal(0, 0.05, waves.shape)
    return np.clip(127.5 + 120 * (waves + grain), 0, 255).astype(np.uint8)


def as_our_pixels(frame: np.ndarray, clip: CLIP) -> Tensor:
    how = clip.backbone.preprocessing
    resize = squash if how.resize_mode == "squash" else resize_and_crop
    square = resize(frame[None], clip.architecture.image_size, how.interpolation)
    return normalise(square, how.mean, how.std)[0]


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
    check_vocabulary(load_clip(tmp_path).backbone)
    theirs = open_clip.get_tokenizer(f"local-dir:{tmp_path}")
    assert len(CAPTIONS) == 200
    assert torch.equal(Tokenizer(77)(CAPTIONS), theirs(CAPTIONS))


def test_the_cases_tell_right_from_wrong(tmp_path: Path) -> None:
    """Each fact that the cases vary changes what comes out by far more than the tolerances above."""
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
    """Its weights stand in "state_dict", every name with "module." before it, beside the optimizer's."""
    theirs = write_hub_folder(tmp_path, CONFIG)
    wrapped = {f"module.{name}": tensor for name, tensor in theirs.state_dict().items()}
    for name in ("state_dict", "model_state_dict"):
        torch.save({"epoch": 3, "name": "run", name: wrapped, "optimizer": {"state": {}}}, tmp_path / "epoch_3.pt")
        loaded = load_clip(tmp_path / "epoch_3.pt", asked=StatedFacts("gelu", 2, 2))
        assert backbone_sha256(loaded) == backbone_sha256(load_clip(tmp_path))


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

    @pytest.mark.parametrize(
        ("settings", "mode", "interpolation"),
        [
            ({"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}, "shortest", "bicubic"),
            ({"size": 32, "crop_size": 32, "resample": 2}, "shortest", "bilinear"),
            ({"size": {"height": 32, "width": 32}, "do_center_crop": False}, "squash", "bicubic"),
        ],
    )
    def test_pixels_are_those_of_the_preprocessor(
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
            ({"model_type": "siglip"}, "states the model type siglip; only clip is supported"),
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
        ({"custom_text": True}, "a text tower of its own kind (custom_text True)"),
        ({"vision_cfg": {"timm_model_name": "vit_x"}}, "a vision tower of timm (timm_model_name vit_x)"),
        ({"text_cfg": {"hf_model_name": "xlm"}}, "a text tower of Hugging Face (hf_model_name xlm)"),
        ({"text_cfg": {"hf_tokenizer_name": "t5"}}, "another tokenizer than CLIP's (hf_tokenizer_name t5)"),
        ({"text_cfg": {"pool_type": "last"}}, "pool_type last"),
        ({"text_cfg": {"no_causal_mask": True}}, "text attention without a causal mask"),
        ({"text_cfg": {"norm_kwargs": {"eps": 1e-6}}}, "norm_kwargs"),
        ({"vision_cfg": {"mlp_ratio": 4.3637}}, "mlp_ratio 4.3637"),
        ({"vision_cfg": {"layers": [3, 4, 6, 3]}}, "a ResNet as vision tower"),
        ({"vision_cfg": {"attentional_pool": True}}, "attentional_pool True"),
        ({"init_logit_bias": -10}, "a sigmoid similarity with a bias (init_logit_bias -10)"),
        ({"multimodal_cfg": {"width": 8}}, "CoCa's text decoder"),
        ({"something_new": 3}, "something_new 3"),
    ],
)
def test_what_cannot_be_run_is_named(tmp_path: Path, change: dict[str, Any], named: str) -> None:
    write_hub_folder(tmp_path, CONFIG)
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
def test_a_config_that_does_not_fit(tmp_path: Path, change: dict, pixels: dict, message: str) -> None:
    write_hub_folder(tmp_path, CONFIG)
    config = {"model_cfg": changed(**change), "preprocess_cfg": pixels}
    (tmp_path / "open_clip_config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=message):
        load_clip(tmp_path)


class TestBareFiles:
    @pytest.fixture
    def bare(self, tmp_path: Path) -> Path:
        write_hub_folder(tmp_path / "hub", CONFIG)
        path = tmp_path / "bare.safetensors"
        save_file(to_openai_keys(load_clip(tmp_path / "hub").state_dict()), path)
        return path

    def test_an_activation_nobody_states_is_asked_for(self, bare: Path) -> None:
        with pytest.raises(ValueError, match=r"bare\.safetensors .* pass --clip_activation quick_gelu .* or gelu"):
            load_clip(bare)

    def test_sizes_alone_need_no_activation(self, bare: Path) -> None:
        architecture = architecture_of(bare)
        known = load_clip(bare.parent / "hub").architecture
        assert dataclasses.replace(architecture, activation="gelu", vision_heads=2, text_heads=2) == known

    def test_flags_say_all(self, bare: Path) -> None:
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
    def test_flags_against_the_files_own_word_are_refused(self, bare: Path, asked: StatedFacts, message: str) -> None:
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

    def test_heads_in_the_files_own_words(self, bare: Path) -> None:
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


class TestTheObject:
    def test_one_line_says_all(self) -> None:
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

    def test_a_preprocessing_that_cannot_be(self) -> None:
        for change in ({"resize_mode": "longest"}, {"interpolation": "nearest"}, {"std": (1.0, 0.0, 1.0)}):
            with pytest.raises(ValueError, match="CLIP's"):
                Preprocessing(**change)

    def test_data_and_modules_mean_the_same_by_a_mode(self) -> None:
        """Neither may import the other."""
        assert (transforms.RESIZE_MODES, transforms.INTERPOLATIONS) == (
            backbones.RESIZE_MODES,
            backbones.INTERPOLATIONS,
        )
        assert STATISTICS["clip"] == (transforms.CLIP_MEAN, transforms.CLIP_STD)

    def test_a_vocabulary_the_tokenizer_has_not(self) -> None:
        with pytest.raises(ValueError, match="vocabulary of 100 tokens"):
            check_vocabulary(Backbone(dataclasses.replace(ARCHITECTURES["ViT-B/32"], vocab_size=100)))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ViT-B-32", "ViT-B-16-quickgelu"])
@torch.no_grad()
def test_a_model_of_real_size(tmp_path: Path, name: str) -> None:
    """Twelve blocks of open_clip's own configuration, with the pixels of a picture and the words of a caption."""
    # More noise than this makes weights so wide that attention turns rounding errors into others' answers.
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
