"""Captions of the single frames of training clips, which a language model wrote: pseudo captions, as in DiscoVLA.

The file is JSON, an object from "<video_id>_<caption>" to the captions of the T frames of that video that training
reads, in their order. The format is that of the published files of DiscoVLA (Hugging Face, LeqiShen/DiscoVLA).
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import accumulate
from pathlib import Path

import numpy as np

from dataloaders.annotations import is_texts, read_json_object
from dataloaders.quoting import shorten, some
from dataloaders.samples import Sample

FLAG = "--frame_captions"
DROP = "--drop_uncaptioned_pairs"
END = "\0"  # between captions; JSON may hold it, so it is replaced in them


class FrameCaptions:
    """The captions of the frames of N pairs, in one buffer: worker processes would gradually copy lists of strings."""

    def __init__(self, samples: Sequence[Sample], captions: Mapping[str, Sequence[str]]) -> None:
        texts = [
            END.join(text.replace(END, " ") for text in captions[key_of(sample, caption)]).encode()
            for sample in samples
            for caption in sample.captions
        ]
        self._buffer = np.frombuffer(b"".join(texts), dtype=np.uint8)
        self._ends = np.array([0, *accumulate(map(len, texts))])
        self._first = np.array([0, *accumulate(len(sample.captions) for sample in samples)])

    def __call__(self, row: int, caption: int) -> list[str]:
        """Return the captions of the frames that belong to a caption of a sample, both by number."""
        pair = self._first[row] + caption
        return self._buffer[self._ends[pair] : self._ends[pair + 1]].tobytes().decode().split(END)

    def sha256(self) -> str:
        """Return a digest of all captions in their order."""
        return hashlib.sha256(self._buffer.tobytes() + self._ends.tobytes()).hexdigest()


def key_of(sample: Sample, caption: str) -> str:
    return f"{sample.video_id}_{caption}"


def read_frame_captions(path: Path, max_frames: int) -> dict[str, list[str]]:
    """Read a file of frame captions.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it has another form, or an entry has not one caption for each of `max_frames` frames.
    """
    captions = read_json_object(path, FLAG)
    for key, texts in captions.items():
        if not is_texts(texts):
            raise ValueError(f"{FLAG} {path}: the entry {shorten(key)} is not a list of captions: correct it.")
        if len(texts) != max_frames:
            raise ValueError(
                f"{FLAG} {path}: the entry {shorten(key)} has {len(texts)} captions for the {max_frames} frames of a "
                "clip: pass their number as --max_frames, or another file."
            )
    return captions


def captioned(
    samples: Sequence[Sample], captions: Mapping[str, Sequence[str]], path: Path, drop: bool
) -> tuple[list[Sample], list[str]]:
    """Return the samples with the captions that have frame captions, and the keys of the pairs without.

    Raises:
        ValueError: a pair has none and `drop` is not set, or no pair has any.
    """
    missing = [key for s in samples for caption in s.captions if (key := key_of(s, caption)) not in captions]
    pairs = sum(len(sample.captions) for sample in samples)
    if missing and (not drop or len(missing) == pairs):
        raise ValueError(
            f"{FLAG} {path} has no entry for {len(missing)} of the {pairs} training pairs ({some(missing)}): pass a "
            f"file with all, named <video_id>_<caption>, or {DROP} to train on the others."
        )
    kept = [replace(s, captions=tuple(c for c in s.captions if key_of(s, c) in captions)) for s in samples]
    return [sample for sample in kept if sample.captions], missing
