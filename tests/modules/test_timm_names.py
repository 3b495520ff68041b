"""Towers of Perception Encoder and SigLIP: equal to timm's and open_clip's on random weights."""

from functools import partial

import pytest
import torch
from torch import nn

from modules.backbones import CLIPArchitecture, TextParts, VisionParts
from modules.clip import CLIP
from modules.clip_weights import backbone_of
from modules.timm_names import from_timm_keys, tower_of_timm

open_clip = pytest.importorskip("open_clip")
eva, vit = pytest.importorskip("timm.models.eva"), pytest.importorskip("timm.models.vision_transformer")

SIZES = {"embed_dim": 20, "image_size": 28, "patch_size": 7, "vision_width": 48, "vision_layers": 3, "vision_heads": 4}
TEXT = {"context_length": 16, "vocab_size": 50, "text_width": 32, "text_layers": 2, "text_heads": 2}
OF_TIMM = {"img_size": 28, "patch_size": 7, "embed_dim": 48, "depth": 3, "num_heads": 4, "global_pool": "map"}


def filled(module: nn.Module) -> nn.Module:
    """Draw all weights, so that no bias is zero and no norm is one."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            std = 0.3 if parameter.dim() < 2 else 0.15
            parameter.copy_(std * torch.randn(parameter.shape, generator=generator))
    return module.eval()


def loaded(clip: CLIP, tower: str, theirs: nn.Module, prefix: str) -> nn.Module:
    state = from_timm_keys({f"{prefix}{key}": tensor for key, tensor in theirs.state_dict().items()})
    own = getattr(clip.eval(), tower)
    own.load_state_dict({key.removeprefix(f"{tower}."): tensor for key, tensor in state.items()})
    return own


def perception_encoder() -> tuple[nn.Module, VisionParts, int]:
    tower = eva.Eva(
        **OF_TIMM, num_classes=20, attn_type="rope", use_pre_transformer_norm=True, use_rot_pos_emb=True,
        ref_feat_shape=(4, 4), rope_grid_offset=1.0, rope_grid_indexing="xy", attn_pool_num_heads=2,
        attn_pool_mlp_ratio=4.0, norm_layer=partial(nn.LayerNorm, eps=1e-5),
    )  # fmt: skip
    return filled(tower), VisionParts(rotary=True, pool="attention", pool_heads=2, projection="linear"), 20


def siglip() -> tuple[nn.Module, VisionParts, int]:
    norm = partial(nn.LayerNorm, eps=1e-6)
    act = partial(nn.GELU, approximate="tanh")
    tower = vit.VisionTransformer(
        **OF_TIMM, num_classes=0, class_token=False, mlp_ratio=3, norm_layer=norm, act_layer=act
    )
    parts = VisionParts(
        class_token=False, patch_bias=True, pre_norm=False, pool="attention", pool_heads=4, projection="none",
        norm_eps=1e-6, hidden=144, activation="gelu_tanh",
    )  # fmt: skip
    return filled(tower), parts, 48


@pytest.mark.parametrize("side", [28, 33])  # five pixels beside the last patch are not read
@pytest.mark.parametrize("family", [perception_encoder, siglip])
def test_vision_towers_equal_those_of_timm(family, side, monkeypatch):
    monkeypatch.setitem(OF_TIMM, "img_size", side)
    theirs, parts, embed_dim = family()
    sizes = SIZES | {"embed_dim": embed_dim, "image_size": side}
    clip = CLIP(CLIPArchitecture(**sizes, **TEXT, activation="gelu", vision=parts))
    ours = loaded(clip, "visual", theirs, "visual.trunk.")
    pixels = torch.randn(3, 3, side, side)
    with torch.no_grad():
        torch.testing.assert_close(ours(pixels), theirs(pixels), rtol=1e-5, atol=1e-5)


def test_text_towers_of_siglip_equal_those_of_open_clip():
    theirs = filled(open_clip.transformer.TextTransformer(
        context_length=16, vocab_size=50, width=32, heads=2, layers=2, output_dim=20, no_causal_mask=True,
        pool_type="last", proj_bias=True, norm_layer=partial(nn.LayerNorm, eps=1e-6),
        act_layer=partial(nn.GELU, approximate="tanh"),
    ))  # fmt: skip
    parts = TextParts(causal=False, end="last", projection_bias=True, activation="gelu_tanh", norm_eps=1e-6)
    clip = CLIP(CLIPArchitecture(**SIZES, **TEXT, activation="gelu", text=parts))
    token_ids = torch.randint(0, 50, (4, 16))
    with torch.no_grad():
        ours = loaded(clip, "text", theirs, "text.")(token_ids)
        torch.testing.assert_close(ours, theirs(token_ids), rtol=1e-5, atol=1e-5)


def registered() -> list[str]:
    """The models of open_clip's registry with a vision tower that `tower_of_timm` knows."""
    names = [name for name in open_clip.list_models() if open_clip.list_pretrained_tags_by_model(name)]
    towers = {name: open_clip.get_model_config(name)["vision_cfg"].get("timm_model_name", "") for name in names}
    return [name for name, tower in towers.items() if tower_of_timm(tower) is not None]


def test_which_models_are_known():
    assert len(registered()) > 25
    with pytest.raises(ValueError, match="a text tower of Hugging Face"):
        backbone_of("open_clip:nllb-clip-base-siglip/v1")
    with pytest.raises(ValueError, match="vit_pe_core_gigantic_patch14_448"):
        backbone_of("open_clip:PE-Core-bigG-14-448/meta")


RUNNING = [name for name in registered() if name[:4] != "nllb"]
QUICK = ("PE-Core-T-16-384", "ViT-B-32-SigLIP2-256", "ViT-SO400M-14-SigLIP-384")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in RUNNING]
)
def test_facts_of_the_registry(name):
    """What is built from a configuration has as many parameters as open_clip's own model of that name."""
    vision = open_clip.get_model_config(name)["vision_cfg"]
    tags = open_clip.list_pretrained_tags_by_model(name)
    if name == "ViT-SO400M-16-SigLIP-i18n-256":
        with pytest.raises(ValueError, match="not supported"):  # its text tower has no projection
            backbone_of(f"open_clip:{name}/{tags[0]}")
        return
    architecture = backbone_of(f"open_clip:{name}/{tags[0]}").architecture
    with torch.device("meta"):
        ours = CLIP(architecture).visual
        theirs = open_clip.model._build_vision_tower(architecture.embed_dim, vision)
    counts = [sum(parameter.numel() for parameter in tower.parameters()) for tower in (ours, theirs)]
    assert counts[0] == counts[1]
