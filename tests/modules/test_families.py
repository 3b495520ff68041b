"""Every method on a tiny backbone of every family: it runs and learns, or refuses in one sentence."""

import copy
from dataclasses import replace
from functools import partial

import pytest
import torch

from engine.checkpoint import CheckpointHeader, load_checkpoint, save_checkpoint
from engine.optim import build_optimizer
from modules.backbones import NEEDS
from modules.clip_weights import backbone_sha256
from modules.methods import METHODS, build_method
from modules.rows import tensors_of
from modules.similarity import masked_mean
from modules.text_prompts import encode_with_both_ends
from tests.backbones import FAMILIES, family_clip
from tests.tiny import TINY, fitting_options, loss_of, tiny_batch, tiny_clip

PAIRS = [(name, family) for name in METHODS for family in FAMILIES]
# What a family does not define for a method; docs/backbones.md says why.
REFUSED = {
    "clip": set(),
    "pe": {"discovla", "stdd", "tc_clip", "tempme", "vop_fc"},
    "siglip": {
        "discovla", "efficient_prompt", "mug_stan", "mv_adapter", "stan", "stdd", "tc_clip", "tempme", "unipt", "vop",
        "vop_fc",
    },
}  # fmt: skip
RUNNING = [(name, family) for name, family in PAIRS if name not in REFUSED[family]]
# As released, frame scores of stop_released are stretched over the batch, so that a clip depends on it.
OPTIONS = {"stop_released": {"inter_frame_norm": "clip"}}


def built(name, family, **options):
    return build_method(name, family_clip(family), **fitting_options(name, **OPTIONS.get(name, {}), **options))


@pytest.mark.parametrize(("name", "family"), [pair for pair in PAIRS if pair not in RUNNING])
def test_what_is_not_defined_is_refused(name, family):
    lacking = FAMILIES[family].lacks(METHODS[name].needs)
    with pytest.raises(ValueError, match=f"method {name} needs .*which this backbone does not have") as caught:
        built(name, family)
    assert all(NEEDS[need] in str(caught.value) for need in lacking)
    assert "\n" not in str(caught.value)


def test_the_methods_that_the_families_are_for():
    everywhere = {name for name in METHODS if all((name, family) in RUNNING for family in FAMILIES)}
    assert everywhere >= {"stop", "vpt", "upt", "dgl", "clip4clip", "lora", "bias", "adapter_attn", "adapter_ffn"}
    assert everywhere >= {"visual_text_adapter", "video_text_adapter", "t_mass", "stop_released"}
    assert ("stan", "pe") in RUNNING


@pytest.mark.parametrize(("name", "family"), RUNNING)
def test_rows_depend_on_nothing_else_in_the_batch(name, family):
    method = built(name, family).eval()
    video, frame_mask, token_ids = tiny_batch(architecture=FAMILIES[family])
    with torch.no_grad():
        text, clips = method(video, frame_mask, token_ids)
        scores = method.similarity(text, clips)
        assert scores.shape == (3, 3)
        assert scores.isfinite().all()
        assert scores.std() > 0
        for rows, alone in ((clips, method.encode_video(video[1:2], frame_mask[1:2])),
                            (text, method.encode_text(token_ids[1:2]))):  # fmt: skip
            for ours, shared in zip(tensors_of(alone), tensors_of(rows), strict=True):
                torch.testing.assert_close(ours[0], shared[1], atol=1e-4, rtol=1e-4)
        video[1, -1] = 3.0  # padding
        torch.testing.assert_close(method.similarity(text, method.encode_video(video, frame_mask)), scores)


@pytest.mark.parametrize(("name", "family"), RUNNING)
def test_it_learns_what_it_trains_and_comes_back_from_its_checkpoint(name, family, tmp_path):
    method = built(name, family)
    sha256 = backbone_sha256(method.clip)
    before = copy.deepcopy(method.state_dict())
    method.train()
    batch = tiny_batch(architecture=FAMILIES[family])
    optimizer = build_optimizer(method.parameter_groups(1e-2, 1.0, 0.2))
    pulled = set()
    for _ in range(3):  # some parts start behind two layers of zeros
        optimizer.zero_grad()
        loss_of(method, batch).backward()
        for part, parameter in method.named_parameters():
            assert (parameter.grad is not None) == parameter.requires_grad, part
        pulled |= {part for part, parameter in method.trainable_parameters() if parameter.grad.any()}
        optimizer.step()
    trained = {part for part, _ in method.trainable_parameters()}
    dead = tuple(f"{part.name}." for part in method.dead_parameters())
    assert trained - pulled == {part for part in trained - pulled if f"{part}.".startswith(dead)}
    changed = {part for part, tensor in method.state_dict().items() if not torch.equal(tensor, before[part])}
    assert pulled <= changed <= trained

    path = tmp_path / "last.safetensors"
    save_checkpoint(path, method, CheckpointHeader({}, 1, sha256, backbone=method.clip.backbone.facts()))
    torch.manual_seed(1)
    again = built(name, family)
    load_checkpoint(path, again, sha256)
    ours, theirs = (partial(one.eval().similarity)(*one(*batch)) for one in (method, again))
    assert torch.equal(ours, theirs)


@pytest.mark.parametrize(("name", "family"), [pair for pair in RUNNING if pair[1] != "clip"])
def test_in_bf16_it_embeds_nearly_the_same_and_trains(name, family):
    method, batch = built(name, family), tiny_batch(architecture=FAMILIES[family])
    with torch.no_grad():
        full = tensors_of(method.eval().encode_video(*batch[:2]))[0]
        with torch.autocast("cpu", torch.bfloat16):
            half = tensors_of(method.encode_video(*batch[:2]))[0].float()
    alike = torch.nn.functional.cosine_similarity(half, full, dim=-1) > 0.98
    assert (alike | (full == 0).all(dim=-1)).all()
    for block in (*method.clip.visual.blocks, *method.clip.text.blocks):
        block.recompute = True
    with torch.autocast("cpu", torch.bfloat16):
        loss_of(method.train(), batch).backward()
    for part, parameter in method.trainable_parameters():
        assert parameter.grad.dtype == torch.float32, part
        assert parameter.grad.isfinite().all(), part


# Methods that begin as CLIP, with the options they need for it.
FROM_CLIP = {
    "clip4clip": {}, "bias": {}, "lora": {}, "adapter_attn": {}, "adapter_ffn": {}, "visual_text_adapter": {},
    "video_text_adapter": {}, "mv_adapter": {},
    "stop": {"use_intra": False, "use_inter": False, "text_prompt_length": 0},
}  # fmt: skip


@pytest.mark.parametrize(("name", "family"), [pair for pair in RUNNING if pair[0] in FROM_CLIP])
def test_what_begins_as_clip_gives_what_the_backbone_gives(name, family):
    method = built(name, family, **FROM_CLIP[name]).eval()
    video, frame_mask, token_ids = tiny_batch(architecture=FAMILIES[family])
    clip = family_clip(family).eval()
    with torch.no_grad():
        text, clips = method(video, frame_mask, token_ids)
        frames = clip.visual(video.flatten(0, 1)).unflatten(0, video.shape[:2])
        torch.testing.assert_close(clips, masked_mean(frames, frame_mask), atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(text, clip.text(token_ids), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("family", ["clip", "pe"])
def test_stan_without_its_branch_gives_what_the_backbone_gives(family):
    method = built("stan", family).eval()
    method.branch.forward = lambda taps, *_: torch.zeros_like(taps[0][:, 0, 0])
    video, _, _ = tiny_batch(architecture=FAMILIES[family])
    with torch.no_grad():
        frames = family_clip(family).eval().visual(video.flatten(0, 1)).unflatten(0, video.shape[:2])
        torch.testing.assert_close(method.encode_frames(video), frames, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_joint_attention_ignores_padding_on_every_family(family):
    method = built("stop", family, attention="joint").eval()
    video, frame_mask, _ = tiny_batch(architecture=FAMILIES[family])
    frame_mask[1] = torch.tensor([1, 1, 0, 0])
    short = method.encode_video(video[1:2, :2], frame_mask[1:2, :2])
    torch.testing.assert_close(method.encode_video(video, frame_mask)[1:2], short, atol=1e-4, rtol=1e-4)


def test_tokens_merge_only_where_a_class_token_is_read():
    with pytest.raises(ValueError, match=r"--merge .* needs a vision tower that is read by its class token"):
        built("stop", "pe", merge="2")


@pytest.mark.parametrize("family", FAMILIES)
def test_a_checkpoint_of_another_family_is_refused(family, tmp_path):
    method, other = built("vpt", family), built("vpt", "pe" if family == "clip" else "clip")
    path, sha256 = tmp_path / "last.safetensors", backbone_sha256(method.clip)
    save_checkpoint(path, method, CheckpointHeader({}, 1, sha256, backbone=method.clip.backbone.facts()))
    with pytest.raises(ValueError, match=r"last\.safetensors"):
        load_checkpoint(path, other, backbone_sha256(other.clip))


@pytest.mark.parametrize("text_postfix", ["dead", "before_end"])
@pytest.mark.parametrize(("family", "both"), [("clip", False), ("siglip", True)])
def test_without_a_causal_mask_all_prompts_of_texts_are_seen(text_postfix, family, both):
    text = family_clip(family).text.eval()
    _, _, token_ids = tiny_batch(architecture=FAMILIES[family])
    prefix, postfix = torch.randn(2, len(text.blocks), 4, text.width)
    with torch.no_grad():
        ours = encode_with_both_ends(text, prefix, postfix, text_postfix, token_ids)
        other = encode_with_both_ends(text, prefix, -postfix, text_postfix, token_ids)
    assert torch.equal(ours, other) == (text_postfix == "dead" and not both)


def test_regions_of_the_release_divide_the_picture():
    clip = tiny_clip(architecture=replace(TINY, image_size=35))
    with pytest.raises(ValueError, match="4 x 4 regions, and those of this CLIP have 35 pixels a side"):
        build_method("stop_released", clip, **fitting_options("stop_released"))
