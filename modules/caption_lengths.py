"""Counting the captions that a tokenizer cuts, and those that become equal to another one by the cut."""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

from modules.tokenizer import Tokenizer


@dataclass(frozen=True)
class CutCaptions:
    """Counts: `cut` of `captions` captions have more tokens than `max_words`, START and END included, and lose words.

    `longest` is the number of tokens of the longest caption, the least --max_words that cuts none. `confused` captions
    are equal to another one after the cut, and differed from it before.
    """

    captions: int
    cut: int
    longest: int
    confused: int
    max_words: int

    def __str__(self) -> str:
        same = f"; {self.confused:,} captions read like another one after the cut" if self.confused else ""
        return (
            f"{self.cut:,} of {self.captions:,} captions lose words at --max_words {self.max_words} (the longest has "
            f"{self.longest:,}){same}"
        )


def count_cut(captions: Iterable[str], tokenizer: Tokenizer, max_words: int) -> CutCaptions:
    """Count what a tokenizer cuts at `max_words`."""
    kept = max_words - tokenizer.ends
    n_captions = n_cut = longest = 0
    rows: defaultdict[tuple[int, ...], dict[tuple[int, ...], int]] = defaultdict(dict)  # cut -> whole -> how often
    for ids in tokenizer.words_of_all(captions):
        n_captions += 1
        n_cut += len(ids) > kept
        longest = max(longest, len(ids))
        if len(ids) >= kept:  # a shorter one cannot equal a cut one
            whole = tuple(ids)
            rows[whole[:kept]][whole] = rows[whole[:kept]].get(whole, 0) + 1
    confused = sum(sum(times.values()) for times in rows.values() if len(times) > 1)
    return CutCaptions(n_captions, n_cut, longest + tokenizer.ends, confused, max_words)
