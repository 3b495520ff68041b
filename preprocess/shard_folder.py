"""The folder that preprocess/make_shards.py fills: which samples go into which shard, and which shards are done.

    settings.json           all that the bytes of the shards depend on, apart from the videos
    000000.tar, ...         the shards, each there whole or not at all
    .done/000000.json, ...  a record of each finished shard: its entry of the index, and the samples it lacks and why
    failed.csv              video_id, path, reason of every sample that could not be stored, if any
    shards.json             the index, written when every shard is done

A shard counts as finished when both its tar and its record are there. A run that is killed leaves at most a partial
file, which the next run removes. A partial file that is locked is being written.
"""

import csv
import fcntl
import hashlib
import io
import json
import os
import tarfile
import uuid
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

from dataloaders.quoting import quoted
from dataloaders.samples import Sample
from dataloaders.shard_index import INDEX, Shard, ShardIndex, write_index, write_whole
from preprocess.shard_clips import StoredClip

SETTINGS, DONE, FAILED = "settings.json", ".done", "failed.csv"
COLUMNS = ("video_id", "path", "reason")  # of failed.csv
PARTIAL = ".partial"


# ---- the deal -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Deal:
    """Samples shuffled over shards of `per_shard` samples, the last one with what remains.

    `order` holds rows of the list. It depends on the seed and the number of samples alone, also when
    some of their files are missing.
    """

    order: Sequence[int]
    per_shard: int

    @property
    def shards(self) -> int:
        """Return the number of shards."""
        return -(-len(self.order) // self.per_shard)

    def of_shard(self, shard: int) -> range:
        """Return the places in `order` that a shard gets; a place is also the key of its sample."""
        return range(shard * self.per_shard, min((shard + 1) * self.per_shard, len(self.order)))


def shuffled(count: int, seed: int) -> list[int]:
    """Return the numbers 0..count-1 in an order that the seed decides, for all times and versions of libraries."""
    return sorted(range(count), key=lambda number: hashlib.blake2b(b"%d %d" % (seed, number), digest_size=16).digest())


def digest_of(samples: Iterable[Sample]) -> str:
    """Return the SHA-256 of a list: ids, captions and windows of time in their order, but not where the files are."""
    found = hashlib.sha256()
    for sample in samples:
        found.update(json.dumps([sample.video_id, sample.captions, sample.start, sample.end]).encode() + b"\n")
    return found.hexdigest()


# ---- one shard ------------------------------------------------------------------------------------------------------


def shard_name(shard: int) -> str:
    """Return the file name of a shard."""
    return f"{shard:06d}.tar"


class ShardWriter:
    """Writes one tar beside its final name and gives it that name when it is complete and on disk.

    The bytes are those of webdataset's TarWriter with `mtime=0` and without an owner.
    """

    def __init__(self, folder: Path, shard: int) -> None:
        self._folder, self._shard = folder, shard
        self._partial = folder / f".{shard_name(shard)}.{uuid.uuid4().hex[:8]}{PARTIAL}"
        file = self._partial.open("wb", buffering=0)
        with suppress(OSError):  # of a file system without locks
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        self._file = _Hashed(file)
        self._tar = tarfile.open(fileobj=self._file, mode="w|", format=tarfile.USTAR_FORMAT)  # noqa: SIM115, `finish`
        self._samples = 0

    def add(self, place: int, clip: StoredClip) -> None:
        """Append a sample."""
        for extension, content in clip.members:
            header = tarfile.TarInfo(f"{place:09d}.{extension}")
            if isinstance(content, Path):
                with content.open("rb") as file:
                    header.size = os.fstat(file.fileno()).st_size
                    self._tar.addfile(header, file)
            else:
                header.size = len(content)
                self._tar.addfile(header, io.BytesIO(content))
        self._samples += 1

    def finish(self, failed: Sequence[tuple[int, str]]) -> None:
        """Put the tar and its record in place; `failed` has the row and the reason of each sample that it lacks.

        A shard without a single sample gets a record and no tar.
        """
        self._tar.close()
        self._file.sync()
        entry = Shard(shard_name(self._shard), self._samples, self._file.size, self._file.sha256.hexdigest())
        if self._samples:
            self._partial.replace(self._folder / entry.file)
        self.close()
        record = {**asdict(entry), "failed": [list(item) for item in failed]}
        (self._folder / DONE).mkdir(exist_ok=True)
        write_whole(self._folder / DONE / f"{self._shard:06d}.json", json.dumps(record, ensure_ascii=False) + "\n")

    def close(self) -> None:
        """Close and remove what is not finished."""
        with suppress(OSError):  # of a full disk, which `add` has told
            self._tar.close()
        self._file.close()
        self._partial.unlink(missing_ok=True)


class _Hashed(io.RawIOBase):
    """A file that is written from start to end and hashed on the way; an OSError names it."""

    def __init__(self, file: BinaryIO) -> None:
        self.sha256, self.size = hashlib.sha256(), 0
        self._file = file

    def write(self, data: Any) -> int:
        try:
            self._file.write(data)
        except OSError as error:
            raise OSError(
                f"{self._file.name} cannot be written ({error.strerror}): make room, and run the same command again."
            ) from error
        self.sha256.update(data)
        self.size += len(data)
        return len(data)

    def sync(self) -> None:
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()
        super().close()


# ---- the folder -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Record:
    """A finished shard, and the samples that it lacks, as (row of the list, reason)."""

    shard: Shard
    failed: tuple[tuple[int, str], ...]


def read_records(folder: Path, deal: Deal) -> dict[int, Record]:
    """Return the finished shards by number. One whose tar is gone, or has another size, does not count."""
    records = {}
    for number in range(deal.shards):
        try:
            content = json.loads((folder / DONE / f"{number:06d}.json").read_text(encoding="utf-8"))
            failed = tuple((int(row), str(reason)) for row, reason in content.pop("failed"))
            record = Record(Shard(**content), failed)
            tar = folder / record.shard.file
            if record.shard.samples == 0 or tar.stat().st_size == record.shard.bytes:
                records[number] = record
        except (OSError, ValueError, TypeError, KeyError):
            continue  # not finished, or damaged: it is made again
    return records


def find_settings(folder: Path) -> dict[str, Any] | None:
    """Return the settings that a folder was begun with, None for a new one.

    Raises ValueError if it is a file, or holds shards or a failed.csv that this command has not made.
    """
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"--output_dir {folder} is a file: name a folder.")
    failed = folder / FAILED
    if failed.exists() and not (failed.is_file() and _first_line(failed) == ",".join(COLUMNS)):
        raise ValueError(
            f"--output_dir {folder} holds a {FAILED} that this command has not written and would replace: move it, or "
            "name another folder."
        )
    path = folder / SETTINGS
    if path.exists():
        with suppress(ValueError):
            content = json.loads(path.read_text(encoding="utf-8"))
            if isinstance(content, dict) and "list_sha256" in content:
                return content
        raise ValueError(f"{path} is not what this command writes: name a new --output_dir.")
    if (folder / INDEX).exists() or next(folder.glob("*.tar"), None):
        raise ValueError(f"--output_dir {folder} holds shards that this command has not made: name a new folder.")
    return None


def _first_line(path: Path) -> str:
    with path.open(encoding="utf-8", errors="replace") as file:
        return file.readline(1000).rstrip("\n")


def check_settings(folder: Path, found: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
    """Raise ValueError if the folder was begun with other settings than these."""
    wanted = json.loads(json.dumps(settings))
    if different := [name for name in {**wanted, **found} if wanted.get(name) != found.get(name)]:
        name = different[0]
        raise ValueError(
            f"--output_dir {folder} was begun with {name} {quoted(found.get(name))}, not {quoted(wanted.get(name))}: "
            f"pass what {SETTINGS} there says, or name another folder."
        )


def claim(folder: Path, settings: Mapping[str, Any]) -> None:
    """Write the settings into a new folder; ValueError if another process has begun it with other settings."""
    if (found := find_settings(folder)) is not None:
        check_settings(folder, found, settings)
        return
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(folder / SETTINGS, json.dumps(settings, indent=1) + "\n")


def remove_partials(folder: Path, shards: Iterable[int]) -> None:
    """Remove what a killed run left of these shards, but not of others, which may be being written.

    Raises ValueError if another process is writing one of these.
    """
    names = {shard_name(shard) for shard in shards}
    for path in folder.glob(f".*{PARTIAL}"):
        name = path.name.removeprefix(".").removesuffix(PARTIAL).rpartition(".")[0]
        if name not in names:
            continue
        with suppress(FileNotFoundError), path.open("r+b") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise ValueError(
                    f"--output_dir {folder}: another process is writing {name}: wait for it to end, or give each "
                    "process a share of its own (--shard 0/2 and --shard 1/2)."
                ) from error
            except OSError:
                pass  # a file system without locks
            path.unlink(missing_ok=True)


def write_failed(folder: Path, samples: Sequence[Sample], failed: Mapping[int, str]) -> None:
    """Write failed.csv from {row of the list: reason}, or remove it if nothing failed."""
    path = folder / FAILED
    if not failed:
        path.unlink(missing_ok=True)
        return
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows([samples[row].video_id, samples[row].path, failed[row]] for row in sorted(failed))
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(path, text.getvalue())


def finish(folder: Path, records: Mapping[int, Record], settings: Mapping[str, Any]) -> ShardIndex:
    """Write the index of a folder whose shards are all done."""
    shards = (records[number].shard for number in sorted(records))
    index = ShardIndex(tuple(shard for shard in shards if shard.samples), settings)
    write_index(folder, index)
    return index


def failures(records: Mapping[int, Record]) -> dict[int, str]:
    """Return {row of the list: reason} of what finished shards lack."""
    return {row: reason for record in records.values() for row, reason in record.failed}
