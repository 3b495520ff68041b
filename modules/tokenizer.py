"""Captions to token ids: CLIP's byte-pair encoding, taken from open_clip, cut to a fixed number of tokens.

Shapes: N captions, L = max_words tokens. A row reads START, words, END, zeros; a long caption loses words, never END.
"""

from collections.abc import Sequence
from functools import cache
from importlib.machinery import PathFinder
from importlib.util import find_spec, module_from_spec
from typing import Any

import torch
from torch import Tensor

from modules.backbones import Backbone

START_TOKEN = 49406
END_TOKEN = 49407
LONGEST_TEXT = 77  # positions of CLIP's text tower, START and END included


def check_vocabulary(backbone: Backbone) -> None:
    """Raise ValueError for a CLIP whose token ids are not those of `Tokenizer`."""
    if backbone.architecture.vocab_size != END_TOKEN + 1:
        raise ValueError(
            f"This CLIP has a vocabulary of {backbone.architecture.vocab_size} tokens and CLIP's tokenizer one of "
            f"{END_TOKEN + 1}: it needs another tokenizer, which is not supported."
        )


@cache
def _byte_pairs() -> Any:
    """Return open_clip's `SimpleTokenizer`, from the package's file alone.

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
    return module.SimpleTokenizer()


class Tokenizer:
    """Turns captions into int64 ids [N, max_words] when called.

    `max_words` counts START and END, as in the CLIP4Clip lineage; ValueError unless it is in 3..77.
    """

    def __init__(self, max_words: int = 32) -> None:
        if not 3 <= max_words <= LONGEST_TEXT:
            raise ValueError(
                f"--max_words must be in 3..{LONGEST_TEXT} (START, at least one word, END), not {max_words}."
            )
        self.max_words = max_words
        self._bpe = _byte_pairs()

    def __reduce__(self) -> tuple[type["Tokenizer"], tuple[int]]:
        return Tokenizer, (self.max_words,)  # a started process loads the byte pairs itself

    def vocabulary(self) -> list[str]:
        """Return the words that are one token, in the order of their ids."""
        ends = "</w>"
        return [piece.removesuffix(ends) for piece in self._bpe.encoder if piece.endswith(ends) and piece != ends]

    def words(self, text: str) -> list[int]:
        """Return all word ids of one caption, uncut, after CLIP's cleaning (`modules.backbones.Tokens`).

        A control token spelled out in a caption is left out: an END among the words would hide the rest of the caption,
        because the text tower takes its output from the position of END.
        """
        return [token for token in self._bpe.encode(text) if token < START_TOKEN]

    def __call__(self, texts: str | Sequence[str]) -> Tensor:
        """Tokenize one caption or N: int64 [N, max_words]; a long caption keeps its first max_words - 2 words."""
        texts = [texts] if isinstance(texts, str) else texts
        token_ids = torch.zeros(len(texts), self.max_words, dtype=torch.int64)
        for row, text in zip(token_ids, texts, strict=True):
            tokens = [START_TOKEN, *self.words(text)[: self.max_words - 2], END_TOKEN]
            row[: len(tokens)] = torch.tensor(tokens)
        return token_ids
