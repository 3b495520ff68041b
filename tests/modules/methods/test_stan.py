"""STAN: its depth, what is trained and decays, what cannot learn, the temperature, frames, and released checkpoints."""

import logging
import shutil
from collections import OrderedDict
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.checkpoint import CheckpointHeader, save_checkpoint
from engine.preflight import check_reached
from engine.weights import load_weights
from modules.clip import CLIP
from modules.methods import build_method
from modules.methods.stan import STAN
from modules.released_weights import load_released_state_dict
from modules.similarity import unit
from modules.undrawn import undrawn
from tests.tiny import TINY, tiny_batch, tiny_clip

DEEP = replace(TINY, vision_layers=4)


def stan(seed=0, architecture=TINY, **options) -> STAN:
    method = build_method("stan", tiny_clip(seed, architecture), **options)
    assert isinstance(method, STAN)
    return method


def test_the_example_of_its_use():
    method = build_method("stan", tiny_clip(architecture=DEEP), stan_layers=4)
    assert method.encode_frames(tiny_batch()[0]).shape == (3, 4, TINY.embed_dim)


# Depth


@pytest.mark.parametrize(("blocks", "levels"), [(1, 1), (2, 1), (3, 2), (4, 3), (5, 4), (6, 4), (24, 4)])
def test_an_unset_depth_follows_its_rule_and_is_logged(blocks, levels, caplog):
    with undrawn(), caplog.at_level(logging.INFO, "stop"):
        method = build_method("stan", CLIP(replace(TINY, vision_layers=blocks)))
    assert len(method.branch.levels) == levels
    assert f"--stan_layers {levels}, by the rule for this CLIP's {blocks} visual blocks" in caplog.text


def test_a_depth_that_does_not_fit_is_refused():
    assert len(stan(stan_layers=2).branch.levels) == 2
    with pytest.raises(ValueError, match="--stan_layers 3 is out of range: it takes a number from 1 to 2, the visual"):
        stan(stan_layers=3)


@settings(max_examples=4)
@given(st.integers(1, 4), st.sampled_from([(1, 8), (3, 24), (4, 32)]), st.sampled_from([8, 16]), st.data())
@torch.no_grad()
def test_any_clip(layers, shape, patch, data):
    heads, width = shape
    architecture = replace(TINY, vision_layers=layers, vision_width=width, vision_heads=heads, patch_size=patch)
    method = stan(architecture=architecture, stan_layers=data.draw(st.integers(1, layers)))
    video, frame_mask, _ = tiny_batch(architecture=architecture)
    assert method.encode_video(video, frame_mask).isfinite().all()
    assert all(level.spatial.attn.heads == heads == level.temporal.attn.heads for level in method.branch.levels)


# Trained, decayed, dead


def test_all_of_clip_is_trained_but_its_temperature():
    assert {name for name, p in stan().named_parameters() if not p.requires_grad} == {"clip.logit_scale"}
    frozen = {name for name, p in stan(train_text=False).named_parameters() if not p.requires_grad}
    assert frozen == {"clip.logit_scale", *(f"clip.text.{name}" for name, _ in stan().clip.text.named_parameters())}


def test_by_default_no_bias_norm_or_vector_decays():
    method = stan(temporal_module="conv", stan_embeddings="paper")
    decayed = {name for name, parameter in method.trainable_parameters() if method.decays(name, parameter)}
    assert {"branch.time.weight", "branch.positions", "branch.levels.0.temporal.conv.weight"} <= decayed
    assert not any(name.endswith(("bias", "class_embedding")) or ".ln_" in name for name in decayed)
    assert sorted(group["lr"] for group in method.parameter_groups(1.0, 0.1, 0.2)) == [0.1, 0.1, 1.0, 1.0]


@pytest.mark.parametrize("options", [{}, {"time_frames": 5}, {"temporal_module": "conv"}, {"stan_embeddings": "paper"}])
def test_exactly_the_declared_parameters_of_the_branch_are_dead(options):
    method = stan(stan_layers=2, max_frames=3, **options)
    with torch.no_grad():
        for parameter in method.branch.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    video, frame_mask, token_ids = tiny_batch(batch=2, frames=3)
    text, clips = method(video, frame_mask, token_ids)
    method.similarity(text, clips).square().sum().backward()
    shares = {part.name: part.share for part in method.dead_parameters()}
    assert shares["branch.time.weight"] == 1 - options.get("time_frames", 3) / 64
    for name, parameter in method.branch.named_parameters():
        if name.endswith("in_proj_bias"):
            _, keys, _ = (part.abs().max() for part in parameter.grad.chunk(3))
            assert keys < 1e-4 * parameter.grad.abs().max(), name
            assert shares[f"branch.{name}"] == 1 / 3
        dead = parameter.grad.abs() <= 1e-4 * parameter.grad.abs().median()
        assert dead.float().mean() <= shares.get(f"branch.{name}", 0) + 0.05, name


@pytest.mark.parametrize("options", [{}, {"temporal_module": "conv", "level_projection": True, "cls_residue": True}])
def test_clips_of_one_frame_reach_all_parameters(options):
    check_reached(stan(stan_layers=2, max_frames=1, **options), 1, 8)


# Scores


def test_the_temperature_is_constant():
    method, batch = stan(tau=0.02), tiny_batch()
    text, clips = method(*batch)
    expected = (unit(text) @ unit(clips).T) / 0.02
    torch.testing.assert_close(method.similarity(text, clips), expected)
    method.similarity(text, clips).sum().backward()
    assert method.clip.logit_scale.grad is None
    method.after_step()
    assert method.clip.logit_scale.exp().item() == pytest.approx(50)


@torch.no_grad()
def test_the_length_of_frames_counts_in_their_mean():
    method, (video, frame_mask, _) = stan().eval(), tiny_batch()
    frames = method.encode_frames(video, frame_mask)
    found = method.encode_video(video, frame_mask)
    for clip in range(3):
        torch.testing.assert_close(found[clip], frames[clip][frame_mask[clip]].mean(dim=0))


# Numbers of frames


def test_more_frames_than_rows_are_refused_before_anything_else():
    with pytest.raises(ValueError, match="and the clips have 65 frames: pass --max_frames 64 or less"):
        stan(max_frames=65)
    video = torch.zeros(1, 65, 3, 32, 32)
    with torch.no_grad():
        assert stan(max_frames=65, time_frames=64).encode_frames(video).shape[1] == 65
        with pytest.raises(ValueError, match="time table has 64 rows"):
            stan().encode_frames(video)


@pytest.mark.parametrize(
    ("options", "warned"),
    [({}, False), ({"max_frames": 5}, True), ({"max_frames": 5, "time_frames": 4}, False), ({"time_frames": 5}, True)],
)
def test_weights_trained_for_another_number_of_frames(options, warned, tmp_path, caplog):
    trained = stan(max_frames=4)
    save_checkpoint(tmp_path / "last.safetensors", trained, CheckpointHeader({"max_frames": 4}, 1, "a" * 64))
    load_weights(tmp_path / "last.safetensors", stan(1, **{"max_frames": 4} | options), "a" * 64, training=True)
    assert ("trained for clips of 4 frames" in caplog.text) == warned
    assert ("pass --time_frames 4 to interpolate" in caplog.text) == warned


@torch.no_grad()
def test_interpolated_rows_are_those_of_the_trained_clips():
    method, (video, _, _) = stan(time_frames=4).eval(), tiny_batch(frames=4)
    plain = stan().eval()
    torch.testing.assert_close(method.encode_frames(video), plain.encode_frames(video))
    assert (method.encode_frames(video[:, :3]) - plain.encode_frames(video[:, :3])).abs().max() > 1e-3


# The released code's checkpoints


def released_state(method: STAN, visual="backbone.", text="text_backbone.", branch="STAN_") -> dict:
    """Return the tensors as their code saves them."""
    state = {}
    for name, tensor in method.state_dict().items():
        key = method.released_name(name)
        if key is None:
            continue
        key = (text if key.startswith("text_") else visual) + key.replace("STAN_", branch)
        tensor = tensor.T if "projection" in key else tensor
        if "{q,k,v}" in key:
            for letter, part in zip("qkv", tensor.chunk(3), strict=True):
                state[key.replace("{q,k,v}", letter)] = part.clone()
        else:
            state[key] = tensor
    return state


@pytest.mark.parametrize(
    ("names", "top"),
    [({}, True), ({}, False), ({"visual": "", "text": ""}, False), ({"branch": "timesFPN_"}, True)],
)
def test_released_checkpoints_are_read(names, top, caplog):
    source, target = stan(1, stan_layers=2), stan(2, stan_layers=2, level_projection=True)
    state = released_state(source, **names)
    assert f"{names.get('visual', 'backbone.')}layers.1.self_attn.k_proj.weight" in state
    if "branch" in names:
        state |= {"backbone.timesFPN_pos_embed": torch.zeros(3), "backbone.timesFPN_cls_token": torch.zeros(3)}
    with caplog.at_level(logging.INFO, "stop"):
        load_released_state_dict(target, {"meta": {}, "state_dict": state} if top else state)
    theirs = source.state_dict()
    for name, tensor in target.state_dict().items():  # W_proj starts as the identity, and so adds nothing
        assert torch.equal(tensor, theirs[name] if "projection.weight" not in name else torch.eye(32)), name
    unused = "2 tensors that the released code does not use (timesFPN_pos_embed, timesFPN_cls_token)"
    assert (unused in caplog.text) == ("branch" in names)


class History:
    """Beside the weights, mmengine saves the curves of the loss as objects with arrays."""

    def __init__(self, written):
        self.values, self.written = np.arange(3.0), written

    def __reduce__(self):  # to load it would write a file
        return shutil.copyfile, (__file__, str(self.written)), {"values": self.values, "means": [np.mean]}


def test_their_files_are_given_to_init_model(tmp_path):
    source, target = stan(1), stan(2)
    file = {"meta": {"epoch": 3}, "state_dict": OrderedDict(released_state(source))}
    file["message_hub"] = {"log_scalars": OrderedDict(loss=History(tmp_path / "ran"))}
    torch.save(file, tmp_path / "best.pth")
    loaded = load_weights(tmp_path / "best.pth", target, "a" * 64, training=True)
    assert not (tmp_path / "ran").exists()  # no object's code has run
    assert not loaded.replaced  # all that differs is trained
    video, frame_mask, _ = tiny_batch()
    with torch.no_grad():
        assert torch.equal(*(method.eval().encode_video(video, frame_mask) for method in (source, target)))


def test_an_object_in_the_place_of_a_tensor_is_refused(tmp_path):
    torch.save({"state_dict": {"backbone.x": History(tmp_path / "ran")}}, tmp_path / "best.pth")
    with pytest.raises(ValueError, match=r"some entries are not named tensors \(1\): backbone\.x"):
        load_weights(tmp_path / "best.pth", stan(), "a" * 64, training=True)
    torch.save({"model": History(tmp_path / "ran")}, tmp_path / "model.pth")
    with pytest.raises(ValueError, match="it holds Python objects beside tensors, which are not read because"):
        load_weights(tmp_path / "model.pth", stan(), "a" * 64, training=True)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        ({"backbone.layers.0.self_attn.k_proj.weight": None}, {}, r"layers\.0\.self_attn\.k_proj\.weight is missing"),
        ({"backbone.pre_layrnorm.bias": None}, {}, r"1 key missing \(pre_layrnorm\.bias\)"),
        ({"cls_head.weight": torch.zeros(2)}, {}, r"1 key unknown \(cls_head\.weight\)"),
        ({}, {"stan_layers": 2}, r"20 keys missing \(STAN_T_layers\.1\..*--method stan or mug_stan --stan_layers 1"),
        ({}, {"temporal_module": "conv"}, r"STAN_T_layers\.0\.down\.weight.*8 keys unknown \(STAN_T"),
        ({}, {"stan_embeddings": "paper"}, "no position table of the branch's own: pass --stan_embeddings released"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_named(change, options, message):
    target = stan(2, **options)
    before = {name: tensor.clone() for name, tensor in target.state_dict().items()}
    state = released_state(stan(1)) | change
    with pytest.raises(ValueError, match=message):
        load_released_state_dict(target, {key: tensor for key, tensor in state.items() if tensor is not None})
    assert all(torch.equal(tensor, before[name]) for name, tensor in target.state_dict().items())
