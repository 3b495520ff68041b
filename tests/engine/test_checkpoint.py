"""Checkpoints come back unchanged, refuse what does not fit, and survive a crash while they are written."""

import logging
import re
from contextlib import suppress
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import engine.checkpoint as checkpoint
from engine.checkpoint import CheckpointHeader, load_checkpoint, save_checkpoint
from main_task_retrieval import main
from modules.backbones import STATISTICS, Preprocessing
from modules.losses import build_loss
from modules.methods import build_method
from tests.tiny import tiny_clip

HEADER = CheckpointHeader({"method": "clip4clip", "pretrained_clip_name": "ViT-B/32"}, 3, "a" * 64)


@pytest.fixture
def saved(tmp_path):
    method = build_method("clip4clip", tiny_clip(seed=1))
    path = tmp_path / "runs" / "last.safetensors"
    save_checkpoint(path, method, HEADER)
    return path, method


def test_round_trip(saved):
    path, method = saved
    other = build_method("clip4clip", tiny_clip(seed=2))
    assert load_checkpoint(path, other, HEADER.backbone_sha256) == HEADER
    expected = dict(method.trainable_parameters())
    for name, parameter in other.trainable_parameters():
        assert torch.equal(parameter, expected[name]), name
    assert set(load_file(path)) == set(expected)
    assert not list(path.parent.glob("*.partial"))


def test_other_clip_is_refused(saved):
    path, method = saved
    with pytest.raises(ValueError, match=r"trained on another CLIP \(ViT-B/32, sha256 aaaaaaaaaaaa\)"):
        load_checkpoint(path, method, "b" * 64)


def test_a_clip_that_runs_differently_is_refused(tmp_path):
    """Check a CLIP with the same tensors, and so the same hash."""
    path = tmp_path / "last.safetensors"
    one, other = tiny_clip(seed=1), tiny_clip(seed=1)
    other.backbone = replace(
        one.backbone, preprocessing=Preprocessing(*STATISTICS["half"], "squash"),
        architecture=replace(one.architecture, activation="gelu", vision_heads=4),
    )  # fmt: skip
    for full in (False, True):
        header = CheckpointHeader({}, 3, "a" * 64, full, one.backbone.facts())
        save_checkpoint(path, build_method("clip4clip", one), header)
        assert load_checkpoint(path, build_method("clip4clip", one), "a" * 64) == header
        with pytest.raises(
            ValueError, match=r"last\.safetensors: was trained on a CLIP that runs differently"
        ) as caught:
            load_checkpoint(path, build_method("clip4clip", other), "a" * 64)
        for part in (
            "activation is quick_gelu there and gelu here", "vision_heads is 2 there and 4 here",
            "mean is 0.4815 0.4578 0.4082 there and 0.5 0.5 0.5 here", "resize_mode is shortest there and squash here",
        ):  # fmt: skip
            assert part in str(caught.value)


def test_an_old_checkpoint_without_a_backbone_is_loaded(saved):
    path, method = saved
    with safe_open(path, "pt") as file:
        unsealed = {"backbone", "content_sha256", "sealed"}
        metadata = {name: text for name, text in file.metadata().items() if name not in unsealed}
    save_file(load_file(path), path, metadata)
    assert load_checkpoint(path, method, HEADER.backbone_sha256).backbone is None


def test_other_method_is_refused(saved):
    path, _ = saved
    other = build_method("clip4clip", tiny_clip(), freeze_layer_num=1)
    with pytest.raises(ValueError, match=r"clip\.text\.blocks\.0\.\S+ is not a trained tensor .* and \d+ more"):
        load_checkpoint(path, other, HEADER.backbone_sha256)


def test_a_full_checkpoint_contains_its_clip(tmp_path):
    method, other = (build_method("stop", tiny_clip(seed=seed)) for seed in (1, 2))
    path = tmp_path / "full.safetensors"
    save_checkpoint(path, method, CheckpointHeader({"method": "stop"}, 3, "a" * 64, full=True))
    load_checkpoint(path, other, "b" * 64)
    for name, tensor in other.state_dict().items():
        assert torch.equal(tensor, method.state_dict()[name]), name
    with pytest.raises(
        ValueError, match=r"trained with --method stop, and does not fit the method VPT: prompts is missing"
    ):
        load_checkpoint(path, build_method("vpt", tiny_clip()), "a" * 64)


def test_wrong_shape_is_named(saved):
    path, method = saved
    tensors = load_file(path)
    tensors["clip.visual.proj"] = torch.zeros(2, 2)
    del tensors["clip.logit_scale"]
    metadata = {"format": checkpoint.FORMAT, "settings": "{}", "epoch": "1", "backbone_sha256": "a" * 64}
    save_file(tensors, path, metadata)
    with pytest.raises(ValueError, match=r"logit_scale is missing; clip\.visual\.proj has shape \(2, 2\)"):
        load_checkpoint(path, method, "a" * 64)


def test_missing_truncated_and_foreign_files(saved, tmp_path):
    path, method = saved
    with pytest.raises(FileNotFoundError, match="no such checkpoint"):
        load_checkpoint(tmp_path / "none", method, "")
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(ValueError, match="not a readable safetensors file"):
        load_checkpoint(path, method, "")
    save_file({"x": torch.zeros(1)}, path)
    with pytest.raises(ValueError, match="not a checkpoint of this project"):
        load_checkpoint(path, method, "")


def test_a_crash_while_writing_leaves_the_old_checkpoint(saved, monkeypatch):
    path, method = saved
    before = path.read_bytes()

    def half_written(tensors, target, metadata):
        target.write_bytes(b"half")
        raise OSError("No space left on device")

    monkeypatch.setattr(checkpoint, "save_file", half_written)
    with pytest.raises(OSError, match="No space"):
        save_checkpoint(path, method, HEADER)
    assert path.read_bytes() == before


def test_a_header_comes_back_unchanged(saved):
    path, method = saved
    kind = {"files": 16, "codec": "h264", "short_side": [224.0, 224.0, 224.0], "fps": [3.0, 3.0, 3.0]}
    header = CheckpointHeader({"method": "clip4clip", "name": 'a "b" \n', "lr": 1e-4}, 7, "c" * 64, True, None, kind)
    save_checkpoint(path, method, header)
    assert checkpoint.read_header(path) == header


def test_a_bit_that_flips_anywhere_is_noticed(tmp_path):
    """Flip bits in the tensors, the settings, the epoch, the hash and the structure of the file."""
    method = build_method("vpt", tiny_clip(), prompt_length=1)
    path = tmp_path / "last.safetensors"
    save_checkpoint(path, method, HEADER)
    whole, before = path.read_bytes(), {name: p.detach().clone() for name, p in method.trainable_parameters()}
    rng, begin = np.random.default_rng(0), 8 + int.from_bytes(path.read_bytes()[:8], "little")
    bits = np.concatenate([rng.integers(0, 8 * begin, 300), rng.integers(8 * begin, 8 * len(whole), 100)])
    refused = 0
    for bit in bits.tolist():
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        try:
            assert load_checkpoint(path, method, HEADER.backbone_sha256) == HEADER, bit
        except ValueError:
            refused += 1
            continue
        for name, parameter in method.trainable_parameters():
            assert torch.equal(parameter, before[name]), bit
    assert refused > 390


def test_an_old_checkpoint_without_a_seal_loads_and_the_log_says_so(saved, caplog, monkeypatch):
    path, method = saved
    with safe_open(path, "pt") as file:
        metadata = {name: file.metadata()[name] for name in ("format", "settings", "epoch", "backbone_sha256", "full")}
    save_file(load_file(path), path, metadata)
    monkeypatch.setattr(checkpoint.log, "propagate", True)
    with caplog.at_level(logging.INFO, logger="stop"):
        checkpoint.read_header(path)
        assert load_checkpoint(path, method, HEADER.backbone_sha256) == HEADER
    # Count records by identity, because pytest may have handlers at two loggers.
    assert len({id(record) for record in caplog.records if "last.safetensors has no checksum" in record.message}) == 1


@pytest.mark.parametrize(
    ("metadata", "fault"),
    [
        ({"epoch": "1", "backbone_sha256": "a"}, "its header has no settings"),
        ({"settings": "{}", "backbone_sha256": "a"}, "its header has no epoch"),
        ({"settings": "{}", "epoch": "1"}, "its header has no backbone_sha256"),
        ({"settings": "{", "epoch": "1", "backbone_sha256": "a"}, "its header cannot be read: Expecting"),
        ({"settings": "{}", "epoch": "one", "backbone_sha256": "a"}, "its header cannot be read: invalid literal"),
        ({"settings": "[]", "epoch": "1", "backbone_sha256": "a"}, "its settings are not a JSON object"),
        *(
            ({"settings": settings, "epoch": "1", "backbone_sha256": "a"}, f"its setting {fault}")
            for settings, fault in (
                ('{"max_words": [1]}', "max_words is [1], not of type int"),
                ('{"max_words": 20.5}', "max_words is 20.5, not of type int"),
                ('{"lr": null}', "lr is None, not of type float"),
                ('{"method": ["vpt"]}', "method is ['vpt'], not of type str"),
                ('{"method": "vpt", "prompt_length": "x"}', "prompt_length is 'x', not of type int"),
                ('{"expand_msrvtt_sentences": "yes"}', "expand_msrvtt_sentences is 'yes', not of type bool"),
            )
        ),
    ],
)
def test_an_incomplete_header_is_named(tmp_path, metadata, fault, capsys):
    path = tmp_path / "last.safetensors"
    save_file({"x": torch.zeros(1)}, path, metadata | {"format": checkpoint.FORMAT})
    assert main(["--do_eval", "--init_model", str(path)]) == 2
    message = capsys.readouterr().err
    assert f"last.safetensors: is not a complete checkpoint of this project ({fault}" in message
    assert message.count("\n") == 1


def same(one, other) -> bool:
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(value, other[name]) for name, value in one.items())
    return torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other


def test_a_bit_that_flips_in_a_resume_point_is_noticed_or_changes_nothing(tmp_path):
    torch.manual_seed(0)
    checkpoint.ResumePoints(tmp_path, {"a": 1}, 1).save(3, {"tensors": {"x": torch.randn(50)}, "notes": {"best": 1.5}})
    path = tmp_path / "step_00000003.pt"
    whole, before = path.read_bytes(), checkpoint.read_resume_point(path)
    # Flip all attributes in the list of entries at the end: one marks an entry as a folder, which torch reads as empty.
    entries = [found.start() for found in re.finditer(b"PK\x01\x02", whole)]
    assert len(entries) > 3
    bits = [8 * (entry + 38) + bit for entry in entries for bit in range(32)]
    bits += np.random.default_rng(0).integers(0, 8 * len(whole), 300).tolist()
    for bit in bits:
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        with suppress(ValueError):
            assert same(checkpoint.read_resume_point(path), before), bit


@pytest.mark.parametrize(
    ("saved_with", "loaded_for"), [("sigmoid", "symmetric_info_nce"), ("symmetric_info_nce", "sigmoid")]
)
def test_one_of_another_loss_loads_although_only_one_of_them_trains_the_temperature(tmp_path, saved_with, loaded_for):
    def built(name: str):
        method = build_method("clip4clip", tiny_clip())
        loss = build_loss(name, method.clip)
        method.clip.logit_scale.requires_grad_(not loss.owns_scale)
        return method, loss

    (one, its_loss), (other, own_loss) = built(saved_with), built(loaded_for)
    with torch.no_grad():
        for parameter in one.parameters():
            parameter.add_(0.5)
    own_scale = other.clip.logit_scale.clone()
    path = tmp_path / "last.safetensors"
    save_checkpoint(path, one, CheckpointHeader({"method": "clip4clip"}, 1, "sha"), its_loss)
    load_checkpoint(path, other, "sha", own_loss)
    assert torch.equal(other.clip.logit_scale, own_scale)
    trained = {name: p for name, p in one.trainable_parameters() if name != "clip.logit_scale"}
    for name, parameter in trained.items():
        assert torch.equal(dict(other.named_parameters())[name], parameter), name


TOKENIZERS = ("CLIP's byte pairs", "someone/else, sha256 0123456789ab")
LINE = "vision 224/32 pixels, 12 x 768 wide, 12 heads; text 77 of 49408 tokens ({}), 12 x 512 wide; quick_gelu; softmax"
WORDS = st.lists(st.sampled_from(["a", "b", ""]), max_size=60)


class TestDifferences:
    def test_long_values_are_shown_where_they_differ(self) -> None:
        there, here = ({"CLIP": LINE.format(name)} for name in TOKENIZERS)
        assert checkpoint.differences(there, here) == (
            'CLIP is "... 49408 tokens (CLIP\'s byte pairs), ..." there and '
            "'... 49408 tokens (someone/else, sha256 0123456789ab), ...' here"
        )
        assert checkpoint.differences(there, there) == ""
        assert checkpoint.differences({"lr": "1"}, {"lr": "2", "new": 3}) == (
            "lr is '1' there and '2' here; new is None there and 3 here"
        )

    @given(WORDS, WORDS)
    def test_what_is_shown_differs_if_the_values_do(self, one: list[str], other: list[str]) -> None:
        texts = [" ".join(["word"] * 20 + words + ["end"] * 20) for words in (one, other)]
        message = checkpoint.differences({"x": texts[0]}, {"x": texts[1]})
        assert bool(message) == (texts[0] != texts[1])
        if message and max(len(one), len(other)) < 15:
            there, here = message.removeprefix("x is ").removesuffix(" here").split(" there and ")
            assert there != here
