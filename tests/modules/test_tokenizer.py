"""The tokenizer against open_clip's own, and what it promises about END."""

import pickle

import open_clip
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from modules.tokenizer import END_TOKEN, START_TOKEN, Tokenizer, _open_clips

CAPTIONS = [
    "a man is driving a car",
    "A   Cat's toy, 24 of them!! \n on the\ttable",
    "caf\u00e9 &amp;amp; bar \u2014 \U0001f600 na\u00efve \u6c34",
    "",
    "supercalifragilisticexpialidocious " * 40,
]


@pytest.mark.parametrize("max_words", [3, 12, 32, 77])
def test_gives_the_ids_of_open_clip(max_words: int) -> None:
    token_ids = Tokenizer(max_words)(CAPTIONS)
    assert token_ids.dtype == torch.int64
    assert torch.equal(token_ids, open_clip.tokenize(CAPTIONS, context_length=max_words))


def test_known_ids() -> None:
    assert Tokenizer(7)("a photo of a cat").tolist() == [[START_TOKEN, 320, 1125, 539, 320, 2368, END_TOKEN]]


def test_a_long_caption_keeps_its_first_words_and_end() -> None:
    whole, cut = Tokenizer(20)("a photo of a cat")[0], Tokenizer(5)("a photo of a cat")[0]
    assert cut.tolist() == [*whole[:4].tolist(), END_TOKEN]


def test_a_short_caption_is_followed_by_zeros() -> None:
    row = Tokenizer(10)("cat")[0].tolist()
    assert row == [START_TOKEN, 2368, END_TOKEN] + [0] * 7


def test_no_captions_give_no_rows() -> None:
    assert Tokenizer(8)([]).shape == (0, 8)


@pytest.mark.parametrize("marker", ["<|endoftext|>", "<|startoftext|>", "<end_of_text>", "<START_OF_TEXT>"])
def test_a_control_token_spelled_out_ends_nothing(marker: str) -> None:
    row = Tokenizer(32)(f"a cat {marker} runs")[0].tolist()
    assert row.count(START_TOKEN) == row.count(END_TOKEN) == 1
    runs = Tokenizer(32)("runs")[0, 1].item()
    assert row.index(END_TOKEN) == row.index(runs) + 1


@settings(max_examples=60)
@given(text=st.text(max_size=60), max_words=st.integers(3, 77))
def test_any_text_gives_one_start_then_words_then_one_end(text: str, max_words: int) -> None:
    row = Tokenizer(max_words)(text)[0]
    end = int(row.argmax())
    assert row[0] == START_TOKEN
    assert row[end] == END_TOKEN
    assert bool((row[1:end] < START_TOKEN).all())
    assert not row[end + 1 :].any()


@pytest.mark.parametrize("max_words", [-1, 2, 78])
def test_impossible_lengths_are_refused(max_words: int) -> None:
    with pytest.raises(ValueError, match=rf"--max_words must be in 3\.\.77 .* not {max_words}\."):
        Tokenizer(max_words)


def test_travels_to_data_workers() -> None:
    tokenizer = pickle.loads(pickle.dumps(Tokenizer(16)))
    assert torch.equal(tokenizer(CAPTIONS), Tokenizer(16)(CAPTIONS))


def test_a_missing_open_clip_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("modules.tokenizer.find_spec", lambda name: None)
    _open_clips.cache_clear()
    with pytest.raises(ModuleNotFoundError, match=r"open_clip.*pip install open_clip_torch"):
        Tokenizer()


def test_the_tokens_of_stan_s_release(reference):
    """Check that only the cut differs: the release slices a row of 77 tokens, and so loses END; ours keeps it."""
    rows = torch.load(reference / "oracles/stan.pt", weights_only=True)["tokens"]
    longer = 0
    for caption, theirs in rows.items():
        assert Tokenizer(77)(caption)[0].tolist() == theirs.tolist()
        ours, sliced = Tokenizer(32)(caption)[0].tolist(), theirs[:32].tolist()
        if END_TOKEN not in sliced:
            longer += 1
            assert (ours[-1], sliced[-1] < START_TOKEN) == (END_TOKEN, True)
            sliced[-1] = END_TOKEN
        assert ours == sliced
    assert longer == 1
