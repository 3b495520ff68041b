"""VoP against its released inference code, and against tokens that are joined, run and dropped caption by caption."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from modules.losses import symmetric_info_nce
from modules.methods import build_method
from modules.methods.vop import VoP
from tests.modules.methods.peer_oracles import check_gradient, method_of, trained_at_b32
from tests.reference_numbers import largest_relative_difference, load_oracle
from tests.tiny import tiny_batch, tiny_clip


def vop(**options) -> VoP:
    method = build_method("vop", tiny_clip(), **options)
    assert isinstance(method, VoP)
    return method.eval()


@pytest.mark.parametrize("size", ["small", pytest.param("b32", marks=pytest.mark.slow)])
def test_equals_the_original(reference, size):
    oracle = load_oracle(reference, f"vop_{size}")
    method = method_of(oracle, "vop", text_postfix="released")
    token_ids = torch.tensor(oracle.setting["text_ids"])
    text, clips = method(oracle.video, torch.ones(oracle.video.shape[:2]), token_ids)
    similarity, expected = method.similarity(text, clips), oracle.outputs
    assert largest_relative_difference(F.normalize(text, dim=-1), expected["text_output"]) < 1e-5
    assert largest_relative_difference(clips, expected["video_output"]) < 1e-5
    assert largest_relative_difference(similarity / 100, expected["similarity"]) < 1e-5
    loss = symmetric_info_nce(similarity)
    assert loss.item() == pytest.approx(oracle.setting["loss"], rel=1e-5)
    loss.backward()
    for name, expected in oracle.setting["gradients_norm_sum_first4"].items():
        (ours,) = (p for own, p in method.trainable_parameters() if method.released_name(own) == name)
        check_gradient(ours.grad, expected)
    with torch.no_grad():  # the second caption is of full length, and both read it alike
        method.text_postfix = "before_end"
        right = method.encode_text(token_ids[:2])
    torch.testing.assert_close(right[1], text[1].detach(), rtol=1e-5, atol=1e-5)
    assert F.cosine_similarity(right[0], text[0], dim=0) < 0.99


def naive_text(method: VoP, ids: list[int]) -> Tensor:
    """[START ; half of the prompts ; words ; the other half ; END] of one caption without padding."""
    text, half = method.clip.text, method.text_prompts.shape[1] // 2
    words = text.token_embedding(torch.tensor(ids))
    positions = text.positional_embedding
    for layer, (block, prompts) in enumerate(zip(text.blocks, method.text_prompts, strict=True)):
        x = torch.cat([words[:1], prompts[:half], words[1:-1], prompts[half:], words[-1:]])
        if layer == 0:
            x = x + positions[: len(x)]
        x = block(x.unsqueeze(0), causal=True)[0]
        words = torch.cat([x[:1], x[1 + half : -1 - len(prompts) + half], x[-1:]])
    return text.pool(words[-1:])[0]


@pytest.mark.parametrize("length", [2, 5])
def test_texts_and_gradients_equal_the_loop(length):
    method = vop(text_prompt_length=length)
    with torch.no_grad():
        method.text_prompts.normal_()
    captions = [[49406, 400, 500, 600, 49407], [49406, 700, 49407], [49406, 49407]]
    token_ids = torch.zeros(3, 8, dtype=torch.int64)
    for row, ids in zip(token_ids, captions, strict=True):
        row[: len(ids)] = torch.tensor(ids)
    ours, naive = method.encode_text(token_ids), torch.stack([naive_text(method, ids) for ids in captions])
    torch.testing.assert_close(ours, naive, rtol=1e-4, atol=1e-5)
    weight = torch.randn_like(ours)
    gradients = [torch.autograd.grad((out * weight).sum(), method.text_prompts)[0] for out in (ours, naive)]
    torch.testing.assert_close(*gradients, rtol=1e-3, atol=1e-4)
    with torch.no_grad():
        torch.testing.assert_close(method.encode_text(token_ids[:, :6]), ours.detach(), rtol=1e-5, atol=1e-5)


def test_prompts_of_the_first_block_join_before_ln_pre():
    method = vop(prompt_length=3)
    visual = method.clip.visual
    video, frame_mask, _ = tiny_batch(batch=1, frames=2)
    with torch.no_grad():
        method.visual_prompts.normal_()
        ours = method.encode_video(video, frame_mask)
        raw = visual.conv1(video[0]).flatten(2).transpose(1, 2)
        raw = torch.cat([visual.class_embedding.expand(2, 1, -1), raw], dim=1) + visual.positional_embedding
        x = visual.ln_pre(torch.cat([raw[:, :1], method.visual_prompts[:1].expand(2, -1, -1), raw[:, 1:]], dim=1))
        x = visual.blocks[0](x)
        x = visual.blocks[1](torch.cat([x[:, :1], method.visual_prompts[1:].expand(2, -1, -1), x[:, 4:]], dim=1))
        expected = F.normalize(visual.pool(x), dim=-1).mean(dim=0, keepdim=True)
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-5)


def test_the_length_of_a_clips_vector_counts():
    method = vop()
    text, clips = torch.randn(2, 24), torch.randn(3, 24)
    torch.testing.assert_close(method.similarity(text, 2 * clips), 2 * method.similarity(3 * text, clips))


def test_the_size_is_the_papers():
    assert trained_at_b32("vop") == {"visual_prompts": 73_728, "text_prompts": 49_152}  # 122,880: 0.1 M
    assert vop().visual_prompts.std().item() == pytest.approx(0.02, rel=0.2)


def test_too_many_words_are_one_sentence():
    _, _, token_ids = tiny_batch(words=9)
    with pytest.raises(
        ValueError, match="reads at most 16 tokens, not 9 words and 8 prompts: lower --max_words or --te"
    ):
        vop().encode_text(token_ids)
    assert vop(text_prompt_length=7).encode_text(token_ids).isfinite().all()
