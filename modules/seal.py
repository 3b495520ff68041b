"""Checksums that show whether a file of weights was damaged after it was written.

A .safetensors file has no checksum: a bit that flips on a disk or in transfer changes a weight, a setting or a name,
and the file still loads. `seal` computes a digest of the tensors and of the header, and the writer puts it into the
header; `check_seal` finds damage on loading. torch saves zip archives, which have checksums that torch does not check;
`check_archive` does.
"""

import hashlib
import json
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor, uint8

from modules.quoting import shorten

DIGEST = "content_sha256"
# A second entry, so that damage to the name of the first does not pass for a file that never had one.
MARK = "sealed"
FOLDER = 0x10  # the bit in the attributes of a zip archive's entry that marks a folder


class DamagedFileError(ValueError):
    """A file was damaged after it was written; the message is one sentence with the path."""


def content_sha256(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> str:
    """Return the hex digest of names, dtypes, shapes and bytes of `tensors`, on any device, and of `metadata` without
    the digest."""
    digest = hashlib.sha256()
    told = {name: text for name, text in metadata.items() if name != DIGEST}
    digest.update(json.dumps(told, sort_keys=True).encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        digest.update(_content(tensor))
    return digest.hexdigest()


def hash_tensors(digest: Any, tensors: Mapping[str, Tensor]) -> None:
    """Update a digest of `hashlib` with names, dtypes, shapes and bytes of `tensors`, on any device."""
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(_content(tensor))


def _content(tensor: Tensor) -> memoryview:
    return tensor.detach().cpu().contiguous().flatten().view(uint8).numpy().data


def seal(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> dict[str, str]:
    """Return the `metadata` to write beside `tensors`: as given, plus the seal."""
    marked = {**metadata, MARK: "sha256"}
    return marked | {DIGEST: content_sha256(tensors, marked)}


def check_seal(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> bool:
    """Return whether the file with this content has a seal. Older files and those of other programs have none.

    Raises DamagedFileError if the content is not what was sealed.
    """
    if DIGEST not in metadata and MARK not in metadata:
        return False
    if metadata.get(MARK) != "sha256" or metadata.get(DIGEST) != content_sha256(tensors, metadata):
        raise DamagedFileError(
            f"{path}: is damaged (its content does not match its own checksum); restore it from a copy, or make or "
            "download it again"
        )
    return True


def read_sealed(path: Path) -> tuple[dict[str, Tensor], dict[str, str], bool]:
    """Return the tensors of a .safetensors file, its header, and whether it has a seal.

    Raises ValueError if it cannot be read, and DamagedFileError if its content is not what was sealed.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except SafetensorError as error:
        raise ValueError(
            f"{path}: not a readable safetensors file ({shorten(str(error), 160)}); was it cut short?"
        ) from error
    return tensors, metadata, check_seal(path, tensors, metadata)


def check_sealed_file(path: Path, tensors: Mapping[str, Tensor]) -> bool:
    """Run `check_seal` on a .safetensors file whose tensors are already read."""
    with safe_open(path, framework="pt") as file:
        return check_seal(path, tensors, file.metadata() or {})


def damaged_entry(path: Path) -> str | None:
    """Return the first damaged entry of a zip archive, or None. A damaged structure raises what `zipfile` raises;
    an archive that may unpack to far more than its size raises BadZipFile."""
    with zipfile.ZipFile(path) as archive:
        for entry in archive.infolist():
            packed = entry.compress_type != zipfile.ZIP_STORED  # torch deflates the code of TorchScript alone
            if packed and not (entry.compress_type == zipfile.ZIP_DEFLATED and "/code/" in entry.filename):
                raise zipfile.BadZipFile(f"its {entry.filename} is compressed as torch never does")
        # torch reads nothing from an entry that is marked as a folder, and does not say so.
        folders = (entry.filename for entry in archive.infolist() if entry.external_attr & FOLDER)
        return next(folders, None) or archive.testzip()


def check_archive(path: Path) -> None:
    """Raise DamagedFileError if a checksum in a zip archive of torch is wrong; other files pass."""
    try:
        if not zipfile.is_zipfile(path):  # raises too if the file says that it spans several disks
            return
        damaged = damaged_entry(path)
    except (zipfile.BadZipFile, zlib.error, EOFError, ValueError, NotImplementedError, RuntimeError) as error:
        raise DamagedFileError(f"{path}: is damaged ({error}); download it again, or restore it from a copy") from error
    if damaged is not None:
        raise DamagedFileError(
            f"{path}: is damaged (the checksum of {damaged} in it is wrong); download it again, or restore it from a "
            "copy"
        )
