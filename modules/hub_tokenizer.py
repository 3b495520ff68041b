"""Tokenizers of other backbones than CLIP's own, from their files: SigLIP's, SigLIP 2's, MetaCLIP 2's.

The files are those of a repository of the Hugging Face Hub, `tokenizer.json` or a SentencePiece model, with their
settings. They are looked up beside the weights, in the folder of pretrained weights and in the cache of the Hub; last,
they are downloaded. transformers reads them, and is imported only then. What open_clip's `HFTokenizer` gives for the
same files is the measure.
"""

import hashlib
import logging
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any

from modules.backbones import OWN_FILES, Backbone, Tokens
from modules.quoting import shorten
from modules.tokenizer import Tokenizer, clean

# The vocabulary is in one of these. Which one transformers reads depends on the settings, so all that are there count.
VOCABULARIES = ("tokenizer.json", "sentencepiece.bpe.model", "spiece.model", "tokenizer.model")
SETTINGS = ("tokenizer_config.json", "special_tokens_map.json")  # newer repositories have only the first
AT_ONCE = 1000  # captions
PROBE = "a photo of a dog"  # shows what a tokenizer puts around the words

log = logging.getLogger("stop")


def checked_files(tokens: Tokens) -> tuple[Path, str]:
    """Return the folder with a tokenizer's files and their `files_sha256`.

    Raises FileNotFoundError if they are neither here nor to be downloaded, and ValueError for others than `tokens` has.
    """
    folder = find_files(tokens)
    sha256 = files_sha256(folder)
    if tokens.sha256 not in ("", sha256):
        raise ValueError(
            f"the tokenizer in {folder} (sha256 {sha256[:12]}) is not the one that these weights have (sha256 "
            f"{tokens.sha256[:12]}): put back its files"
        )
    return folder, sha256


def find_files(tokens: Tokens) -> Path:
    """Return the folder with a tokenizer's files; FileNotFoundError if they are neither here nor to be downloaded."""
    for place in map(Path, tokens.places):
        if _is_complete(place):
            return place
    repository = "" if tokens.encoding == OWN_FILES else tokens.encoding
    try:
        if repository:
            return _of_the_hub(repository)
        why = "they are not beside the weights"
    except Exception as error:  # the network and a library can fail in many ways
        why = f"they are not here and cannot be downloaded ({shorten(' '.join(str(error).split()), 200)})"
    known = f"the Hugging Face repository {repository}" if repository else "the repository of these weights"
    places = " or ".join(tokens.places) or "the cache of the Hugging Face Hub"
    raise FileNotFoundError(
        f"The tokenizer of this backbone needs files of {known}, and {why}: fetch {SETTINGS[0]} and, of "
        f"{', '.join((*VOCABULARIES, SETTINGS[1]))}, all that are there, and put them into {places}."
    )


def _is_complete(folder: Path) -> bool:
    return (folder / SETTINGS[0]).is_file() and any((folder / name).is_file() for name in VOCABULARIES)


def _of_the_hub(repository: str) -> Path:
    import huggingface_hub

    cached = huggingface_hub.try_to_load_from_cache(repository, SETTINGS[0])
    if isinstance(cached, str) and _is_complete(Path(cached).parent):
        return Path(cached).parent
    # Without this, the download tries a network that is not there for most of a minute.
    with suppress(huggingface_hub.errors.EntryNotFoundError):
        huggingface_hub.get_hf_file_metadata(huggingface_hub.hf_hub_url(repository, SETTINGS[0]), timeout=10)
    log.info("downloading the tokenizer %s", repository)
    folder = Path(huggingface_hub.snapshot_download(repository, allow_patterns=[*VOCABULARIES, *SETTINGS]))
    if not _is_complete(folder):
        raise FileNotFoundError(f"{repository} has no {VOCABULARIES[0]} with {SETTINGS[0]}")
    return folder


def files_sha256(folder: Path) -> str:
    """Return a hex digest of the files in a folder that decide which ids a caption gets."""
    digest = hashlib.sha256()
    for name in (*VOCABULARIES, *SETTINGS):
        if (folder / name).is_file():
            digest.update(f"{name} {hashlib.sha256((folder / name).read_bytes()).hexdigest()} ".encode())
    return digest.hexdigest()


@lru_cache(maxsize=2)
def _read(folder: Path, sha256: str) -> Any:
    """Return the tokenizer in a folder, an object of transformers; the hash tells changed files from read ones."""
    try:
        from transformers import AutoTokenizer
    except ImportError as error:
        raise ValueError(
            f"the tokenizer in {folder} needs transformers ({shorten(str(error), 160)}): pip install transformers"
        ) from error
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
        tokenizer(PROBE)  # some settings of a wrong kind are noticed only here
        return tokenizer
    except ImportError as error:
        told = shorten(" ".join(str(error).split()), 200)
        raise ValueError(
            f"the tokenizer in {folder} needs a package that is missing ({told}): install it; for SentencePiece models "
            "pip install sentencepiece protobuf"
        ) from error
    except Exception as error:  # a file with other content can fail in any way
        told = shorten(" ".join(str(error).split()), 300)
        raise ValueError(
            f"transformers cannot read the tokenizer in {folder} ({told}): fetch its files again"
        ) from error


class HubTokenizer(Tokenizer):
    """Turns captions into int64 ids [N, L] when called, as `Tokenizer` does, for a backbone with other tokens.

    START, END and padding are those that the files say; some tokenizers have no START.

    Raises:
        FileNotFoundError: the files are not here and cannot be downloaded.
        ValueError: `max_words` is out of range, the files are others than those noted, or of a tokenizer that does not
            fit the text tower.
    """

    def __init__(self, backbone: Backbone, max_words: int, length: int) -> None:
        architecture, tokens = backbone.architecture, backbone.tokens
        super().__init__(max_words, architecture.context_length, length, tokens.cleaning)
        folder, sha256 = checked_files(tokens)
        read = _read(folder, sha256)
        self._vocabulary = architecture.vocab_size
        # The part in Rust alone is enough, and other processes get it without importing transformers.
        self._tokenizer = read.backend_tokenizer if read.is_fast else read
        if read.is_fast:
            self._tokenizer.no_truncation()
            self._tokenizer.no_padding()
        whole, words = list(read(PROBE)["input_ids"]), self._encode([PROBE])[0]
        start = next((at for at in range(len(whole)) if whole[at : at + len(words)] == words), None)
        if start is None or not words or read.pad_token_id is None or read.truncation_side != "right":
            raise ValueError(
                f"the tokenizer in {folder} is of a kind that is not supported: it changes words at the ends of a "
                "text, cuts texts at their start, or has no token for padding"
            )
        self.before, self.after = tuple(whole[:start]), tuple(whole[start + len(words) :])
        self.pad, self.pads_left = read.pad_token_id, read.padding_side == "left"
        ids = {getattr(read, f"{name}_token_id", None) for name in ("bos", "eos", "cls", "sep", "pad", "mask")}
        self._control = {*self.before, *self.after, *ids} - {None, read.unk_token_id}
        end = architecture.text.end_id
        if read.vocab_size > self._vocabulary or max(self.before + self.after + (self.pad,)) >= self._vocabulary:
            raise ValueError(
                f"the tokenizer in {folder} has {read.vocab_size} tokens and the text tower {self._vocabulary}: it "
                "belongs to other weights"
            )
        if end is not None and end not in self.after:
            raise ValueError(
                f"the tokenizer in {folder} ends a text with {list(self.after)} and the text tower is read at END "
                f"{end}: it belongs to other weights"
            )

    def _encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the ids of texts without START and END."""
        cleaned = [clean(text, self.cleaning) for text in texts]
        if hasattr(self._tokenizer, "encode_batch"):
            return [one.ids for one in self._tokenizer.encode_batch(cleaned, add_special_tokens=False)]
        ids: list[list[int]] = self._tokenizer(cleaned, add_special_tokens=False, verbose=False)["input_ids"]
        return ids

    def words(self, text: str) -> list[int]:
        """Return all word ids of one caption, uncut, after its cleaning.

        Control tokens spelled out in a caption are left out (see `Tokenizer.words`), and tokens that the text tower
        does not have.
        """
        return self.words_of_batch([text])[0]

    def words_of_batch(self, texts: Sequence[str]) -> list[list[int]]:
        return [
            [token for token in ids if token < self._vocabulary and token not in self._control]
            for ids in self._encode(texts)
        ]

    def words_of_all(self, texts: Iterable[str]) -> Iterator[list[int]]:
        texts = iter(texts)
        while batch := list(islice(texts, AT_ONCE)):
            yield from self.words_of_batch(batch)
