"""`python -m engine.describe --backbones` and `--families`: every name of open_clip runs as listed, or is counted."""

import json
import re

import open_clip
import pytest
import timm

from engine.describe import describe
from engine.describe.__main__ import main
from engine.describe.backbones import (
    FAMILIES,
    LICENCES,
    OF_SIZES,
    facts_of,
    licence_of,
    listing,
    short_reason,
    summary,
    table,
)
from modules.backbones import ARCHITECTURES
from modules.clip_weights import backbone_of
from modules.methods import METHODS
from tests.markdown import ROOT

# From open_clip's own models: parameters of the whole and of the vision tower in millions, side, patch, width, class
# token, what it is read by, activations, statistics, resize, longest text.
KNOWN = {
    "ViT-B/32": (151.3, 87.8, 224, 32, 768, True, "class token", "quick_gelu", "quick_gelu", "clip", "shortest", 77),
    "ViT-H-14": (986.1, 632.1, 224, 14, 1280, True, "class token", "gelu", "gelu", "clip", "shortest", 77),
    "PE-Core-B-16": (447.7, 93.7, 224, 16, 768, True, "attention", "gelu", "gelu", "half", "squash", 32),
    "PE-Core-L-14-336": (671.1, 317.2, 336, 14, 1024, True, "attention", "gelu", "gelu", "half", "squash", 32),
    "ViT-B-16-SigLIP": (203.2, 92.9, 224, 16, 768, False, "attention", "gelu", "gelu", "half", "squash", 64),
    "ViT-B-32-SigLIP2-256": (
        376.9, 94.6, 256, 32, 768, False, "attention", "gelu_tanh", "gelu_tanh", "half", "squash", 64
    ),
}  # fmt: skip
# Tags of ours, and the weights of timm's registry with the same licence.
OF_TIMM = {
    "meta": ["vit_pe_core_base_patch16_224.fb"],
    "webli": ["vit_base_patch16_siglip_224.webli", "vit_base_patch32_siglip_256.v2_webli"],
    "metaclip_400m": ["vit_base_patch32_clip_224.metaclip_400m"],
    "metaclip_fullcc": ["vit_base_patch32_clip_224.metaclip_2pt5b"],
    "metaclip_altogether": ["vit_huge_patch14_clip_224.metaclip_altogether"],
    "dfn2b": ["vit_base_patch16_clip_224.dfn2b"],
    "dfn2b_s39b": ["vit_large_patch14_clip_224.dfn2b_s39b"],
    "dfn5b": ["vit_huge_patch14_clip_224.dfn5b"],
}


@pytest.fixture(scope="module")
def found():
    return listing()


def test_every_name_is_listed_or_counted(found):
    names = {name for row in found.supported for name in row.names}
    refused = {name for names in found.refused.values() for name in names}
    assert names | refused == {*ARCHITECTURES, *(name for name, _ in open_clip.list_pretrained())}
    assert not names & refused
    pairs = {(name, tag) for row in found.supported for name in row.names for tag in row.tags}
    assert {(name, tag) for name, tag in open_clip.list_pretrained() if name in names} <= pairs


def test_names_of_a_row_differ_in_nothing_but_weights(found):
    assert len({row.backbone.sha256() for row in found.supported}) == len(found.supported)
    (row,) = (row for row in found.supported if "ViT-H-14" in row.names and "metaclip_fullcc" in row.tags)
    assert "ViT-H-14-quickgelu" in row.names
    assert "dfn5b" not in row.tags  # which squashes its pictures
    own = next(row for row in found.supported if row.names[0] == "ViT-B/32")
    assert {"ViT-B-32", "ViT-B-32-quickgelu"} <= set(own.names)
    assert own.backbone == backbone_of("open_clip:ViT-B-32/openai")


def test_facts_of_known_backbones(found):
    rows = {row.names[0]: facts_of(row) for row in reversed(found.supported) if row.names[0] in KNOWN}
    for name, expected in KNOWN.items():
        facts = rows[name]
        millions = [round(facts[part] / 1e6, 1) for part in ("parameters", "vision_parameters")]
        sizes = [facts[part] for part in ("image_size", "patch_size", "vision_width", "class_token", "pool")]
        rest = [facts[part] for part in ("statistics", "resize_mode", "context_length")]
        assert (*millions, *sizes, *facts["activation"].values(), *rest) == expected
    assert rows["PE-Core-B-16"]["interpolation"] == "bilinear"
    assert rows["ViT-B-32-SigLIP2-256"]["similarity"] == "sigmoid"
    assert rows["ViT-B/32"]["methods"] == list(METHODS)
    assert "stop" in rows["ViT-B-16-SigLIP"]["methods"]
    assert "dgl" in rows["PE-Core-L-14-336"]["methods"]
    assert "dgl" not in rows["PE-Core-B-16"]["methods"]  # 12 blocks for images and 24 for texts
    assert "stan" not in rows["ViT-B-16-SigLIP"]["methods"]


def test_licences_are_those_of_timms_registry():
    for tag, names in OF_TIMM.items():
        for name in names:
            stated = timm.get_pretrained_cfg(name).license
            assert licence_of(tag).lower().endswith(stated), (tag, stated)
    assert {start for start in LICENCES if start not in ("openai",)} == {
        max((start for start in LICENCES if tag.startswith(start)), key=len) for tag in OF_TIMM
    }
    assert licence_of("laion2b_e16") is None


def test_the_list_fits_a_terminal_and_ends_with_what_is_not_supported(found):
    lines = table(found).splitlines()
    assert max(map(len, lines)) < 140
    header = lines[0]
    assert header.split()[:3] == ["name", "params", "(vision)"]
    (row,) = (line for line in lines if line.startswith("PE-Core-B-16 "))
    assert row.split()[1:6] == ["447.7", "(93.7)", "224/16/768", "yes", "attention"]
    assert re.search(r" half, squash bilinear +32 ", row)
    (mark,) = re.findall(r" \d+ \((\w)\)$", row)
    (legend,) = (line for line in lines if line.startswith(f"({mark}) all but "))
    architecture = next(row for row in found.supported if "PE-Core-B-16" in row.names).backbone.architecture
    without = {name for name, method in METHODS.items() if architecture.lacks(method.needs)}
    assert set(legend.partition("all but ")[2].split(", ")) == without
    counted = summary(found)
    assert " ".join(lines[lines.index("", lines.index("") + 1) + 1 :]) == counted
    assert sum(map(int, re.findall(r"\((\d+)\)", counted))) == sum(map(len, found.refused.values()))


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("RN50/openai", "a ResNet as vision tower"),
        ("coca_ViT-B-32/laion2b_s13b_b90k", "CoCa's text decoder"),
        ("convnext_base/laion400m_s13b_b51k", "a vision tower of timm (convnext)"),
        ("xlm-roberta-base-ViT-B-32/laion5b_s13b_b90k", "a text tower of Hugging Face"),
    ],
)
def test_reasons(name, reason):
    with pytest.raises(ValueError, match=re.escape(name)) as caught:
        backbone_of(f"open_clip:{name}")
    assert short_reason(str(caught.value)) == reason


def test_json(monkeypatch, capsys, found):
    found = found._replace(supported=found.supported[:2])  # counting the parameters of all takes seconds
    monkeypatch.setattr("engine.describe.backbones.listing", lambda: found)
    assert main(["--backbones", "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert [row["names"] for row in printed["backbones"]] == [row.names for row in found.supported]
    assert printed["backbones"][0]["tags"]["openai"] == "MIT"
    assert printed["licences_by_start_of_tag"].keys() == LICENCES.keys()
    assert printed["not_supported"] == found.refused


def test_the_families_are_all_there_are(found):
    """Every backbone lacks what the backbone of one family lacks."""
    needs = sorted({need for method in METHODS.values() for need in method.needs if need not in OF_SIZES})
    of_families = {tuple(backbone_of(name).architecture.lacks(needs)) for name in FAMILIES.values()}
    assert {tuple(row.backbone.architecture.lacks(needs)) for row in found.supported} == of_families


LINES = {
    "open_clip:PE-Core-B-16/meta": "vision with rotary positions, attention pool of 8 heads, projection with bias",
    "open_clip:ViT-B-32-SigLIP2-256/webli": (
        "vision with no class token, attention pool of 12 heads, patches with bias, no norm before the blocks, no "
        "projection, gelu_tanh, eps 1e-06; text with no causal mask, read at the last token, projection with bias, "
        "gelu_tanh, eps 1e-06"
    ),
}


@pytest.mark.parametrize("name", LINES)
def test_stop_is_described_on_it_without_weights(name):
    counts = describe("stop", name, "", {}, 12, 32)
    assert counts["backbone"] == str(backbone_of(name))
    assert counts["backbone"].endswith(f"; unlike CLIP: {LINES[name]}")
    assert counts["trainable_parameters"] == pytest.approx(7.48e6, rel=0.1)  # as on ViT-B/32, whose tower is as wide
    assert counts["total_parameters"] - counts["trainable_parameters"] > 370e6
    # A frame's tokens and the width say most of it: multiply-adds of the blocks, without attention's own products.
    a = backbone_of(name).architecture
    blocks = 2 * 12 * (a.class_tokens + a.grid**2) * a.vision_layers * 12 * a.vision_width**2
    assert 1.1 * blocks < 1e9 * counts["gflops_per_clip"] < 1.6 * blocks


def test_a_line_of_clip_says_nothing_more():
    assert str(backbone_of("ViT-B/32")).endswith("; softmax")


def test_the_table_of_the_docs_is_what_is_printed(capsys):
    assert main(["--families"]) == 0
    assert capsys.readouterr().out.strip() in (ROOT / "docs/backbones.md").read_text()
