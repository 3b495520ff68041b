"""Strings to features on small towers of SigLIP and MetaCLIP 2, against open_clip's model and its tokenizer."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

open_clip = pytest.importorskip("open_clip")
pytest.importorskip("timm", reason="makes SigLIP's vision tower")
pytest.importorskip("transformers", reason="reads the files of tokenizers")

from modules.backbones import Preprocessing, Tokens  # noqa: E402
from modules.clip_weights import architecture_of, load_clip  # noqa: E402
from modules.methods import METHODS, build_method  # noqa: E402
from modules.open_clip_names import registered_facts  # noqa: E402
from modules.tokenizer import find_tokenizer, tokenizer_of  # noqa: E402
from tests.captions import CAPTIONS  # noqa: E402
from tests.modules.hub_folder import relative  # noqa: E402
from tests.modules.small_siglip import REPOSITORY, know_small_siglip, write_metaclip_2, write_siglip  # noqa: E402


@pytest.mark.parametrize(("write", "context"), [(write_siglip, 16), (write_metaclip_2, 77)])
@torch.no_grad()
def test_texts_and_images_are_open_clips(write, context, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    know_small_siglip(monkeypatch.setitem)
    theirs = write(tmp_path)
    ours, tokenize = load_clip(tmp_path), open_clip.get_tokenizer(f"local-dir:{tmp_path}")
    find_tokenizer(ours, "tiny")
    token_ids = tokenizer_of(ours.backbone, context)(CAPTIONS)
    assert torch.equal(token_ids, tokenize(CAPTIONS))
    text = ours.text(token_ids)
    assert relative(text, theirs.encode_text(token_ids)) < 1e-5
    pixels = torch.randn(3, 3, 32, 32)
    image = ours.visual(pixels)
    assert relative(image, theirs.encode_image(pixels)) < 1e-5
    expected, _ = theirs.get_logits(pixels, token_ids)
    logits = ours.logit_scale.exp() * F.normalize(image, dim=-1) @ F.normalize(text, dim=-1).T
    assert relative(logits if ours.logit_bias is None else logits + ours.logit_bias, expected) < 1e-5


def test_facts_of_the_two_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    know_small_siglip(monkeypatch.setitem)
    write_siglip(tmp_path / "siglip")
    write_metaclip_2(tmp_path / "metaclip")
    siglip, metaclip = (load_clip(tmp_path / name, tmp_path / "pretrained").backbone for name in ("siglip", "metaclip"))
    assert siglip.tokens == Tokens(REPOSITORY, "canonicalize", "last")
    assert siglip.tokens.places == (str(tmp_path / "siglip"), str(tmp_path / "pretrained" / "small-siglip"))
    assert architecture_of(tmp_path / "siglip") == siglip.architecture
    assert architecture_of(tmp_path / "metaclip") == metaclip.architecture
    assert siglip.preprocessing == Preprocessing((0.5,) * 3, (0.5,) * 3, "squash")
    assert metaclip.tokens == Tokens("somebody/xlm", "whitespace", "id 2")
    assert metaclip.architecture.text.end == "id 2"


def test_metaclip_2_of_the_registry() -> None:
    facts = registered_facts("open_clip:ViT-H-14-worldwide/metaclip2_worldwide")
    assert facts.tokens == Tokens("facebook/xlm-v-base", "whitespace", "id 2")
    assert facts.architecture is not None
    assert (facts.architecture.vocab_size, facts.architecture.text.end_id, facts.activation) == (
        901629,
        2,
        "quick_gelu",
    )
    assert registered_facts("open_clip:ViT-B-16-SigLIP/webli").tokens == Tokens(
        "timm/ViT-B-16-SigLIP", "canonicalize", "last"
    )


def test_methods_on_metaclip_2(tmp_path: Path) -> None:
    """It has an END, so that prompts around words are defined; TC-CLIP's begin with words of CLIP's vocabulary."""
    write_metaclip_2(tmp_path)
    clip = load_clip(tmp_path)
    refused = {name for name in METHODS if clip.architecture.lacks(METHODS[name].needs)}
    assert refused == {"tc_clip"}
    with pytest.raises(ValueError, match="tc_clip needs the vocabulary of CLIP's own tokenizer"):
        build_method("tc_clip", clip)
    with pytest.raises(ValueError, match="--text_mask nonzero is for rows that are padded with zeros"):
        build_method("unipt", clip, text_mask="nonzero")
    find_tokenizer(clip, "tiny")
    token_ids = tokenizer_of(clip.backbone, 20)(["a red half", "Two DOGS"])
    method = build_method("vop", clip).eval()
    text = method.encode_text(token_ids)
    assert text.shape == (2, 24)
    longer = tokenizer_of(clip.backbone, 30)(["a red half", "Two DOGS"])
    torch.testing.assert_close(method.encode_text(longer), text)  # padding behind END is not read
