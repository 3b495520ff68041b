"""Captions to token ids: `tokenizer_of` gives the tokenizer that belongs to a backbone.

`Tokenizer` is CLIP's, the byte pairs that open_clip has; `modules.hub_tokenizer` reads all others from files. Both cut
a caption to a number of tokens. A row reads START, words, END, padding; a long caption loses words, never END.

Shapes: N captions, L tokens of a row: max_words, or the context length if the last token stands for the text.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import cache
from importlib.machinery import PathFinder
from importlib.util import find_spec, module_from_spec
from typing import Any

import torch
from torch import Tensor

from modules.backbones import CLIPS_BYTE_PAIRS, Backbone
from modules.clip import CLIP

START_TOKEN = 49406
END_TOKEN = 49407
LONGEST_TEXT = 77  # positions of OpenAI's text towers, START and END included


def find_tokenizer(clip: CLIP, name: str) -> None:
    """Find the files of the tokenizer that belongs to a CLIP; its backbone then names them by their content.

    CLIP's own tokenizer has none; others are looked up beside the weights and in the cache of the Hugging Face Hub, and
    last downloaded. What a checkpoint or an index notes of its CLIP has this content, so call it before those. Messages
    call the CLIP by `name`.

    Raises:
        FileNotFoundError: the files are not here and cannot be downloaded; says which to fetch and where to put them.
        ValueError: a CLIP whose vocabulary is not that of CLIP's own tokenizer states no other, or the files are not
            those that the weights state.
    """
    backbone = clip.backbone
    if backbone.tokens.encoding == CLIPS_BYTE_PAIRS:
        if backbone.architecture.vocab_size != END_TOKEN + 1:
            raise ValueError(
                f"{name}: its text tower has a vocabulary of {backbone.architecture.vocab_size:,} tokens and CLIP's "
                f"own tokenizer one of {END_TOKEN + 1:,}, and nothing here names another tokenizer; pass the folder of "
                "its release (open_clip's or Hugging Face's, with the tokenizer's files) instead of a file of weights"
            )
        return
    from modules.hub_tokenizer import checked_files

    _, sha256 = checked_files(backbone.tokens)
    clip.backbone = replace(backbone, tokens=replace(backbone.tokens, sha256=sha256))


def tokenizer_of(backbone: Backbone, max_words: int) -> "Tokenizer":
    """Return the tokenizer that belongs to a backbone; `max_words` counts START and END.

    Raises:
        ValueError: the backbone cannot read that many tokens, or its tokenizer cannot be used.
        FileNotFoundError: as `find_tokenizer`.
    """
    longest = backbone.architecture.context_length
    # The last token of a row stands for the text, in training one of `longest`: a shorter row would be read at a place
    # that never stood for a text. So `max_words` limits the words there, and padding follows up to the end.
    length = longest if backbone.architecture.text.end == "last" else max_words
    if backbone.tokens.encoding == CLIPS_BYTE_PAIRS:
        return Tokenizer(max_words, longest, length, backbone.tokens.cleaning)
    from modules.hub_tokenizer import HubTokenizer

    return HubTokenizer(backbone, max_words, length)


@cache
def _open_clips() -> Any:
    """Return open_clip's module of tokenizers, from the package's file alone.

    The package imports timm, transformers and more for its models, which takes seconds; its tokenizer needs only ftfy
    and regex.
    """
    package = find_spec("open_clip")  # finds the folder and runs nothing in it
    folders = package.submodule_search_locations if package else None
    spec = PathFinder.find_spec("open_clip.tokenizer", folders)
    if spec is None or spec.loader is None:
        raise ModuleNotFoundError(
            "No module named 'open_clip.tokenizer': pip install open_clip_torch", name="open_clip"
        )
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@cache
def _byte_pairs(cleaning: str) -> Any:
    return _open_clips().SimpleTokenizer(clean=cleaning)


def clean(text: str, cleaning: str) -> str:
    """Return a text after the steps that `modules.backbones.CLEANINGS` names, which are open_clip's."""
    cleaned: str = _open_clips().get_clean_fn(cleaning)(text)
    return cleaned


class Tokenizer:
    """Turns captions into int64 ids [N, L] when called.

    `max_words` counts START and END, as in the CLIP4Clip lineage; ValueError unless it is in 3..longest. Rows have
    `length` tokens, by default max_words; `longest` is how many the text tower reads.
    """

    before: tuple[int, ...] = (START_TOKEN,)
    after: tuple[int, ...] = (END_TOKEN,)
    pad = 0
    pads_left = False

    def __init__(
        self, max_words: int = 32, longest: int = LONGEST_TEXT, length: int = 0, cleaning: str = "lower"
    ) -> None:
        if not 3 <= max_words <= longest:
            raise ValueError(f"--max_words must be in 3..{longest} (START, at least one word, END), not {max_words}.")
        self.max_words, self.length, self.cleaning = max_words, length or max_words, cleaning
        _open_clips()  # a package that is missing is told now

    @property
    def ends(self) -> int:
        """Tokens of a row that are no words: START and END, which `max_words` counts too."""
        return len(self.before) + len(self.after)

    def vocabulary(self) -> list[str]:
        """Return the words of CLIP's vocabulary that are one token, in the order of their ids."""
        ends = "</w>"
        pieces = _byte_pairs("lower").encoder
        return [piece.removesuffix(ends) for piece in pieces if piece.endswith(ends) and piece != ends]

    def words(self, text: str) -> list[int]:
        """Return all word ids of one caption, uncut, after its cleaning (`modules.backbones.Tokens`).

        A control token spelled out in a caption is left out: an END among the words would hide the rest of the caption,
        because the text tower takes its output from the position of END.
        """
        return [token for token in _byte_pairs(self.cleaning).encode(text) if token < START_TOKEN]

    def words_of_all(self, texts: Iterable[str]) -> Iterator[list[int]]:
        """Yield what `words` returns for each of many captions, in a fraction of the time."""
        return map(_by_chunk(self.words), texts)

    def words_of_batch(self, texts: Sequence[str]) -> Iterable[list[int]]:
        """Return what `words` returns for each of a few captions."""
        return map(self.words, texts)

    def __call__(self, texts: str | Sequence[str]) -> Tensor:
        """Tokenize one caption or N: int64 [N, L]; a long caption keeps its first words, max_words with START and END.

        Padding follows, or precedes where the tokenizer was made so.
        """
        texts = [texts] if isinstance(texts, str) else texts
        token_ids = torch.full((len(texts), self.length), self.pad, dtype=torch.int64)
        for row, words in zip(token_ids, self.words_of_batch(texts), strict=True):
            tokens = [*self.before, *words[: self.max_words - self.ends], *self.after]
            part = row[len(row) - len(tokens) :] if self.pads_left else row[: len(tokens)]
            part.copy_(torch.tensor(tokens))
        return token_ids


def _by_chunk(words: Callable[[str], list[int]]) -> Callable[[str], list[int]]:
    """Return a function like `Tokenizer.words` that remembers each chunk between spaces.

    CLIP's tokens never cross white space, and its cleaning treats each chunk alone, unless there are letters that
    ftfy may repair, or HTML entities, which may stand for white space. Captions with those go to `words` whole.
    """
    known: dict[str, list[int]] = {}

    def of_chunk(chunk: str) -> list[int]:
        ids = known.get(chunk)
        if ids is None:
            ids = known[chunk] = words(chunk)
        return ids

    def of_caption(caption: str) -> list[int]:
        if not (caption.isascii() and caption.isprintable()) or "&" in caption:
            return words(caption)
        return [token for chunk in caption.split() for token in of_chunk(chunk)]

    return of_caption
