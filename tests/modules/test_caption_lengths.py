"""The count of captions that lose words, against tokenizing all of them."""

from collections import Counter

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from modules.caption_lengths import count_cut
from modules.tokenizer import Tokenizer

TOKENIZER = Tokenizer(6)

# Words that CLIP's cleaning changes alone and together, and long ones, which are several tokens.
chunk = st.sampled_from(["a", "dog's", "it's", "&", "&amp;", "&nbsp;", "x&lt", "3", "42nd", "--", "unbelievablylong"])
caption = st.lists(chunk | st.text(max_size=4), max_size=9).map(" ".join)


def naive(captions: list[str], max_words: int) -> tuple[int, int, int]:
    """Return (cut, longest, confused) by the definition."""
    whole = [tuple(TOKENIZER.words(text)) for text in captions]
    kept = max_words - 2
    after = Counter(row[:kept] for row in set(whole))
    confused = sum(after[row[:kept]] > 1 for row in whole)
    return sum(len(row) > kept for row in whole), max(map(len, whole), default=0) + 2, confused


@settings(max_examples=300)
@given(st.lists(caption, max_size=6), st.integers(3, 8))
@example(["a dog runs far", "a dog runs away", "a dog runs", "A  dog\truns"], 5)
@example(["caf\u00e9 au lait", "cafÃ© au lait", "&eacute; &quot;x", "a\x1b[31mb c"], 4)
def test_counts_equal_those_of_tokenizing_every_caption(captions, max_words):
    found = count_cut(captions, TOKENIZER, max_words)
    assert (found.cut, found.longest, found.confused) == naive(captions, max_words)
    assert (found.captions, found.max_words) == (len(captions), max_words)


def test_no_word_is_lost_at_the_length_of_the_longest():
    captions = ["a dog", "a small dog runs after a ball on the grass"]
    longest = count_cut(captions, TOKENIZER, 5).longest
    assert count_cut(captions, TOKENIZER, longest).cut == 0
    assert count_cut(captions, TOKENIZER, longest - 1).cut == 1


def test_equal_captions_are_not_confused_by_the_cut():
    assert count_cut(["a dog runs far away"] * 3, TOKENIZER, 5).confused == 0


@pytest.mark.parametrize(
    ("max_words", "line"),
    [
        (5, "2 of 3 captions lose words at --max_words 5 (the longest has 6); 3 captions read like another one "),
        (6, "0 of 3 captions lose words at --max_words 6 (the longest has 6)"),
    ],
)
def test_the_line_of_the_log(max_words, line):
    captions = ["a dog runs far", "a dog runs away", "a dog runs"]
    assert str(count_cut(captions, TOKENIZER, max_words)).startswith(line)


def test_each_word_is_tokenized_once(monkeypatch):
    seen = []
    words = TOKENIZER.words
    monkeypatch.setattr(TOKENIZER, "words", lambda text: seen.append(text) or words(text))
    count_cut(["a dog runs", "a dog", "dog a runs"], TOKENIZER, 32)
    assert sorted(seen) == ["a", "dog", "runs"]
