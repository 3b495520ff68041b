"""Whether a file of weights still holds what was written into it.

A .safetensors file has no checksum of its own: a bit that flips on a disk or on the way changes a weight, a setting or
a name, and the file still loads. `seal` is a digest of the tensors and of all that the header says, which goes into the
header when a file is written; `check_seal` finds the damage on loading. What torch saves is a zip archive, which has
checksums that torch does not look at; `check_archive` does.
"""

import hashlib
import json
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path

from safetensors import safe_open
from torch import Tensor, uint8

DIGEST = "content_sha256"
# A second entry, so that damage to the name of the first does not pass for a file that never had one.
MARK = "sealed"
FOLDER = 0x10  # of the attributes of an entry in a zip archive


class DamagedFileError(ValueError):
    """A file does not hold what was written into it; the message is one sentence with the path."""


def content_sha256(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> str:
    """Hex digest over names, dtypes, shapes and bytes of `tensors`, on any device, and all of `metadata` but the
    digest."""
    digest = hashlib.sha256()
    told = {name: text for name, text in metadata.items() if name != DIGEST}
    digest.update(json.dumps(told, sort_keys=True).encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(uint8).numpy().data)
    return digest.hexdigest()


def seal(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> dict[str, str]:
    """The `metadata` to write beside `tensors`: as given, and the seal."""
    marked = {**metadata, MARK: "sha256"}
    return marked | {DIGEST: content_sha256(tensors, marked)}


def check_seal(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> bool:
    """Whether the file with this content has a seal. One without is an older file, or was written by another program.

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


def check_sealed_file(path: Path, tensors: Mapping[str, Tensor]) -> bool:
    """`check_seal` of a .safetensors file whose tensors are already read."""
    with safe_open(path, framework="pt") as file:
        return check_seal(path, tensors, file.metadata() or {})


def damaged_entry(path: Path) -> str | None:
    """The first entry of a zip archive that does not hold what was written into it; None if all do. Raises what
    `zipfile` does for a file whose structure is damaged, and BadZipFile for one that may unpack to far more."""
    with zipfile.ZipFile(path) as archive:
        for entry in archive.infolist():
            if entry.compress_type != zipfile.ZIP_STORED and "/code/" not in entry.filename:
                raise zipfile.BadZipFile(f"its {entry.filename} is compressed, which torch never does")
        # torch reads nothing from an entry that is marked as a folder, and does not say so.
        folders = (entry.filename for entry in archive.infolist() if entry.external_attr & FOLDER)
        return next(folders, None) or archive.testzip()


def check_archive(path: Path) -> None:
    """Raises DamagedFileError if a checksum in what torch saved is wrong; nothing for a file that is no zip archive."""
    try:
        if not zipfile.is_zipfile(path):  # raises itself where bytes say that the archive spans several disks
            return
        damaged = damaged_entry(path)
    except (zipfile.BadZipFile, zlib.error, EOFError, ValueError, NotImplementedError, RuntimeError) as error:
        raise DamagedFileError(f"{path}: is damaged ({error}); download it again, or restore it from a copy") from error
    if damaged is not None:
        raise DamagedFileError(
            f"{path}: is damaged (the checksum of {damaged} in it is wrong); download it again, or restore it from a "
            "copy"
        )
