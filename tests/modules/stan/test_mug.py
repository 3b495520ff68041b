"""Mug against the original modules' numbers, against four loops, and its properties."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from modules.frame_rows import FrameRows
from modules.losses import symmetric_info_nce
from modules.stan import mug as mug_file
from modules.stan.mug import (
    Tokens,
    WeightedInteraction,
    WordRows,
    end_words,
    mug_similarity,
    prepare_tokens,
    words_until_end,
)
from tests.modules.stan.original import numbers

MODES = ("simple", "full", "frame_text", "wti")
ORIGINAL = {"simple": "mug_frame_token_simple", "full": "mug_frame_token", "frame_text": "mug_frame_text",
            "wti": "drl_wti"}  # fmt: skip


def score(mode, text, video, gamma=100.0, padding="masked", wti=None, at_once=None):
    """Return the scores of rows, prepared as the method does."""
    text = end_words(text) if mode == "frame_text" else text
    prepare = wti if mode == "wti" else lambda rows: prepare_tokens(rows, padding)
    return mug_similarity(prepare(text), prepare(video), mode, gamma, padding, at_once)


def some_rows(captions, clips, words, frames, width=6, seed=0):
    """Return rows of captions and clips of different lengths; the first ones have no padding."""
    generator = torch.Generator().manual_seed(seed)
    ends = torch.randint(0, words, (captions,), generator=generator)
    lengths = torch.randint(1, frames + 1, (clips,), generator=generator)
    ends[0], lengths[0] = words - 1, frames
    text = torch.randn(captions, words, width, generator=generator)
    video = torch.randn(clips, frames, width, generator=generator)
    real = words_until_end(lengths - 1, frames)
    return WordRows(text, words_until_end(ends, words)), FrameRows.without_padding(video, real)


def some_weights(width=6):
    torch.manual_seed(3)
    return WeightedInteraction(width)


def loops(mode, text, video, gamma, wti):
    """Return the scores from their definition, pair by pair and in fp64, features aggregated as in the paper."""
    scores = torch.empty(len(text.words), len(video.frames), dtype=torch.float64)

    def softmax(values):
        powers = [math.exp(gamma * (value - max(values))) for value in values]
        return [power / sum(powers) for power in powers]

    def dot(x, y):
        return sum(a * b for a, b in zip(x, y, strict=True))

    def combined(shares, vectors):
        return [dot(shares, column) for column in zip(*vectors, strict=True)]

    def unit(x):
        return [value / max(math.sqrt(dot(x, x)), 1e-6) for value in x]

    for a in range(len(scores)):
        for b in range(scores.shape[1]):
            words, frames = text.words[a][text.word_mask[a]].tolist(), video.frames[b][video.frame_mask[b]].tolist()
            e, u = [unit(x) for x in words], [unit(x) for x in frames]
            e = e[-1:] if mode == "frame_text" else e
            s = [[dot(word, frame) for frame in u] for word in e]
            if mode == "wti":
                weights = [
                    torch.tensor([dot(layer.weight[0].tolist(), x) for x in tokens]).softmax(0).tolist()
                    for layer, tokens in ((wti.text_weight_fc, words), (wti.video_weight_fc, frames))
                ]
                best = [max(row) for row in s], [max(column) for column in zip(*s, strict=True)]
                scores[a, b] = (dot(weights[0], best[0]) + dot(weights[1], best[1])) / 2
                continue
            told = [combined(softmax(row), u) for row in s]  # f
            shown = [combined(softmax(column), e) for column in zip(*s, strict=True)]  # g
            p, q = [dot(f, word) for f, word in zip(told, e, strict=True)], list(map(dot, shown, u))
            if mode == "full":
                scores[a, b] = dot(combined(softmax(p), e), combined(softmax(q), u))
            else:
                scores[a, b] = (dot(softmax(p), p) + dot(softmax(q), q)) / 2
    return scores.float()


@pytest.mark.parametrize("gamma", [100, 20])
@pytest.mark.parametrize("mode", MODES)
def test_the_original_s_numbers(reference, mode, gamma):
    """Scores, loss and gradients. Its padding has an effect in full and wti, which only the switch brings back."""
    case = numbers(reference)["mug"]
    expected, mask = case["modes"][f"{ORIGINAL[mode]}@{gamma}"], case["mask"].bool()
    wti = WeightedInteraction(32)
    if mode == "wti":
        wti.load_state_dict(expected["params"])
    text, video = case["text"].clone().requires_grad_(), case["video"].clone().requires_grad_()
    rows = WordRows(text, mask), FrameRows(video, torch.ones(video.shape[:2], dtype=torch.bool))
    found = score(mode, *rows, gamma, "released", wti)
    torch.testing.assert_close(found, expected["sim"], atol=1e-6, rtol=1e-5)
    loss = 2 * symmetric_info_nce(100 * found)  # the original adds both directions
    assert loss.item() == pytest.approx(expected["loss"].item(), rel=1e-5)
    loss.backward()
    for ours, theirs in ((text.grad, expected["grad_text"]), (video.grad, expected["grad_video"])):
        assert (ours - theirs).abs().max() < 1e-5 * theirs.abs().max()
    other = torch.where(mask.unsqueeze(-1), text, 1.5 - text)
    moved = {
        padding: score(mode, WordRows(other, mask), rows[1], gamma, padding, wti) for padding in ("masked", "released")
    }
    assert torch.equal(moved["masked"], score(mode, *rows, gamma, "masked", wti))
    assert bool((moved["released"] - found).abs().max() > 1e-3) == (expected["padding_leak"] > 0) == (mode == "full")
    rectangle = score(mode, WordRows(text[:4], mask[:4]), rows[1], 100, "released", wti)
    torch.testing.assert_close(rectangle, case["modes"][f"{ORIGINAL[mode]}@rect"], atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("gamma", [100.0, 3.0])
@pytest.mark.parametrize("mode", MODES)
@torch.no_grad()
def test_four_loops(mode, gamma):
    text, video = some_rows(3, 2, 4, 3)
    wti = some_weights()
    found = score(mode, text, video, gamma, wti=wti)
    assert found.shape == (3, 2)
    torch.testing.assert_close(found, loops(mode, text, video, gamma, wti), atol=1e-5, rtol=1e-5)


@settings(max_examples=50)
@given(
    mode=st.sampled_from(MODES), words=st.integers(1, 5), frames=st.integers(1, 5), more=st.integers(0, 3),
    value=st.sampled_from([0.0, 1e-3, -7.0, 1e30, math.inf, math.nan]), seed=st.integers(0, 99),
)  # fmt: skip
def test_padding_never_changes_a_score(mode, words, frames, more, value, seed):
    """Whatever padding holds, and however much of it there is."""
    text, video = some_rows(3, 4, words, frames, seed=seed)
    wti = some_weights()
    with torch.no_grad():
        expected = score(mode, text, video, wti=wti)
        padded = []
        for tokens, mask in (text, video):
            filled = tokens.masked_fill(~mask.unsqueeze(-1), value)
            filled = torch.cat([filled, torch.full((len(mask), more, 6), value)], dim=1)
            padded.append((filled, torch.cat([mask, torch.zeros(len(mask), more, dtype=torch.bool)], dim=1)))
        found = score(mode, WordRows(*padded[0]), FrameRows(*padded[1]), wti=wti)
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-6)


@settings(max_examples=50)
@given(mode=st.sampled_from(MODES), frames=st.integers(1, 6), seed=st.integers(0, 99), clip=st.integers(0, 2))
@torch.no_grad()
def test_the_order_of_frames_changes_nothing(mode, frames, seed, clip):
    text, video = some_rows(3, 3, 4, frames, seed=seed)
    order = torch.randperm(frames, generator=torch.Generator().manual_seed(seed))
    found = score(mode, text, FrameRows(video.frames[:, order], video.frame_mask[:, order]), wti=some_weights())
    torch.testing.assert_close(found, score(mode, text, video, wti=some_weights()), atol=1e-6, rtol=1e-6)
    assert (found.abs() <= 1 + 1e-5).all()


def part(rows, start, end):
    return type(rows)(*(tensor[start:end] for tensor in rows))


@settings(max_examples=50)
@given(
    mode=st.sampled_from(MODES), words=st.integers(1, 9), frames=st.integers(1, 9), at_once=st.integers(200, 5000),
    start=st.integers(0, 5), captions=st.integers(1, 20), clips=st.integers(1, 20),
)  # fmt: skip
@torch.no_grad()
def test_a_score_does_not_depend_on_what_is_scored_with_it(mode, words, frames, at_once, start, captions, clips):
    """Not in one bit: a block has the scores that its pairs have in the whole."""
    text, video = some_rows(25, 26, words, frames, width=16)
    prepare = some_weights(16) if mode == "wti" else prepare_tokens
    prepared = prepare(end_words(text) if mode == "frame_text" else text), prepare(video)
    whole = mug_similarity(*prepared, mode, at_once=at_once)
    block = part(prepared[0], start, start + captions), part(prepared[1], start, start + clips)
    found = mug_similarity(*block, mode, at_once=at_once)
    assert torch.equal(found, whole[start : start + captions, start : start + clips])


@pytest.mark.parametrize("mode", MODES)
def test_the_gradient_in_blocks_is_that_of_the_whole(mode, monkeypatch):
    """Training computes a batch that is too large in blocks, and again in backward."""
    gradients, calls = [], []
    products = mug_file._products
    monkeypatch.setattr(mug_file, "_products", lambda *tokens: calls.append(len(tokens[0])) or products(*tokens))
    for at_once in (None, 60):
        text, video = some_rows(7, 9, 4, 3)
        wti = some_weights()
        leaves = text.words.requires_grad_(), video.frames.requires_grad_()
        found = score(mode, text, video, wti=wti, at_once=at_once)
        found.square().sum().backward()
        weights = wti.text_weight_fc.weight.grad if mode == "wti" else torch.zeros(1)
        gradients.append([found.detach(), *(leaf.grad for leaf in leaves), weights])
    for whole, blocks in zip(*gradients, strict=True):
        assert (blocks - whole).abs().max() <= 1e-5 * whole.abs().max()
    assert calls[0] == 7
    assert len(calls) > 5


def test_gradients_are_finite_where_softmax_is_sharp_and_tokens_are_zero():
    text, video = some_rows(3, 3, 4, 3)
    words, frames = text.words.clone().requires_grad_(), video.frames.clone().requires_grad_()
    for mode in MODES:
        silent = WordRows(words * torch.tensor([1.0, 0, 1])[:, None, None], text.word_mask)
        score(mode, silent, FrameRows(frames, video.frame_mask), 1e4, wti=some_weights()).sum().backward()
    assert words.grad.isfinite().all()
    assert frames.grad.isfinite().all()
    assert not frames.grad[~video.frame_mask].any()
    assert not words.grad[~text.word_mask].any()


@torch.no_grad()
def test_autocast_and_half_precision_rows_are_scored_in_fp32():
    text, video = some_rows(3, 3, 4, 3)
    expected = score("simple", text, video)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(score("simple", text, video), expected)
        wti = score("wti", text, video, wti=some_weights())
    assert torch.equal(wti, score("wti", text, video, wti=some_weights()))
    half = text._replace(words=text.words.bfloat16())
    assert score("simple", half, video).dtype == torch.float32


def test_tiles_fit_and_align():
    for words, frames, at_once in ((77, 64, 2**17), (32, 12, 2**17), (77, 63, 2**17), (1, 12, 2**17), (77, 64, 1)):
        captions, clips = mug_file._tile(words, frames, at_once)
        assert clips * frames % 64 == 0
        assert captions * clips * words * frames <= max(at_once, words * frames * 64)


@torch.no_grad()
def test_end_is_the_last_real_word():
    text, _ = some_rows(4, 1, 5, 1)
    ends = end_words(text)
    assert isinstance(ends, WordRows)
    assert ends.word_mask.all()
    for row in range(4):
        assert torch.equal(ends.words[row], text.words[row][text.word_mask[row]][-1:])
    assert isinstance(prepare_tokens(ends), Tokens)
