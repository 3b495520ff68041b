"""CLIP4Clip meanP: against the original system's numbers, what is trained, and how it learns."""

import pytest
import torch

from modules.clip import ARCHITECTURES, CLIP
from modules.clip_weights import from_openai_keys
from modules.losses import symmetric_info_nce
from modules.methods import build_method
from tests.reference_numbers import largest_relative_difference, load_oracle
from tests.tiny import tiny_clip


@pytest.fixture(scope="module")
def original(reference):
    """(reference run, our method with its weights, its video with padding frames zeroed, its frame mask)."""
    oracle = load_oracle(reference, "clip4clip_meanP")
    clip = CLIP(ARCHITECTURES["ViT-B/32"])
    weights = {key.removeprefix("clip."): tensor for key, tensor in oracle.weights.items() if key.startswith("clip.")}
    clip.load_state_dict(from_openai_keys(weights))
    frame_mask = torch.arange(oracle.setting["frames"]) < torch.tensor(oracle.setting["frames_of_clip"])[:, None]
    video = oracle.video * frame_mask[:, :, None, None, None]
    return oracle, build_method("clip4clip", clip), video, frame_mask


def test_equals_the_original(original):
    oracle, method, video, frame_mask = original
    with torch.no_grad():
        frames = method.encode_frames(video)
        text, clips = method(video, frame_mask, oracle.token_ids)
        similarity = method.similarity(text, clips)
    assert largest_relative_difference(frames, oracle.outputs["visual_output"]) < 2e-5
    assert largest_relative_difference(text, oracle.outputs["sequence_output"]) < 2e-5
    assert largest_relative_difference(similarity, oracle.outputs["similarity"]) < 1e-4
    assert float(symmetric_info_nce(similarity)) == pytest.approx(oracle.setting["loss"], rel=1e-4)


def test_learns_as_the_original(original):
    """The norm of every gradient, and no gradient exactly where the original has none."""
    oracle, method, video, frame_mask = original
    text, clips = method(video, frame_mask, oracle.token_ids)
    symmetric_info_nce(method.similarity(text, clips)).backward()
    expected = oracle.setting["gradients_norm_sum_first4"]
    ours = from_openai_keys({key.removeprefix("clip."): key for key in expected})
    gradients = {f"clip.{name}": key for name, key in ours.items()}
    assert gradients.keys() <= {name for name, _ in method.named_parameters()}
    for name, parameter in method.named_parameters():
        reference = expected.get(gradients.get(name))
        if reference is None:
            assert parameter.grad is None, name
        elif reference[0] > 1e-6:
            assert float(parameter.grad.norm()) == pytest.approx(reference[0], rel=1e-3), name
    method.zero_grad()


def test_trainable_count_of_the_published_model():
    with torch.device("meta"):
        method = build_method("clip4clip", CLIP(ARCHITECTURES["ViT-B/32"]))
    assert sum(parameter.numel() for _, parameter in method.trainable_parameters()) == 123_540_993
    assert sum(parameter.numel() for parameter in method.parameters()) == 151_277_313


def test_frozen_are_the_embeddings_and_the_first_blocks():
    method = build_method("clip4clip", tiny_clip(), freeze_layer_num=1)
    frozen = {name for name, parameter in method.named_parameters() if not parameter.requires_grad}
    for name in frozen:
        assert ".blocks.0." in name or "embedding" in name or "ln_pre" in name or "conv1" in name, name
    assert "clip.visual.blocks.0.attn.in_proj_weight" in frozen
    assert "clip.text.blocks.0.mlp.c_fc.bias" in frozen
    assert "clip.text.token_embedding.weight" in frozen


@pytest.mark.parametrize("layers", [-1, 99])
def test_freeze_layer_num_out_of_range(layers):
    with pytest.raises(ValueError, match=f"freeze_layer_num={layers} is outside 0..2"):
        build_method("clip4clip", tiny_clip(), freeze_layer_num=layers)


def test_groups_have_the_lineages_rates_and_decay():
    method = build_method("clip4clip", tiny_clip())
    groups = {group["name"]: group for group in method.parameter_groups(1e-4, 1e-3, 0.2)}
    assert set(groups) == {"clip", "clip, no decay"}
    assert groups["clip"]["lr"] == pytest.approx(1e-7)
    assert groups["clip"]["weight_decay"] == 0.2
    assert groups["clip, no decay"]["weight_decay"] == 0
    biases = sum(parameter.numel() for name, parameter in method.trainable_parameters() if "bias" in name)
    assert sum(parameter.numel() for parameter in groups["clip, no decay"]["params"]) == biases


def test_temperature_never_exceeds_its_ceiling():
    method = build_method("clip4clip", tiny_clip())
    with torch.no_grad():
        method.clip.logit_scale.fill_(9.0)
    method.after_step()
    assert method.clip.logit_scale.detach().exp().item() == pytest.approx(100.0)
