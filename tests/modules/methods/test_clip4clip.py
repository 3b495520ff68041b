"""CLIP4Clip: both headers against the original system's numbers, what is trained, and how it learns."""

from dataclasses import replace

import pytest
import torch

from modules.clip import ARCHITECTURES, CLIP
from modules.losses import symmetric_info_nce
from modules.methods import build_method
from tests.reference_numbers import largest_relative_difference, load_oracle
from tests.tiny import TINY, tiny_batch, tiny_clip

SQUARE = replace(TINY, text_width=TINY.embed_dim)  # seqTransf starts as text blocks, so they must fit frame embeddings


def sequential(**options):
    """Return a tiny CLIP4Clip with the temporal transformer, unless an option says otherwise."""
    options = {"sim_header": "seqTransf", "cross_num_hidden_layers": 2, **options}
    return build_method("clip4clip", tiny_clip(architecture=SQUARE), **options)


@pytest.fixture(scope="module", params=["meanP", "seqTransf"])
def original(reference, request):
    """Return the reference run, our method with its weights, its video with zeroed padding frames, and its mask."""
    oracle = load_oracle(reference, f"clip4clip_{request.param}")
    method = build_method("clip4clip", CLIP(ARCHITECTURES["ViT-B/32"]), sim_header=request.param)
    method.load_state_dict({name: oracle.weights[method.released_name(name)] for name in method.state_dict()})
    frame_mask = torch.arange(oracle.setting["frames"]) < torch.tensor(oracle.setting["frames_of_clip"])[:, None]
    video = oracle.video * frame_mask[:, :, None, None, None]
    return oracle, method, video, frame_mask


def test_released_names_are_one_to_one(original):
    oracle, method, _, _ = original
    assert sorted(map(method.released_name, method.state_dict())) == sorted(oracle.setting["shapes"])


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


@pytest.mark.parametrize(
    "original", ["meanP", pytest.param("seqTransf", marks=pytest.mark.slow)], indirect=True, scope="module"
)
def test_learns_as_the_original(original):
    """Every gradient has the original's norm, and is None exactly where the original has none."""
    oracle, method, video, frame_mask = original
    text, clips = method(video, frame_mask, oracle.token_ids)
    symmetric_info_nce(method.similarity(text, clips)).backward()
    expected = oracle.setting["gradients_norm_sum_first4"]
    for name, parameter in method.named_parameters():
        reference = expected.get(method.released_name(name))
        if reference is None:
            assert parameter.grad is None, name
        elif reference[0] > 1e-6:
            assert float(parameter.grad.norm()) == pytest.approx(reference[0], rel=1e-3), name
    method.zero_grad()


@pytest.mark.parametrize(
    ("sim_header", "trainable", "total"),
    [("meanP", 123_540_993, 151_277_313), ("seqTransf", 136_189_953, 163_926_273)],
)
def test_trainable_count_of_the_published_model(sim_header, trainable, total):
    with torch.device("meta"):
        method = build_method("clip4clip", CLIP(ARCHITECTURES["ViT-B/32"]), sim_header=sim_header)
    assert sum(parameter.numel() for _, parameter in method.trainable_parameters()) == trainable
    assert sum(parameter.numel() for parameter in method.parameters()) == total


def test_temporal_transformer_starts_as_a_copy_of_the_text_tower():
    method = sequential(freeze_layer_num=2)
    text = method.clip.text
    pairs = [(method.frame_position_embeddings, text.positional_embedding)]
    pairs += zip(method.temporal_blocks.parameters(), text.blocks.parameters(), strict=True)
    for new, old in pairs:
        assert torch.equal(new, old)
        assert new.data_ptr() != old.data_ptr()
        assert new.requires_grad
        assert not old.requires_grad


def test_padding_frames_change_nothing():
    method = sequential()
    video, frame_mask, _ = tiny_batch(architecture=SQUARE)
    with torch.no_grad():
        clips = method.encode_video(video, frame_mask)
        dirty = torch.where(frame_mask[:, :, None, None, None], video, torch.full_like(video, 3.0))
        torch.testing.assert_close(method.encode_video(dirty, frame_mask), clips)
        alone = method.encode_video(video[1:2, frame_mask[1]], frame_mask[1:2, frame_mask[1]])
        torch.testing.assert_close(alone, clips[1:2], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("sim_header", ["meanP", "seqTransf"])
def test_the_order_of_frames_matters_to_the_sequential_type_only(sim_header):
    method = sequential(sim_header=sim_header)
    video, _, _ = tiny_batch(architecture=SQUARE)
    frame_mask = torch.ones(video.shape[:2], dtype=torch.bool)
    with torch.no_grad():
        change = method.encode_video(video.flip(1), frame_mask) - method.encode_video(video, frame_mask)
    assert (change.abs().max() > 1e-4) == (sim_header == "seqTransf")


@pytest.mark.parametrize(("layers", "allowed"), [(0, "at least 1"), (3, "from 1 to 2, the text blocks of this CLIP")])
def test_cross_num_hidden_layers_out_of_range(layers, allowed):
    with pytest.raises(ValueError, match=f"--cross_num_hidden_layers {layers} is out of range: .* {allowed}$"):
        sequential(cross_num_hidden_layers=layers)


def test_sequential_type_refuses_what_it_cannot_do():
    with pytest.raises(ValueError, match="have width 16 while its embeddings have 24"):
        build_method("clip4clip", tiny_clip(), sim_header="seqTransf")
    with pytest.raises(ValueError, match="reads at most 16 frames, not 17"):
        sequential().encode_video(torch.zeros(1, 17, 3, 32, 32), torch.ones(1, 17))
    with pytest.raises(ValueError, match="'seqLSTM' is not one of: meanP, seqTransf"):
        build_method("clip4clip", tiny_clip(), sim_header="seqLSTM")


def test_the_embeddings_and_the_first_blocks_are_frozen():
    method = build_method("clip4clip", tiny_clip(), freeze_layer_num=1)
    frozen = {name for name, parameter in method.named_parameters() if not parameter.requires_grad}
    for name in frozen:
        assert ".blocks.0." in name or "embedding" in name or "ln_pre" in name or "conv1" in name, name
    assert "clip.visual.blocks.0.attn.in_proj_weight" in frozen
    assert "clip.text.blocks.0.mlp.c_fc.bias" in frozen
    assert "clip.text.token_embedding.weight" in frozen


@pytest.mark.parametrize(("layers", "allowed"), [(-1, "at least 0"), (99, "from 0 to 2, the blocks of this CLIP")])
def test_freeze_layer_num_out_of_range(layers, allowed):
    with pytest.raises(ValueError, match=f"--freeze_layer_num {layers} is out of range: .* {allowed}$"):
        build_method("clip4clip", tiny_clip(), freeze_layer_num=layers)


def test_groups_have_the_published_rates_and_decay():
    method = build_method("clip4clip", tiny_clip())
    groups = {group["name"]: group for group in method.parameter_groups(1e-4, 1e-3, 0.2)}
    assert set(groups) == {"clip", "clip, no decay"}
    assert groups["clip"]["lr"] == pytest.approx(1e-7)
    assert groups["clip"]["weight_decay"] == 0.2
    assert groups["clip, no decay"]["weight_decay"] == 0
    biases = sum(parameter.numel() for name, parameter in method.trainable_parameters() if "bias" in name)
    assert sum(parameter.numel() for parameter in groups["clip, no decay"]["params"]) == biases


def test_the_temporal_transformer_learns_at_the_full_rate():
    method = sequential()
    groups = {group["name"]: group for group in method.parameter_groups(1e-4, 1e-3, 0.2)}
    assert groups["new"]["lr"] == groups["new, no decay"]["lr"] == 1e-4
    new = [*method.temporal_blocks.parameters(), method.frame_position_embeddings]
    grouped = groups["new"]["params"] + groups["new, no decay"]["params"]
    assert {id(parameter) for parameter in grouped} == {id(parameter) for parameter in new}


def test_temperature_never_exceeds_its_ceiling():
    method = build_method("clip4clip", tiny_clip())
    with torch.no_grad():
        method.clip.logit_scale.fill_(9.0)
    method.after_step()
    assert method.clip.logit_scale.detach().exp().item() == pytest.approx(100.0)
