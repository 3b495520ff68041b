"""STOP as released: against the released system's numbers, its counts, its checkpoints, and its switches."""

from dataclasses import replace

import pytest
import torch

from modules.backbones import Preprocessing
from modules.clip import ARCHITECTURES, CLIP
from modules.losses import symmetric_info_nce
from modules.methods import build_method
from modules.methods.stop_released import load_released_state_dict
from tests.reference_numbers import largest_relative_difference, load_oracle
from tests.tiny import tiny_batch, tiny_clip

VANISHING = {"inter.scorer.bias", "inter.mlp.2.bias"}  # zero but for rounding, see dead_parameters
# Its 16 million terms cancel to a 2000th of their sum: in double precision it is 7e-4 from the original's fp32 figure.
CANCELLING = "pixel.act2.weight"


def released(**options):
    torch.manual_seed(1)
    return build_method("stop_released", tiny_clip(), **{"max_frames": 4, **options})


@pytest.fixture(scope="module", params=[pytest.param("linear", marks=pytest.mark.slow), "transformer"])
def original(reference, request):
    """Return the reference run, our method with its weights, and its frame mask."""
    oracle = load_oracle(reference, f"stop_released_{request.param}")
    method = build_method(
        "stop_released", CLIP(ARCHITECTURES["ViT-B/32"]), shared_latent_space=request.param, prompt_dropout=0.0
    )
    load_released_state_dict(method, oracle.weights)
    return oracle, method, torch.ones(oracle.video.shape[:2])


def test_equals_the_original(original):
    oracle, method, frame_mask = original
    with torch.no_grad():
        text, clips = method(oracle.video, frame_mask, oracle.token_ids)
        similarity = method.similarity(text, clips)
        region_mask, rates = method.prompt_maps(oracle.video)
        alone = method.encode_video(oracle.video[:1], frame_mask[:1])
    assert (region_mask.bool().numpy() == oracle.outputs["region_mask_7x7"]).all()
    for name, ours in {
        "visual_output": clips,
        "sequence_output": text,
        "similarity": similarity,
        "inter_frame_weight": rates,
        "visual_output_first_clip_alone": alone,
    }.items():
        assert largest_relative_difference(ours, oracle.outputs[name]) < 2e-5, name
    assert float(symmetric_info_nce(similarity)) == pytest.approx(oracle.setting["loss"], rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("original", ["linear", "transformer"], indirect=True, scope="module")
def test_learns_as_the_original(original):
    """Every gradient has the original's norm, and is exactly zero where the original has none."""
    oracle, method, frame_mask = original
    text, clips = method(oracle.video, frame_mask, oracle.token_ids)
    symmetric_info_nce(method.similarity(text, clips)).backward()
    expected = oracle.setting["gradients_norm_sum_first4"]
    for name, parameter in method.named_parameters():
        reference = expected.get(method.released_name(name))
        if reference is None or reference[0] == 0:
            assert parameter.grad is None or not parameter.grad.any(), name
        elif name not in VANISHING:
            rel = 2e-3 if name == CANCELLING else 1e-3
            assert float(parameter.grad.norm()) == pytest.approx(reference[0], rel=rel), name
    method.zero_grad()


@pytest.mark.parametrize(
    ("space", "adapters", "count"),
    [
        ("linear", True, 4_333_752),
        ("transformer", True, 13_081_528),
        ("linear", False, 3_334_560),
        ("transformer", False, 12_082_336),
    ],
)
def test_trainable_count_of_the_released_model(space, adapters, count):
    with torch.device("meta"):
        clip = CLIP(ARCHITECTURES["ViT-B/32"])
        method = build_method("stop_released", clip, shared_latent_space=space, adapters=adapters)
    assert sum(parameter.numel() for _, parameter in method.trainable_parameters()) == count


@pytest.mark.parametrize("space", ["linear", "transformer"])
def test_dead_parameters_change_no_embedding(space):
    """Change each of them in a way that its reason covers; the embeddings stay the same."""
    method = released(shared_latent_space=space).eval()
    video, frame_mask, token_ids = tiny_batch(frames=4)
    parameters = dict(method.named_parameters())
    with torch.no_grad():
        before = method(video, frame_mask, token_ids)
        dead = method.dead_parameters()
        assert len(dead) == 5
        for part in dead:
            if part.name == "pixel.scorer":  # its values matter; the next test shows that it never learns
                continue
            for name, parameter in parameters.items():
                if f"{name}.".startswith(f"{part.name}."):
                    third = slice(len(parameter) // 3, 2 * len(parameter) // 3) if part.share < 1 else slice(None)
                    parameter[third] += 0.3
        after = method(video, frame_mask, token_ids)
    for ours, expected in zip(after, before, strict=True):
        torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-5)


def test_the_scorer_of_the_pixel_mask_never_changes():
    method = released()
    before = method.pixel.scorer.weight.detach().clone()
    optimizer = torch.optim.AdamW(method.parameter_groups(1e-2, 1.0, 0.2))
    for seed in range(2):
        optimizer.zero_grad()
        text, clips = method(*tiny_batch(seed=seed, frames=4))
        symmetric_info_nce(method.similarity(text, clips)).backward()
        optimizer.step()
    assert torch.equal(method.pixel.scorer.weight, before)
    assert any(part.name == "pixel.scorer" for part in method.dead_parameters())
    assert not any(part.name == "pixel.scorer" for part in released(hard_region_mask=False).dead_parameters())


def test_a_clip_depends_on_its_batch_as_released_and_its_fix():
    video, _, _ = tiny_batch(frames=4)
    frame_mask = torch.ones(3, 4)
    for norm, depends in (("batch", True), ("clip", False)):
        method = released(inter_frame_norm=norm).eval()
        with torch.no_grad():
            for parameter in method.inter.parameters():  # at the start the prompts between frames are close to zero
                parameter.mul_(3)
            together = method.encode_video(video, frame_mask)[:1]
            alone = method.encode_video(video[:1], frame_mask[:1])
        assert ((together - alone).abs().max() > 1e-5) == depends


def test_one_flat_frame_is_an_error_and_not_nan():
    """In training, where a check would make the host wait for a GPU, the loss is NaN, and the loop stops there."""
    method = released(shared_latent_space="linear")
    frame = torch.zeros(1, 1, 3, 32, 32), torch.ones(1, 1)
    with pytest.raises(ValueError, match="all frames of this batch have the same score"):
        method.eval().encode_video(*frame)
    assert method.train().encode_video(*frame).isnan().all()


def test_adapters_do_not_start_at_zero():
    """So the first step is not zero-shot CLIP. Neither is DGL's, which does not use the class tokens."""
    _, _, token_ids = tiny_batch(frames=4)
    method = released()
    with torch.no_grad():
        with_adapters = method.encode_text(token_ids)
        for adapter in method.text_adapters:
            adapter.scale = 0.0
        assert (with_adapters - method.encode_text(token_ids)).abs().max() > 1e-3


def their_state(method):
    return {f"module.{method.released_name(name)}": tensor.clone() for name, tensor in method.state_dict().items()}


@pytest.mark.parametrize("space", ["linear", "transformer"])
def test_released_checkpoints_are_read(space):
    source, target = released(shared_latent_space=space), released(shared_latent_space=space)
    with torch.no_grad():
        for parameter in source.parameters():
            parameter.add_(torch.randn_like(parameter))
    state = their_state(source)
    prompts = "clip.visual_prompt_embedding" if space == "linear" else "clip.unified_prompt_embedding.weight"
    flat = state[f"module.{prompts}"].flatten(1)  # all blocks side by side, as in the release
    state[f"module.{prompts}"] = flat.unsqueeze(0) if space == "linear" else flat
    load_released_state_dict(target, state)
    for name, tensor in target.state_dict().items():
        assert torch.equal(tensor, source.state_dict()[name]), name


@pytest.mark.parametrize("change", ["activation", "pixels"])
def test_a_clip_that_the_released_code_could_not_run_is_refused(change):
    """Its shapes fit, and QuickGELU weights would run in a GELU network."""
    method = build_method("clip4clip", tiny_clip())
    state = {method.released_name(name): tensor for name, tensor in method.state_dict().items()}
    backbone = method.clip.backbone
    if change == "activation":
        method.clip.backbone = replace(backbone, architecture=replace(backbone.architecture, activation="gelu"))
    else:
        method.clip.backbone = replace(backbone, preprocessing=Preprocessing(resize_mode="squash"))
    with pytest.raises(ValueError, match="for OpenAI's CLIP, and the one given runs differently"):
        load_released_state_dict(method, state)
    method.clip.backbone = backbone
    load_released_state_dict(method, state)


def test_what_does_not_fit_is_named_and_nothing_is_loaded():
    method = released()
    before = {name: tensor.clone() for name, tensor in method.state_dict().items()}
    state = their_state(method)
    del state["module.clip.visual.TemporalPrompt.Cal_Net.bias"]
    state["module.clip.stray"] = torch.zeros(1)
    state["module.clip.visual.proj"] = torch.zeros(2, 2)
    with pytest.raises(
        ValueError,
        match=r"1 key missing \(clip.visual.TemporalPrompt.Cal_Net.bias\); 1 key unknown \(clip.stray\); "
        r"1 key of another shape \(clip.visual.proj is \[2, 2\] instead of \[32, 24\]\)",
    ):
        load_released_state_dict(method, state)
    for name, tensor in method.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    with pytest.raises(ValueError, match=r"unknown \(clip.unified_prompt_embedding.weight"):
        load_released_state_dict(released(shared_latent_space="linear"), their_state(method))
    with pytest.raises(ValueError, match="STOP follows no released code"):
        load_released_state_dict(build_method("stop", tiny_clip()), state)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"inter_frame_norm": "video"}, "'video' is not one of: batch, clip"),
        ({"region_mask": "rows"}, "'rows' is not one of: comb, patches"),
        ({"n_regions": 16}, "--n_regions 16 is out of range: it takes a number from 1 to 15"),
        ({"prompt_dropout": 1.0}, "--prompt_dropout 1 is out of range: it takes a number from 0 to 0.99"),
    ],
)
def test_bad_input_is_refused(option, message):
    with pytest.raises(ValueError, match=message):
        released(**option)
