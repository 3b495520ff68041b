"""LoRA: against the numbers of the original, its count, its start, and the same after merging."""

import pytest
import torch

from modules.clip import ARCHITECTURES, CLIP
from modules.methods import build_method
from modules.similarity import masked_mean
from tests.modules.methods.peer_oracles import method_of
from tests.modules.methods.released_parity import check_outputs
from tests.reference_numbers import load_oracle
from tests.tiny import tiny_batch, tiny_clip


def lora(**options):
    torch.manual_seed(1)
    return build_method("lora", tiny_clip(), **options)


@pytest.mark.parametrize("size", ["small", pytest.param("b32", marks=pytest.mark.slow)])
def test_equals_the_original(reference, size):
    oracle = load_oracle(reference, f"lora_{size}")
    check_outputs(method_of(oracle, "lora"), oracle)


def test_count_at_vit_b32():
    with torch.device("meta"):
        method = build_method("lora", CLIP(ARCHITECTURES["ViT-B/32"]))
    assert sum(parameter.numel() for _, parameter in method.trainable_parameters()) == 491_520
    assert not method.clip.logit_scale.requires_grad


@torch.no_grad()
def test_it_starts_as_clip():
    video, frame_mask, token_ids = tiny_batch()
    method, clip = lora().eval(), tiny_clip().eval()
    frames = clip.visual(video.flatten(0, 1)).unflatten(0, video.shape[:2])
    assert torch.equal(method.encode_video(video, frame_mask), masked_mean(frames, frame_mask))
    assert torch.equal(method.encode_text(token_ids), clip.text(token_ids))


def test_the_rows_of_a_start_at_uniform_and_b_at_zero():
    method = lora(lora_dim=5)
    for tower, width in ((method.visual_lora, 32), (method.text_lora, 16)):
        for delta in tower:
            assert delta.a.shape == (5, width)
            assert 0.8 * width**-0.5 < delta.a.abs().max() <= width**-0.5
            assert torch.equal(delta.b, torch.zeros(3 * width, 5))


@torch.no_grad()
def test_the_addition_is_that_of_the_equation():
    method, clip = lora(), tiny_clip()
    for delta in (*method.visual_lora, *method.text_lora):
        torch.nn.init.normal_(delta.b, std=0.1)
    for ours, plain, deltas in (
        (method.clip.visual, clip.visual, method.visual_lora),
        (method.clip.text, clip.text, method.text_lora),
    ):
        for block, original, delta in zip(ours.blocks, plain.blocks, deltas, strict=True):
            original.attn.in_proj_weight += delta.b @ delta.a
            x = torch.randn(2, 5, ours.width)
            for training in (True, False):
                method.train(training)
                torch.testing.assert_close(block(x), original(x), atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_merged_weights_give_the_same_features():
    video, frame_mask, token_ids = tiny_batch()
    method = lora()
    start = method.eval()(video, frame_mask, token_ids)
    for delta in (*method.visual_lora, *method.text_lora):
        torch.nn.init.normal_(delta.b, std=0.1)
    apart = method.train()(video, frame_mask, token_ids)
    merged = method.eval()(video, frame_mask, token_ids)
    for ours, expected, before in zip(merged, apart, start, strict=True):
        unit = torch.nn.functional.normalize
        torch.testing.assert_close(unit(ours, dim=-1), unit(expected, dim=-1), atol=1e-6, rtol=0)
        assert (ours - before).abs().max() > 1e-2


def test_a_rank_of_zero_is_refused():
    with pytest.raises(ValueError, match="--lora_dim 0 is out of range"):
        lora(lora_dim=0)
