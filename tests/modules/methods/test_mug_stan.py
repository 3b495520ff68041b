"""Mug-STAN: the original's whole model, its rows, options and released files."""

import pytest
import torch

from modules.frame_rows import FrameRows
from modules.losses import symmetric_info_nce
from modules.methods import METHODS, build_method, method_options
from modules.methods.mug_stan import MugSTAN
from modules.released_weights import load_released_state_dict
from modules.stan.mug import WordRows
from modules.tokenizer import END_TOKEN, START_TOKEN, Tokenizer
from tests.modules.stan.original import numbers, stan_of
from tests.tiny import tiny_batch, tiny_clip

MODES = ("simple", "full", "frame_text", "wti")


def mug_stan(**options) -> MugSTAN:
    method = build_method("mug_stan", tiny_clip(), **options)
    assert isinstance(method, MugSTAN)
    return method


def test_the_original_s_whole_model(reference):
    """The loss, which adds both directions there, the norm of its gradient, and the gradients that are stored.

    One of its captions has lost END, so the words are those that are not 0, as in the original.
    """
    expected, of_stan = numbers(reference)["whole_mugstan"], stan_of(reference, "whole_stan", stan_layers=4)
    method = MugSTAN(of_stan.clip, stan_layers=4, mug_padding="released").eval()
    method.load_state_dict(of_stan.state_dict())
    text, clips = method(expected["imgs"], torch.ones(expected["imgs"].shape[:2]), expected["text"].long())
    scores = method.similarity(text._replace(word_mask=expected["text"] != 0), clips)
    loss = 2 * symmetric_info_nce(scores)
    assert loss.item() == pytest.approx(expected["loss"].item(), rel=1e-5)
    loss.backward()
    found = {method.released_name(name): p.grad for name, p in method.named_parameters() if p.grad is not None}
    norm = torch.stack([gradient.norm() for gradient in found.values()]).norm()
    assert norm.item() == pytest.approx(expected["grad_norm"], rel=1e-4)
    theirs = method.released_tensors(expected["grads"])
    assert len(theirs) >= 10
    for key, gradient in theirs.items():
        assert (found[key] - gradient).abs().max() <= 1e-4 * gradient.abs().max(), key


@torch.no_grad()
def test_the_original_s_tokens(reference):
    """Of all words. Where END is missing, the largest id takes its place."""
    expected, of_stan = numbers(reference)["tiny_text"], stan_of(reference, "tiny_depth4", stan_layers=4)
    method = MugSTAN(of_stan.clip, stan_layers=4, mug_padding="released").eval()
    rows = method.encode_text(expected["ids"].long())
    torch.testing.assert_close(rows.words, expected["tokens"], atol=1e-5, rtol=1e-5)
    ends = rows.word_mask.sum(dim=1) - 1
    assert torch.equal(ends, expected["ids"].argmax(dim=1))
    torch.testing.assert_close(rows.words[torch.arange(len(ends)), ends], expected["cls"], atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_rows_are_stan_s_frames_and_words_until_end():
    method, (video, frame_mask, token_ids) = mug_stan().eval(), tiny_batch()
    text, clips = method(video, frame_mask, token_ids)
    assert isinstance(text, WordRows)
    assert isinstance(clips, FrameRows)
    assert torch.equal(clips.frames[frame_mask], method.encode_frames(video, frame_mask)[frame_mask])
    assert not clips.frames[~frame_mask].any()
    assert text.word_mask.sum(dim=1).tolist() == [7, 7, 7]
    assert not text.words[:, 7].any()
    torch.testing.assert_close(text.words[:, 6], method.clip.text(token_ids))


@pytest.mark.parametrize("mug", MODES)
@torch.no_grad()
def test_a_long_caption_keeps_end_and_zeros_more_change_nothing(mug):
    method = mug_stan(mug=mug).eval()
    captions = ["a dog runs after a red ball in a green garden", "a ! dog"]
    short, long = (Tokenizer(words)(captions) for words in (6, 16))
    assert short[0, 0] == START_TOKEN
    assert short[0, 5] == END_TOKEN
    assert 0 not in short[1, :5]
    text = method.encode_text(short)
    assert text.word_mask.all(dim=1).tolist() == [True, mug == "frame_text" or bool(short[1, 5])]
    torch.testing.assert_close(text.words[0, -1], method.clip.text(short)[0])
    clips = method.encode_video(*tiny_batch()[:2])
    scores = [method.similarity(method.encode_text(ids), clips) for ids in (short, long)]
    torch.testing.assert_close(scores[0][1], scores[1][1], atol=1e-4, rtol=1e-5)
    assert (scores[0][0] - scores[1][0]).abs().max() > 1e-3  # which lost five of its words


@torch.no_grad()
def test_word_zero_in_a_caption_is_a_word():
    """Token 0 is the byte "!", not padding alone."""
    method = mug_stan().eval()
    token_ids = torch.tensor([[START_TOKEN, 320, 0, 1929, END_TOKEN, 0]])
    assert method.encode_text(token_ids).word_mask.tolist() == [[True] * 5 + [False]]


@torch.no_grad()
def test_the_temperature_is_that_of_stan_and_gamma_another():
    text, clips = mug_stan().eval()(*tiny_batch())
    sharp, soft = mug_stan(tau=0.01).similarity(text, clips), mug_stan(tau=0.05).similarity(text, clips)
    torch.testing.assert_close(sharp, 5 * soft)
    assert (sharp.abs() <= 100.001).all()
    assert (mug_stan(gamma=1.0).similarity(text, clips) - sharp).abs().max() > 0.1


@torch.no_grad()
def test_the_switch_reaches_the_scores():
    video, frame_mask, token_ids = tiny_batch()
    token_ids[:, 4] = END_TOKEN  # three words of padding
    scores = {}
    for padding in ("masked", "released"):
        method = mug_stan(mug="full", mug_padding=padding).eval()
        text, clips = method(video, frame_mask, token_ids)
        assert bool(text.words[:, 5:].any()) == (padding == "released")
        scores[padding] = method.similarity(text, clips)
    assert (scores["masked"] - scores["released"]).abs().max() > 1e-3


def test_its_options_are_those_of_stan_and_three_more():
    own, of_stan = ([option.name for option in method_options(METHODS[name])] for name in ("mug_stan", "stan"))
    assert own == [*of_stan, "mug", "gamma", "mug_padding"]
    with pytest.raises(ValueError, match="--gamma 0 is out of range"):
        mug_stan(gamma=0)
    with pytest.raises(ValueError, match="--stan_layers 3 is out of range"):
        mug_stan(stan_layers=3)


def test_the_biases_of_wti_alone_are_dead_besides_stan_s():
    method = mug_stan(mug="wti").train()
    text, clips = method(*tiny_batch())
    symmetric_info_nce(method.similarity(text, clips)).backward()
    dead = {part.name for part in method.dead_parameters()} - {p.name for p in mug_stan().dead_parameters()}
    assert dead == {"wti.text_weight_fc.bias", "wti.video_weight_fc.bias"}
    for name, parameter in method.wti.named_parameters():
        assert bool(parameter.grad.abs().max() < 1e-6) == (f"wti.{name}" in dead), name
    assert not mug_stan(mug="frame_text").dead_parameters()[0].name.startswith("wti.")


@pytest.mark.parametrize("prefix", ["", "head.", "module.head.sim."])
def test_released_files_load_with_the_layers_of_wti(prefix):
    source, target = mug_stan(mug="wti"), mug_stan(mug="wti")
    with torch.no_grad():
        for parameter in source.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    released = {}
    for name, tensor in source.state_dict().items():
        if (key := source.released_name(name)) is not None:
            released[(prefix if name.startswith("wti.") else "") + key] = tensor
    for key in [key for key in released if "{q,k,v}" in key]:
        for letter, part in zip("qkv", released.pop(key).chunk(3), strict=True):
            released[key.replace("{q,k,v}", letter)] = part
    released = {key: tensor.T if key.endswith("_projection.weight") else tensor for key, tensor in released.items()}
    load_released_state_dict(target, released)
    for name, tensor in source.state_dict().items():
        assert torch.equal(target.state_dict()[name], tensor) or name == "clip.logit_scale", name
    with pytest.raises(
        ValueError, match=r"4 keys unknown \(text_weight_fc.weight.* --method mug_stan --mug wti --stan_layers 1"
    ):
        load_released_state_dict(mug_stan(), released)
