"""The script that trains the small CLIP, and the weights from it that the repository holds."""

import math
from dataclasses import replace
from itertools import cycle, islice
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from modules.clip import CLIP
from modules.clip_weights import load_clip
from modules.tokenizer import Tokenizer
from preprocess.moving_shapes.stills import draw_stills
from preprocess.moving_shapes.stories import caption, draw_story
from preprocess.train_small_clip import (
    ARCHITECTURE,
    FAMILIES,
    Log,
    embed,
    learning_rate_share,
    main,
    to_batch,
    train,
)

PRETRAINED = Path(__file__).parents[2] / "pretrained"
WEIGHTS = {  # by file: family and patch size
    "moving_shapes_clip": ("clip", 16),
    "moving_shapes_clip_p14": ("clip", 14),
}


@pytest.fixture(scope="module", params=WEIGHTS)
def kept(request: pytest.FixtureRequest) -> CLIP:
    """Return each of the weights that the repository holds."""
    return load_clip(PRETRAINED / f"{request.param}.safetensors")


@pytest.fixture(scope="module")
def tokenize() -> Tokenizer:
    return Tokenizer(ARCHITECTURE.context_length)


def few_steps(output: Path, *more: str) -> int:
    return main(["--output", str(output), "--steps", "2", "--outline_steps", "2", "--batch_size", "8", *more])


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_the_script_writes_weights_that_load_and_a_log(tmp_path: Path, tokenize: Tokenizer, family: str) -> None:
    output = tmp_path / "new" / "clip.safetensors"
    assert few_steps(output, "--seed", "5", "--family", family) == 0
    model = load_clip(output)
    assert model.backbone == FAMILIES[family]
    rows = model.text.token_embedding.weight.abs().sum(dim=1) > 0
    assert 10 < rows.sum() < 200
    assert not rows[tokenize(["elephant"])[0, 1]]
    log = output.with_suffix(".log").read_text(encoding="utf-8")
    for part in ("--steps 2", "seed 5", "torch ", "parameters", "without signs: image", "with signs: image", "cosine"):
        assert part in log
    assert ("bias" in log) == (family == "siglip")
    assert sorted(path.name for path in output.parent.iterdir()) == ["clip.log", "clip.safetensors"]


def quick_training(monkeypatch: pytest.MonkeyPatch, family: str, steps: int) -> tuple[CLIP, list[str]]:
    """Return a backbone after a few steps on the same four stills, and the log's lines."""
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    monkeypatch.setattr("preprocess.train_small_clip.draw_stills", lambda *_: cycle(islice(draw_stills(rng), 4)))
    model, log = CLIP(FAMILIES[family].architecture, FAMILIES[family]), Log()
    train(model, Tokenizer(ARCHITECTURE.context_length), steps, 4, 1e-3, 0, log)
    return model, log.lines


@pytest.mark.parametrize("family", FAMILIES)
def test_a_training_of_two_steps_changes_both_towers_and_the_similarity(
    monkeypatch: pytest.MonkeyPatch, family: str
) -> None:
    model, lines = quick_training(monkeypatch, family, 2)
    torch.manual_seed(0)
    fresh = CLIP(FAMILIES[family].architecture, FAMILIES[family])
    for name, tensor in model.state_dict().items():
        assert not torch.equal(tensor, fresh.state_dict()[name]), name
    assert len(lines) == 2
    start = 10.0 if family == "siglip" else 1 / 0.07
    assert model.logit_scale.exp().item() == pytest.approx(start, rel=0.05)
    if model.logit_bias is not None:
        assert model.logit_bias.item() == pytest.approx(-math.log(3), abs=0.05)  # of the wrong captions in a batch of 4
        assert f"bias {model.logit_bias.item():.2f}" in lines[-1]


@pytest.mark.slow
@pytest.mark.parametrize(("patch_size", "grid"), [(14, 8), (16, 7)])
def test_the_size_of_patches_makes_an_even_or_an_odd_grid(tmp_path: Path, patch_size: int, grid: int) -> None:
    output = tmp_path / "clip.safetensors"
    assert few_steps(output, "--patch_size", str(patch_size)) == 0
    model = load_clip(output)
    assert model.visual.grid == grid
    assert model.architecture == replace(ARCHITECTURE, patch_size=patch_size)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--steps", "0"], "--steps must be 1 or more, not 0"),
        (["--outline_steps", "0"], "--outline_steps must be 1 or more, not 0"),
        (["--batch_size", "1"], "--batch_size must be 2 or more"),
        (["--lr", "0"], "--lr must lie between 0 and 1"),
        (["--patch_size", "15"], "--patch_size must divide the 112 pixels of an image's side, but is 15; pass one of"),
        (["--patch_size", "0"], "--patch_size must divide the 112 pixels"),
        (["--output", "clip.pt"], "must end in .safetensors"),
    ],
)
def test_wrong_settings(tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str) -> None:
    assert main(["--output", str(tmp_path / "clip.safetensors"), *arguments]) == 2
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_learning_rate_rises_to_one_and_falls_to_nothing() -> None:
    shares = [learning_rate_share(step, 100, 10) for step in range(101)]
    assert shares[0] == pytest.approx(0.1)
    assert max(shares) == shares[9] == shares[10] == 1.0
    assert np.all(np.diff(shares[10:]) < 0)
    assert shares[-1] == pytest.approx(0.0)


@pytest.mark.parametrize("name", WEIGHTS)
def test_kept_weights_are_small_and_of_the_stated_backbone(name: str) -> None:
    path, (family, patch_size) = PRETRAINED / f"{name}.safetensors", WEIGHTS[name]
    architecture = replace(FAMILIES[family].architecture, patch_size=patch_size)
    assert load_clip(path).backbone == replace(FAMILIES[family], architecture=architecture)
    assert path.stat().st_size <= 9_000_000
    assert "command: python preprocess/train_small_clip.py" in path.with_suffix(".log").read_text(encoding="utf-8")


def test_kept_weights_tell_the_motion_words_apart(kept: CLIP, tokenize: Tokenizer) -> None:
    rng = np.random.default_rng(11)
    twins = []
    for _ in range(256):
        story, seed = draw_story(rng, held_out=True), int(rng.integers(2**32))
        twins.append([caption(told, np.random.default_rng(seed)) for told in (story, story.reversed())])
    with torch.no_grad():
        one, other = (F.normalize(kept.text(tokenize(list(side))), dim=-1) for side in zip(*twins, strict=True))
    assert (one * other).sum(dim=-1).mean() < 0.8


@pytest.mark.parametrize(("signed", "least"), [(False, 0.6), (True, 0.6)])
def test_kept_weights_find_the_caption_of_a_still(kept: CLIP, tokenize: Tokenizer, signed: bool, least: float) -> None:
    """Far above chance, 1 in 64, although stills come in pairs that differ only in a shape or a direction."""
    stream = draw_stills(np.random.default_rng(12), held_out=True)
    stills = list(islice((still for still in stream if still.signed == signed), 64))
    images, texts = embed(kept, *to_batch(stills, tokenize, kept.backbone))
    right = (images @ texts.T).argmax(dim=1) == torch.arange(len(stills))
    assert right.float().mean() > least
