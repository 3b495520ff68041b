"""`open_clip:NAME/TAG`: the network is what open_clip's registry says, the file is found here or asked for."""

import shutil
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from open_clip.pretrained import _PRETRAINED

from modules import open_clip_names
from modules.backbones import STATISTICS, Preprocessing, StatedFacts
from modules.clip_weights import architecture_of, backbone_of, load_clip
from modules.open_clip_names import registered_facts
from tests.modules.hub_folder import changed, write_hub_folder

# From the registry itself, read by hand: activation, heads, statistics, resize mode.
KNOWN = {
    "ViT-B-32/openai": ("quick_gelu", 12, "clip", "shortest"),
    "ViT-B-32/laion2b_s34b_b79k": ("gelu", 12, "clip", "shortest"),
    "ViT-B-32/laion400m_e32": ("quick_gelu", 12, "clip", "shortest"),
    "ViT-B-16/dfn2b": ("quick_gelu", 12, "clip", "shortest"),
    "ViT-B-16-quickgelu/metaclip_400m": ("quick_gelu", 12, "clip", "shortest"),
    "ViT-L-14/laion2b_s32b_b82k": ("gelu", 16, "half", "shortest"),
    "ViT-L-14/dfn2b_s39b": ("gelu", 16, "clip", "shortest"),
    "ViT-H-14/laion2b_s32b_b79k": ("gelu", 16, "clip", "shortest"),
    "ViT-H-14-quickgelu/dfn5b": ("quick_gelu", 16, "clip", "squash"),
}


@pytest.mark.parametrize("name", KNOWN)
def test_what_published_weights_are(name: str) -> None:
    activation, heads, statistics, mode = KNOWN[name]
    backbone = backbone_of(f"open_clip:{name}")
    assert (backbone.architecture.activation, backbone.architecture.vision_heads) == (activation, heads)
    assert backbone.preprocessing == Preprocessing(*STATISTICS[statistics], mode, "bicubic")
    assert architecture_of(f"open_clip:{name}") == backbone.architecture


def test_every_model_of_the_registry_runs_correctly_or_is_refused() -> None:
    """Every model with every tag gives the sizes and heads that open_clip would build, or one sentence."""
    supported, refused = 0, []
    for model, tag in open_clip.list_pretrained():
        try:
            facts = registered_facts(f"open_clip:{model}/{tag}")
        except ValueError as error:
            refused.append(str(error))
            continue
        supported += 1
        config, pixels = open_clip.get_model_config(model), open_clip.get_pretrained_cfg(model, tag)
        assert not {"hf_model_name"} & config["text_cfg"].keys()
        vision, text = open_clip.CLIPVisionCfg(**config["vision_cfg"]), open_clip.CLIPTextCfg(**config["text_cfg"])
        assert facts.architecture is not None
        if not vision.timm_model_name:
            assert facts.architecture.vision_heads == vision.width // vision.head_width
            assert facts.architecture.activation == ("quick_gelu" if pixels.get("quick_gelu") else "gelu")
        assert facts.architecture.image_size == vision.image_size
        assert (facts.mean, facts.resize_mode) == (tuple(pixels["mean"]), pixels["resize_mode"])
        assert facts.tokens is not None
        own = {"argmax": "largest id", "last": "last", "eos": f"id {text.eos_id}"}[text.pool_type]
        assert (facts.tokens.end, facts.architecture.text.end) == (own, own)
        assert facts.tokens.encoding == (text.hf_tokenizer_name or "CLIP's byte pairs")
        default = "whitespace" if text.hf_tokenizer_name else "lower"
        assert facts.tokens.cleaning == (text.tokenizer_kwargs or {}).get("clean", default)
    assert supported > 90
    assert all("is not supported: it has" in message or "is not a multiple" in message for message in refused)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("ViT-B-32", r"is not of the form open_clip:NAME/TAG"),
        ("/openai", r"is not of the form open_clip:NAME/TAG"),
        ("ViT-B-23/openai", r"knows no model ViT-B-23; did you mean ViT-B-32"),
        ("ViT-B-32/laion", r"knows no tag laion of ViT-B-32; its tags are: openai, laion400m_e31, "),
        ("EVA02-B-16/merged2b_s8b_b131k", r"not supported: it has .*a vision tower of timm"),
        ("PE-Core-bigG-14-448/meta", r"not supported: it has .*a vision tower of timm"),
        ("RN50/openai", r"not supported: it has a ResNet"),
        ("ViT-L-14-CLIPA/datacomp1b", r"not supported: it has .*another tokenizer's setting strip_sep_token"),
        ("coca_ViT-B-32/laion2b_s13b_b90k", r"not supported: it has .*CoCa's text decoder"),
    ],
)
def test_names_that_cannot_be_used(tmp_path: Path, name: str, message: str) -> None:
    with pytest.raises(ValueError, match=rf"open_clip:{name}.*{message}"):
        load_clip(f"open_clip:{name}", tmp_path)


@pytest.fixture
def registered(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Register a small model with a tag of QuickGELU, 0.5 statistics and squash; return the file of its weights."""
    config = changed(vision_cfg={"width": 160, "head_width": 80})
    write_hub_folder(tmp_path / "hub", config, {})
    tag = {**_PRETRAINED["ViT-B-32"]["openai"], "hf_hub": "someone/A-Small-CLIP/", "url": "", "quick_gelu": True}
    tag |= {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5), "resize_mode": "squash"}
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "small-vit", config)
    monkeypatch.setitem(_PRETRAINED, "small-vit", {"drawn": tag})
    return tmp_path / "hub" / "open_clip_model.safetensors"


@pytest.mark.parametrize(
    "place",
    [
        "A-Small-CLIP/open_clip_model.safetensors",
        "small-vit-drawn.safetensors",
        "drawn.safetensors",
        "drawn/open_clip_model.safetensors",
    ],
)
def test_a_file_that_is_here(registered: Path, tmp_path: Path, place: str) -> None:
    file = tmp_path / "pretrained" / place
    file.parent.mkdir(parents=True)
    shutil.copy(registered, file)
    clip = load_clip("open_clip:small-vit/drawn", tmp_path / "pretrained")
    assert clip.backbone == backbone_of("open_clip:small-vit/drawn")
    assert clip.backbone.preprocessing == Preprocessing(*STATISTICS["half"], "squash", "bicubic")
    theirs = open_clip.create_model("small-vit", str(file), force_quick_gelu=True).eval()
    pixels = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(clip.visual(pixels), theirs.encode_image(pixels), rtol=1e-5, atol=1e-5)


def test_weights_of_another_size_than_the_name_says(registered: Path, tmp_path: Path) -> None:
    write_hub_folder(tmp_path / "other", changed(vision_cfg={"width": 160, "head_width": 80, "layers": 3}))
    shutil.copy(tmp_path / "other" / registered.name, tmp_path / "drawn.safetensors")
    with pytest.raises(ValueError, match="other sizes than its configuration says: vision_layers 3 and not 2"):
        load_clip("open_clip:small-vit/drawn", tmp_path)


def test_flags_that_contradict_the_registry_are_refused(registered: Path, tmp_path: Path) -> None:
    shutil.copy(registered, tmp_path / "drawn.safetensors")
    with pytest.raises(ValueError, match="states that its activation is quick_gelu, and gelu was asked for"):
        load_clip("open_clip:small-vit/drawn", tmp_path, asked=StatedFacts("gelu"))


def test_a_file_in_the_hubs_cache(registered: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, str]] = []

    def cached(repository: str, file: str) -> str | None:
        asked.append((repository, file))
        return str(registered) if file == registered.name else None

    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", cached)
    assert load_clip("open_clip:small-vit/drawn", tmp_path).architecture.vision_heads == 2
    assert asked == [("someone/A-Small-CLIP", "open_clip_model.safetensors")]


def test_a_download_is_open_clips(registered: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    downloaded: list[Any] = []

    def download(tag: dict[str, Any]) -> str:
        downloaded.append(tag["hf_hub"])
        return str(registered)

    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *_: None)
    monkeypatch.setattr("huggingface_hub.get_hf_file_metadata", lambda *_, **__: None)
    monkeypatch.setattr("open_clip.pretrained.download_pretrained", download)
    assert load_clip("open_clip:small-vit/drawn", tmp_path).architecture.vision_heads == 2
    assert downloaded == ["someone/A-Small-CLIP/"]


def test_offline_the_error_says_what_to_fetch(
    registered: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unreachable(*_: Any, **__: Any) -> None:
        raise ConnectionError("Name or service not known")

    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *_: None)
    monkeypatch.setattr("huggingface_hub.get_hf_file_metadata", unreachable)
    with pytest.raises(FileNotFoundError) as caught:
        load_clip("open_clip:small-vit/drawn", tmp_path)
    assert "fetch open_clip_model.safetensors of the Hugging Face repository someone/A-Small-CLIP and put it at" in str(
        caught.value
    )
    place = str(caught.value).partition("put it at ")[2].removesuffix(".")
    Path(place).parent.mkdir()
    shutil.copy(registered, place)
    assert load_clip("open_clip:small-vit/drawn", tmp_path).architecture.vision_heads == 2


def test_a_registry_without_activations_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Older versions of open_clip state no activation, which would be read as GELU."""
    tags = {name: {k: v for k, v in tag.items() if k != "quick_gelu"} for name, tag in _PRETRAINED["ViT-B-32"].items()}
    monkeypatch.setitem(_PRETRAINED, "ViT-B-32", tags)
    with pytest.raises(ValueError, match="does not say which activation weights were trained with: pip install"):
        load_clip("open_clip:ViT-B-32/openai", tmp_path)


def test_only_these_names_go_to_open_clip(tmp_path: Path) -> None:
    assert open_clip_names.is_open_clip_name("open_clip:ViT-B-32/openai")
    assert not open_clip_names.is_open_clip_name(tmp_path / "open_clip:x")
