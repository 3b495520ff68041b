"""Files with the text features of classes: for each class the embeddings of M texts, made once, offline.

    .safetensors   of this project, written by preprocess/text_features.py: `features` and `mask`; the header has the
                   names of the classes in their order, how the texts were made, and a hash of the CLIP
    any other      a torch file of one tensor, as STDD's authors publish them (github.com/Mia-YatingYu/STDD): it says
                   neither which class a row is nor which CLIP it belongs to

Shapes: K classes, M texts of a class, d joint embedding.
"""

import errno
import hashlib
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from modules.clip import CLIP
from modules.quoting import shorten
from modules.seal import DIGEST, MARK, check_archive, hash_tensors, read_sealed, seal

log = logging.getLogger("stop")

FORMAT = "stop text features"
VERSION = "1"
COMMAND = "preprocess/text_features.py"


@dataclass(frozen=True)
class TextFeatures:
    """The texts of K classes, as the text tower gives them.

    Attributes:
        features: float32 `[K,M,d]`, not normalised, finite, no row all zero.
        mask: bool `[K,M]`; False is a repeat that only fills the row up to M. At least one text of a class is True.
        names: K names of the classes in the order of the rows; None if the file has none.
        about: how the file was made, by the names of its header: `templates`, `mode`, `sources` (file and sha256 of
            each), `clip_name` and `clip`, which is `text_sha256` of the CLIP; {} if unknown.
    """

    features: Tensor
    mask: Tensor
    names: tuple[str, ...] | None
    about: dict[str, Any]

    def __len__(self) -> int:
        return len(self.features)


def text_sha256(clip: CLIP) -> str:
    """Return the hex digest of a text tower: its tensors, and what no tensor shows (activation, heads, tokens).

    The vision tower does not count, because text features stay valid when it is trained. Additions of a method
    (`modules.deltas`) do not count either.
    """
    facts = clip.backbone.facts()
    of_texts = {name: facts["architecture"][name] for name in ("activation", "text_heads")} | facts["tokens"]
    of_texts |= {"text": parts} if (parts := facts["architecture"].get("text")) else {}  # CLIP's are not stated
    digest = hashlib.sha256(json.dumps(of_texts, sort_keys=True).encode())
    hash_tensors(digest, clip.text.state_dict())
    return digest.hexdigest()


def write_text_features(path: Path, texts: TextFeatures) -> None:
    """Write a .safetensors file with a checksum; the classes must have names, and `about` must be plain JSON."""
    assert texts.names is not None
    tensors = {"features": texts.features.contiguous(), "mask": texts.mask.contiguous()}
    header = {name: json.dumps(value) for name, value in texts.about.items()}
    header |= {"format": FORMAT, "version": VERSION, "classes": json.dumps(texts.names)}
    save_file(tensors, path, metadata=seal(tensors, header))


def read_text_features(path: Path, clip: CLIP) -> TextFeatures:
    """Read a file of text features for a run with this CLIP.

    A torch file is taken as it is: its rows are classes by position, all texts count, and the log warns of it.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is neither of the two kinds, is damaged, was made with another text tower, or holds
            embeddings of another length, that are not finite, or that are zero.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file of text features; make it with {COMMAND}")
    if path.suffix == ".safetensors":
        texts = _read_own(path)
        if texts.about.get("clip") != text_sha256(clip):
            raise ValueError(
                f"{path}: was made with another text tower (CLIP {shorten(str(texts.about.get('clip_name')))}, sha256 "
                f"{str(texts.about.get('clip'))[:12]}) than that of this run (sha256 {text_sha256(clip)[:12]}); pass "
                f"its --pretrained_clip_name and clip_ flags, or make the file again with {COMMAND}"
            )
    else:
        texts = _read_torch(path)
        log.warning(
            "%s names neither its classes nor its CLIP: its %d rows are taken as the classes in their order, all %d "
            "texts of a class count, and they are only right with the CLIP that made them", path, len(texts),
            texts.features.shape[1],
        )  # fmt: skip
    length = clip.text.text_projection.shape[1]
    if texts.features.shape[2] != length:
        raise ValueError(
            f"{path}: its embeddings have {texts.features.shape[2]} numbers and those of this CLIP {length}; pass the "
            "--pretrained_clip_name that made them"
        )
    return texts


def _read_own(path: Path) -> TextFeatures:
    tensors, header, _ = read_sealed(path)
    if header.get("format") != FORMAT:
        raise ValueError(f"{path}: not a file of text features; make one with {COMMAND}")
    if header.get("version") != VERSION:
        raise ValueError(
            f"{path}: is of version {shorten(header.get('version', 'none'))} and this code reads version {VERSION}; "
            f"make it again with {COMMAND}"
        )
    features, mask, about = tensors.get("features"), tensors.get("mask"), _about(path, header)
    names = about.pop("classes", None)
    if features is None or mask is None or not isinstance(names, list):
        raise ValueError(f"{path}: lacks its features, its mask or its classes; make it again with {COMMAND}")
    _check(path, features)
    if mask.shape != features.shape[:2] or mask.dtype != torch.bool or not mask.any(dim=1).all():
        raise ValueError(
            f"{path}: its mask is {mask.dtype} {list(mask.shape)} and must be bool {list(features.shape[:2])} with a "
            f"text for each class; make it again with {COMMAND}"
        )
    if len(names) != len(features) or not all(isinstance(name, str) for name in names):
        raise ValueError(f"{path}: has {len(features)} rows and {len(names)} names; make it again with {COMMAND}")
    return TextFeatures(features.float(), mask, tuple(names), about)


def _about(path: Path, header: Mapping[str, str]) -> dict[str, Any]:
    """Return the header without the entries of the format and of the checksum."""
    told = set(header) - {"format", "version", DIGEST, MARK}
    try:
        return {name: json.loads(header[name]) for name in sorted(told)}
    except ValueError as error:
        raise ValueError(f"{path}: its header cannot be read; make it again with {COMMAND}") from error


def _read_torch(path: Path) -> TextFeatures:
    """Read a tensor without running anything from the file."""
    check_archive(path)
    try:
        features = torch.load(path, map_location="cpu", weights_only=True)
    except MemoryError:
        raise
    except Exception as error:  # bytes that are not a pickle can fail in any way
        if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):
            raise
        raise ValueError(
            f"{path}: is neither a .safetensors file of {COMMAND} nor a torch file of one tensor, or is damaged; if it "
            "was downloaded, download it again"
        ) from error
    if not isinstance(features, Tensor):
        raise ValueError(f"{path}: holds a {type(features).__name__}; text features are one tensor [K,M,d]")
    _check(path, features)
    features = features.detach().float().contiguous()  # published files may be half precision
    return TextFeatures(features, torch.ones(features.shape[:2], dtype=torch.bool), None, {})


def _check(path: Path, features: Tensor) -> None:
    if features.dim() != 3 or 0 in features.shape or not features.is_floating_point():
        raise ValueError(
            f"{path}: holds a tensor {features.dtype} {list(features.shape)}; text features are floating-point "
            "numbers [K,M,d]: K classes, M texts of each"
        )
    stored = 0 if features.is_meta or features.layout != torch.strided else features.untyped_storage().nbytes()
    if stored < features.numel() * features.element_size():  # no numbers, sparse ones, or few that stand for many
        raise ValueError(
            f"{path}: does not hold each number of its tensor {list(features.shape)} (layout {features.layout}, "
            f"{stored} bytes); save it as a plain tensor on the CPU, with `.contiguous()`"
        )
    lengths = features.detach().float().norm(dim=2)
    if wrong := int((~lengths.isfinite() | (lengths == 0)).sum()):
        raise ValueError(
            f"{path}: {wrong} of its {lengths.numel()} embeddings are zero or not finite; make it again, or download "
            "it again"
        )
