"""Efficient Prompt against its released code, and what the release does not say."""

import math

import pytest
import torch
import torch.nn.functional as F

from modules.methods import build_method
from modules.methods.efficient_prompt import EfficientPrompt
from tests.modules.methods.peer_oracles import check_gradient, method_of, trained_at_b32
from tests.reference_numbers import largest_relative_difference, load_oracle, token_ids_of
from tests.tiny import tiny_batch, tiny_clip


def efficient_prompt(**options) -> EfficientPrompt:
    options = {"max_frames": 4, "prefix": 2, "postfix": 3, **options}
    method = build_method("efficient_prompt", tiny_clip(), **options)
    assert isinstance(method, EfficientPrompt)
    return method.eval()


@pytest.mark.parametrize("size", ["small", pytest.param("b32", marks=pytest.mark.slow)])
def test_equals_the_original(reference, size):
    oracle = load_oracle(reference, f"efficient_prompt_{size}")
    setting, expected = oracle.setting, oracle.outputs
    method = method_of(oracle, "efficient_prompt", tfm_heads=setting["heads"], max_frames=setting["frames"])
    assert isinstance(method, EfficientPrompt)
    token_ids = token_ids_of(reference, setting["seed"], "text", setting["texts"], setting["words"])
    tokens, ends = method.prompted(token_ids)
    assert (ends.numpy() == expected["read_out_position"]).all()
    assert largest_relative_difference(tokens[0], expected["prompted_embedding_first_text"][: tokens.shape[1]]) == 0
    text, clips = method(oracle.video, torch.ones(oracle.video.shape[:2]), token_ids)
    assert largest_relative_difference(text, expected["text_output"]) < 1e-5
    assert largest_relative_difference(clips, expected["video_output"]) < 1e-5
    scores = method.similarity(text, clips).T
    assert largest_relative_difference(scores, expected["similarity"]) < 1e-5
    loss = F.cross_entropy(scores, torch.arange(len(scores)))  # from clips to texts alone
    assert loss.item() == pytest.approx(setting["loss"], rel=1e-5)
    loss.backward()
    for name, parameter in method.trainable_parameters():
        check_gradient(parameter.grad, setting["gradients_norm_sum_first4"][method.released_name(name)])


def test_padding_has_no_part():
    method = efficient_prompt()
    video, frame_mask, _ = tiny_batch()
    row = int(frame_mask.sum(dim=1).argmin())
    real = int(frame_mask[row].sum())
    with torch.no_grad():
        x = method.clip.visual(video[row, :real]) + method.frame_table[:real]
        for block in method.temporal:
            x = block(x.unsqueeze(0))[0]
        torch.testing.assert_close(method.encode_video(video, frame_mask)[row], x.mean(dim=0), rtol=1e-5, atol=1e-5)


def test_the_dead_rows_of_the_table_get_no_gradient():
    method = efficient_prompt()
    token_ids = torch.full((1, 11), 500)  # as many words as there is room for
    token_ids[0, 0], token_ids[0, -1] = 49406, 49407
    end = token_ids[:, -1:]
    out = method.encode_text(token_ids).sum() + sum(
        method.encode_text(torch.cat([token_ids[:, :n], end], dim=1)).sum() for n in range(1, 11)
    )
    out.backward()
    still = (method.text_table.grad.abs().sum(dim=1) == 0).nonzero().flatten().tolist()
    assert still == [0, 15]
    (part,) = (part for part in method.dead_parameters() if part.name == "text_table")
    assert part.share == 2 / 16


def test_the_temperature_is_constant():
    method = efficient_prompt()
    assert method.clip.logit_scale.item() == pytest.approx(math.log(1 / 0.07))
    assert not method.clip.logit_scale.requires_grad


def test_the_size_is_the_papers():
    assert sum(trained_at_b32("efficient_prompt").values()) == 6_350_336  # 6.35 M
    method = efficient_prompt()
    assert method.text_table.std().item() == pytest.approx(0.01, rel=0.2)
    assert method.temporal[0].attn.out_proj.bias.abs().max() == 0


def test_what_does_not_fit_is_one_sentence():
    video, frame_mask, token_ids = tiny_batch(frames=3, words=12)
    method = efficient_prompt()
    with pytest.raises(
        ValueError, match="reads at most 16 tokens, not 12 words and 5 prompts: lower --max_words, --pre"
    ):
        method.encode_text(token_ids)
    with pytest.raises(ValueError, match="the clip has 3 frames, and this model was made for max_frames=4"):
        method.encode_video(video, frame_mask)
    with pytest.raises(ValueError, match="--tfm_heads 5 does not divide the 24 numbers of this CLIP's embeddings"):
        efficient_prompt(tfm_heads=5)
