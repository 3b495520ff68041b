"""VPT-deep against a tower that inserts and removes its prompts as the paper describes."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from modules.deep_prompts import run_blocks
from modules.losses import symmetric_info_nce
from modules.methods import build_method, without_newer
from modules.methods.vpt import VPT
from modules.released_weights import load_released_state_dict
from tests.modules.methods.peer_oracles import check_gradient, method_of, trained_at_b32
from tests.reference_numbers import largest_relative_difference, load_oracle
from tests.tiny import TINY, tiny_batch, tiny_clip


def vpt(**options) -> VPT:
    method = build_method("vpt", tiny_clip(), **options)
    assert isinstance(method, VPT)
    return method.eval()


def naive_video(method: VPT, video: Tensor, frame_mask: Tensor) -> Tensor:
    """Section 3.2 of arXiv 2203.12119, eq. 5, frame by frame: [_, E_i] of a block is dropped, and the next one gets
    its own prompts between the class token and the patches. Then the mean of the normalised embeddings."""
    visual = method.clip.visual
    rows = []
    for clip, mask in zip(video, frame_mask, strict=True):
        frames = []
        for image in clip[mask]:
            x = visual.embed(image.unsqueeze(0))
            for block, prompts in zip(visual.blocks, method.prompts, strict=True):
                x = block(torch.cat([x[:, :1], prompts.unsqueeze(0), x[:, 1:]], dim=1))
                x = torch.cat([x[:, :1], x[:, 1 + len(prompts) :]], dim=1)
            frames.append(F.normalize(visual.pool(x)[0], dim=0))
        rows.append(torch.stack(frames).mean(dim=0))
    return torch.stack(rows)


@pytest.mark.parametrize("length", [1, 5])
def test_videos_and_gradients_equal_the_papers(length):
    method = vpt(prompt_length=length)
    with torch.no_grad():
        method.prompts.normal_()
    video, frame_mask, _ = tiny_batch()
    ours, naive = method.encode_video(video, frame_mask), naive_video(method, video, frame_mask)
    torch.testing.assert_close(ours, naive, rtol=1e-4, atol=1e-5)
    weight = torch.randn_like(ours)
    gradients = [torch.autograd.grad((out * weight).sum(), method.prompts)[0] for out in (ours, naive)]
    torch.testing.assert_close(*gradients, rtol=1e-3, atol=1e-5)
    assert gradients[0].flatten(1).norm(dim=1).min() > 0


def test_a_clip_depends_on_no_other_clip_and_on_no_padding():
    method = vpt()
    video, frame_mask, _ = tiny_batch(batch=3)
    with torch.no_grad():
        together = method.encode_video(video, frame_mask)
        alone = method.encode_video(video[1:2, frame_mask[1]], frame_mask[1:2, frame_mask[1]])
        torch.testing.assert_close(alone[0], together[1], rtol=1e-5, atol=1e-5)
        turned = method.encode_video(video.flip(0), frame_mask.flip(0)).flip(0)
        torch.testing.assert_close(turned, together, rtol=1e-5, atol=1e-5)


def test_the_order_of_frames_has_no_effect():
    method = vpt()
    video, _, _ = tiny_batch()
    mask = torch.ones(video.shape[:2], dtype=torch.bool)
    with torch.no_grad():
        torch.testing.assert_close(method.encode_video(video.flip(1), mask), method.encode_video(video, mask))


def test_only_prompts_are_trained_and_none_decays():
    method = vpt(prompt_length=3, text_prompt_length=2)
    assert {name: tuple(parameter.shape) for name, parameter in method.trainable_parameters()} == {
        "prompts": (TINY.vision_layers, 3, TINY.vision_width),
        "text_prompts": (TINY.text_layers, 2, TINY.text_width),
    }
    (group,) = method.parameter_groups(1e-2, 1e-3, 0.2)
    assert (group["name"], group["lr"], group["weight_decay"]) == ("new, no decay", 1e-2, 0.0)
    assert method.prompts.std().item() == pytest.approx(0.02, rel=0.3)


@pytest.mark.parametrize("options", [{}, {"prompt_length": 20, "text_prompt_length": 0}])
def test_the_size_is_the_one_in_stops_table(options):
    """12 prompts in both towers, or 20 for images alone: 0.18 M."""
    assert sum(trained_at_b32("vpt", **options).values()) == 184_320


def test_initial_values_of_the_release():
    prompts = vpt(prompt_init="uniform").prompts  # the bound follows from 8x8 patches and width 32
    assert prompts.abs().max().item() == pytest.approx(math.sqrt(6 / (3 * 64 + 32)), rel=0.02)
    assert prompts.std().item() == pytest.approx(math.sqrt(6 / (3 * 64 + 32) / 3), rel=0.1)


def test_an_option_of_later_versions_counts_only_where_it_is_used():
    options = {"prompt_length": 460, "text_prompt_length": 4}
    assert without_newer("vpt", {**options, "prompt_init": "normal"}) == options
    assert without_newer("vpt", {**options, "prompt_init": "uniform"}) == {**options, "prompt_init": "uniform"}


def test_text_prompts_affect_texts_only():
    with_prompts, without = vpt(text_prompt_length=2), vpt(text_prompt_length=0)
    with torch.no_grad():
        with_prompts.prompts.copy_(without.prompts)
    video, frame_mask, token_ids = tiny_batch()
    assert torch.equal(with_prompts.encode_video(video, frame_mask), without.encode_video(video, frame_mask))
    assert not torch.allclose(with_prompts.encode_text(token_ids), without.encode_text(token_ids))
    assert torch.equal(without.encode_text(token_ids), without.clip.text(token_ids))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prompt_length": 0}, "--prompt_length 0 is out of range: it takes a number at least 1"),
        ({"prompt_length": math.nan}, "--prompt_length nan is out of range: it takes a number at least 1"),
        ({"prompt_length": "many"}, "--prompt_length 'many' is not a number"),
        ({"text_prompt_length": -1}, "--text_prompt_length -1 is out of range: it takes a number at least 0"),
        ({"prompt_width": 3}, "method vpt has no option 'prompt_width'; its options are: prompt_length, text_prompt_"),
    ],
)
def test_bad_options_are_one_sentence(options, message):
    with pytest.raises(ValueError, match=r"^(--|method vpt)") as caught:
        vpt(**options)
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize("size", ["small", pytest.param("b32", marks=pytest.mark.slow)])
def test_equals_the_original(reference, size):
    oracle = load_oracle(reference, f"vpt_{size}")
    method = method_of(oracle, "vpt", prompt_length=oracle.setting["prompts"], text_prompt_length=0)
    assert isinstance(method, VPT)
    text, clips = method(oracle.video, torch.ones(oracle.video.shape[:2]), oracle.token_ids)
    similarity = method.similarity(text, clips)
    visual = method.clip.visual
    classes = run_blocks(visual.blocks, visual.embed(oracle.video[0]), method.prompts)
    expected = oracle.outputs
    assert largest_relative_difference(F.normalize(text, dim=-1), expected["text_output"]) < 1e-5
    assert largest_relative_difference(F.normalize(clips, dim=-1), expected["video_output"]) < 1e-5
    assert largest_relative_difference(visual.ln_post(classes[0]), expected["tokens_after_ln_post"][:1]) < 1e-5
    assert largest_relative_difference(similarity, expected["similarity"]) < 1e-5
    loss = symmetric_info_nce(similarity)
    assert loss.item() == pytest.approx(oracle.setting["loss"], rel=1e-5)
    loss.backward()
    gradients = oracle.setting["gradients_norm_sum_first4"]
    check_gradient(method.prompts.grad[:1], gradients["prompt_embeddings"])
    check_gradient(method.prompts.grad[1:], gradients["deep_prompt_embeddings"])


def released_state(method: VPT) -> dict[str, Tensor]:
    state = {method.released_name(name): tensor.clone() for name, tensor in method.state_dict().items()}
    prompts = state.pop("prompts")
    return state | {"prompt_embeddings": prompts[:1], "deep_prompt_embeddings": prompts[1:]}


def test_released_weights_that_do_not_fit_are_named():
    state = released_state(vpt(prompt_length=3, text_prompt_length=0))
    with pytest.raises(ValueError, match=r"1 key missing \(text_prompts\)"):
        load_released_state_dict(vpt(prompt_length=3), state)
    with pytest.raises(ValueError, match=r"1 key of another shape \(prompts is \[2, 3, 32\] instead of \[2, 4, 32\]\)"):
        load_released_state_dict(vpt(prompt_length=4, text_prompt_length=0), state)
    del state["deep_prompt_embeddings"]
    with pytest.raises(ValueError, match=r"1 key missing \(prompts\); 1 key unknown \(prompt_embeddings\)"):
        load_released_state_dict(vpt(prompt_length=3, text_prompt_length=0), state)
