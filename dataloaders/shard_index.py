"""Shards on disk: `shards.json`, the index of a folder of WebDataset tars, and the table of one tar's samples.

A folder, or a URL prefix, holds `shards.json` and the tars that it lists:

    {"version": 1, "settings": {how they were made},
     "shards": [{"file": "000000.tar", "samples": 1000, "bytes": 96624640, "sha256": "..."}, ...]}

A tar is a WebDataset shard (https://github.com/webdataset/webdataset). A member's name up to the first dot after the
last slash is the key of its sample, the rest says what the member is. The members of a sample stand together:

    <key>.mp4 (or another video)         the clip, or
    <key>.000.jpg, <key>.001.jpg, ...    its frames, numbered from 0 with three or more digits
    <key>.json, <key>.txt                one of them or both: captions

What we refuse instead of passing over: a tar that is cut off or compressed, a sample without a picture or without a
text, a key that comes twice, and members of any other kind. Nothing here reads what the members hold.
"""

import hashlib
import json
import os
import re
import tarfile
import uuid
import zlib
from collections.abc import Generator, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from dataloaders.annotations import parse_json, read_text
from dataloaders.listed_videos import VIDEO_EXTENSIONS, check_name
from dataloaders.quoting import counted, quoted, shorten, some

VERSION = 1
INDEX = "shards.json"

_NAME = re.compile(r"((?:.*/)?[^./][^.]*)\.([^/]+)", re.DOTALL)  # key, extension, as WebDataset splits them
_META = re.compile(r"__[^/]*__(?:/|$)")  # members that describe the whole tar, which WebDataset passes over
_FRAME = re.compile(r"(\d{3,})\.jpe?g", re.ASCII)
_SHA256 = re.compile(r"[0-9a-f]{64}")

# What programs write as the header of a plain file (0), of a folder (5), and of notes on the next member (x).
_HEADER = re.compile(
    rb"(?P<name>.{100})(?:[0-7]{7}[\0 ]){3}"  # permissions, owner, group
    rb"(?P<size>[0-7]{11})[\0 ][0-7]{11}[\0 ]"  # time
    rb"(?P<checksum>[0-7]{6})\0 (?P<kind>[05x]).{100}"  # target of a link
    rb"ustar(?:\0..|  \0).{64}(?:[0-7]{7}[\0 ]|\0{8}){2}\0{155}.{12}",  # names of owner and group, device, prefix
    re.DOTALL,
)
_TIME = re.compile(rb"((\d+) mtime=[\d.]+\n)\0*")  # the note that webdataset puts before each member


# ---- the index ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Shard:
    """One tar of the index: its place relative to `shards.json`, how many samples and bytes it has, and the SHA-256 of
    these bytes as hexadecimal digits."""

    file: str
    samples: int
    bytes: int
    sha256: str


@dataclass(frozen=True)
class ShardIndex:
    """The contents of `shards.json`. `settings` say how the shards were made; reading does not depend on them."""

    shards: tuple[Shard, ...]
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def samples(self) -> int:
        """Return how many samples all shards have together."""
        return sum(shard.samples for shard in self.shards)

    @property
    def bytes(self) -> int:
        """Return how many bytes all shards have together."""
        return sum(shard.bytes for shard in self.shards)

    def to_json(self) -> str:
        """Return the text of `shards.json`; the same index gives the same text."""
        lines = ",\n".join(f"  {json.dumps(asdict(shard))}" for shard in self.shards)
        settings = json.dumps(self.settings, sort_keys=True)
        return f'{{\n "version": {VERSION},\n "settings": {settings},\n "shards": [\n{lines}\n ]\n}}\n'


def parse_index(text: str, name: str) -> ShardIndex:
    """Return the index that a text holds; `name` is the path or the URL of the text, for messages.

    Raises ValueError for another version, for wrong types and numbers, for a file name that is listed twice or leads
    out of the folder, and if no shard is listed.
    """
    try:
        content = parse_json(text)
    except ValueError as error:
        raise ValueError(f"{name} is {error}: make or download the index again.") from error
    if not isinstance(content, dict) or "version" not in content or "shards" not in content:
        raise ValueError(f'{name} is not an index of shards, an object with "version" and "shards": pass another file.')
    if type(content["version"]) is not int or content["version"] != VERSION:
        raise ValueError(
            f"{name} has version {quoted(content['version'])}, but {VERSION} is the one that is read here: make the "
            "shards again, or use the code that wrote them."
        )
    settings, entries = content.get("settings", {}), content["shards"]
    if not isinstance(settings, dict):
        raise ValueError(f'{name} has "settings" that are {quoted(settings)}, not an object: correct them.')
    if not isinstance(entries, list) or not entries:
        raise ValueError(f'{name} has "shards" that are {quoted(entries)}, not a list of at least one: make it again.')
    shards: dict[str, Shard] = {}
    for number, entry in enumerate(entries):
        try:
            shard = _shard(entry)
            if shards.setdefault(shard.file, shard) is not shard:
                raise ValueError(f"file {shorten(shard.file)} is listed twice")
        except ValueError as error:
            reason = str(error).rstrip(".")
            raise ValueError(f"{name}, shard {number}: {reason}; make or download the index again.") from error
    return ShardIndex(tuple(shards.values()), settings)


def _shard(entry: Any) -> Shard:
    if not isinstance(entry, dict):
        raise ValueError(f"{quoted(entry)} is not an object")
    file, digest = entry.get("file"), entry.get("sha256")
    if not isinstance(file, str) or not file.endswith(".tar"):
        raise ValueError(f'"file" is {quoted(file)}, not the name of a .tar')
    try:
        place = check_name(file)
    except ValueError:
        place = None
    if place is None or place.as_posix() != file or ":" in file:
        raise ValueError(f'"file" is {quoted(file)}, which is not a plain name inside the folder of the index')
    for count in ("samples", "bytes"):
        if type(entry.get(count)) is not int or entry[count] < 1:
            raise ValueError(f'"{count}" is {quoted(entry.get(count))}, not a whole number of at least 1')
    if not isinstance(digest, str) or not _SHA256.fullmatch(digest):
        raise ValueError(f'"sha256" is {quoted(digest)}, not 64 hexadecimal digits in small letters')
    return Shard(file, entry["samples"], entry["bytes"], digest)


def read_index(folder: Path, flag: str = "--shards") -> ShardIndex:
    """Return the index of a local folder of shards; `flag` named the folder.

    Raises FileNotFoundError if there is none and ValueError as `parse_index` does. Does not look at the tars.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"{flag} {folder} is not a folder: pass the one that holds {INDEX}.")
    if not (folder / INDEX).is_file():
        raise FileNotFoundError(
            f"{flag} {folder} holds no {INDEX}: pass a folder of shards, or make them whole first "
            "(preprocess/make_shards.py; with --index for tars of another program)."
        )
    return parse_index(read_text(folder / INDEX, flag), f"{flag} {folder / INDEX}")


def write_index(folder: Path, index: ShardIndex) -> None:
    """Write `shards.json` into a folder; it appears whole and on disk, or not at all."""
    write_whole(folder / INDEX, index.to_json())


def write_whole(path: Path, text: str) -> None:
    """Write a text file, which appears whole and on disk, or not at all."""
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.partial")  # another process may do the same
    try:
        with partial.open("w", encoding="utf-8", newline="\n", errors="surrogateescape") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def sha256_of(file: BinaryIO) -> str:
    """Return the SHA-256 of an open file from its beginning, as the index has it."""
    file.seek(0)
    found = hashlib.sha256()  # not hashlib.file_digest, which Python 3.10 lacks
    while chunk := file.read(2**20):
        found.update(chunk)
    return found.hexdigest()


# ---- one tar --------------------------------------------------------------------------------------------------------


class Member(NamedTuple):
    """One file in a tar: its name there, where its bytes begin in the tar, and how many they are."""

    name: str
    offset: int
    size: int


@dataclass(frozen=True)
class ShardSample:
    """The members of one sample: either `video` or `frames`, in order, and at least one of `json` and `txt`."""

    key: str
    video: Member | None
    frames: tuple[Member, ...]
    json: Member | None
    txt: Member | None


def member_table(path: Path, expected: Shard | None = None) -> list[ShardSample]:
    """Return the samples of a local tar, in its order. Reads the headers of its members and not what they hold.

    `expected` is the tar's entry in the index, whose numbers of bytes and samples are compared; its checksum is not.
    Raises FileNotFoundError if there is no such file, and ValueError if it is not a whole tar of whole samples, which
    are described in the head of this module.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: copy or make the shard again.")
    size = path.stat().st_size
    if expected and size != expected.bytes:
        raise _wrong(path, f"has {size:,} bytes, but {INDEX} says {expected.bytes:,}")
    samples: dict[str, dict[str, Member]] = {}
    current = None
    with path.open("rb") as file:
        for member in _members(path, file, size):
            if _META.match(member.name):
                continue
            split = _NAME.fullmatch(member.name)
            if not split:
                raise _wrong(path, f"has a member {quoted(member.name)} without key and extension", "leave it out")
            key, extension = split[1], split[2].lower()
            if key != current:
                if key in samples:
                    raise _wrong(path, f"has two samples of the key {quoted(key)}", "give one of them another key")
                current, samples[key] = key, {}
            if extension in samples[key]:
                raise _wrong(path, f"has the member {quoted(member.name)} twice", "leave one of them out")
            samples[key][extension] = member
    if not samples:
        raise _wrong(path, "holds no sample")
    if expected and len(samples) != expected.samples:
        raise _wrong(path, f"holds {counted(len(samples), 'sample')}, but {INDEX} says {expected.samples:,}")
    return [_sample(path, key, members) for key, members in samples.items()]


def _wrong(path: Path, fault: str, fix: str = "copy or make the shard again") -> ValueError:
    return ValueError(f"{path} {fault}: {fix}.")


def _members(path: Path, file: BinaryIO, size: int) -> Iterator[Member]:
    """Yield the regular files of a tar; ValueError unless it is whole and holds nothing but files and folders."""
    plain = _plain_members(file)
    if plain is not None:
        members, end = plain
        yield from members
    else:
        end = yield from _any_members(path, file)
    # tarfile takes a file that ends after a member for a whole tar, and ignores what follows the end of one.
    if size < end + tarfile.BLOCKSIZE:
        raise _wrong(path, "is cut off, the mark at the end of a tar is missing")
    file.seek(end)
    while rest := file.read(2**20):
        if rest.count(0) != len(rest):
            raise _wrong(path, "goes on after the end of the tar", "do not join tars byte by byte")


def _plain_members(file: BinaryIO) -> tuple[list[Member], int] | None:
    """Return the regular files of a tar and where its members end, or None if any header is not an ordinary one.

    This gives what tarfile gives in a fifth of the time, which matters if every frame is a file.
    """
    members: list[Member] = []
    offset, kind = 0, b""
    while (header := os.pread(file.fileno(), 512, offset)) != bytes(512):
        found = _HEADER.fullmatch(header)
        if not found or _checksum(header) != int(found["checksum"], 8):
            return None
        length, kind = int(found["size"], 8), found["kind"]
        offset += 512
        if kind == b"0":
            name = found["name"].split(b"\0", 1)[0].decode(tarfile.ENCODING, "surrogateescape")
            members.append(Member(name, offset, length))
        elif kind == b"5" and length:
            return None
        elif kind == b"x":
            note = _TIME.fullmatch(os.pread(file.fileno(), 512, offset))
            if not note or not len(note[1]) == int(note[2]) == length:
                return None
        offset += -(-length // 512) * 512
    return None if kind == b"x" else (members, offset)


def _checksum(header: bytes) -> int:
    """Return the sum of the 512 bytes of a header, with spaces in place of the eight that hold the sum."""
    # The lower half of Adler-32 is 1 + the sum modulo 65521, which 256 bytes cannot reach. `sum` would be slow.
    first, second = zlib.adler32(header[:148] + b" " * 8 + header[156:256]), zlib.adler32(header[256:])
    return (first & 0xFFFF) + (second & 0xFFFF) - 2


def _any_members(path: Path, file: BinaryIO) -> Generator[Member, None, int]:
    """Yield the regular files of a tar as tarfile finds them; return where its members end."""
    end = 0
    try:
        with tarfile.open(fileobj=file, mode="r:") as tar:
            for found in tar:
                # tarfile believes a negative size and then goes round in circles.
                if found.size < 0 or found.offset < end:
                    raise tarfile.ReadError("a member has an impossible size")
                end = tar.offset
                if found.isdir():
                    continue
                if not found.isreg() or found.issparse():
                    raise _wrong(path, f"has a member {quoted(found.name)} that is not a plain file", "leave it out")
                yield Member(found.name, found.offset_data, found.size)
    except tarfile.TarError as error:
        raise _wrong(path, f"is not a whole, uncompressed tar ({error})") from error
    return end


def _sample(path: Path, key: str, members: Mapping[str, Member]) -> ShardSample:
    videos = [extension for extension in members if f".{extension}" in VIDEO_EXTENSIONS]
    frames = {extension: int(found[1]) for extension in members if (found := _FRAME.fullmatch(extension))}
    known = {*videos, *frames, "json", "txt"}
    fault = ""
    if unknown := [extension for extension in members if extension not in known]:
        fault = f"has members of an unknown kind ({some(unknown)})"
    elif not videos and not frames:
        fault = "has no picture, neither a video nor frames"
    elif len(videos) > 1 or (videos and frames):
        fault = f"has {some([*videos, *frames])} in place of one video or the frames of one"
    elif sorted(frames.values()) != list(range(len(frames))):
        fault = "has frames that are not numbered 000, 001, ... without a gap"
    elif "json" not in members and "txt" not in members:
        fault = "has no caption, neither .json nor .txt"
    if fault:
        raise _wrong(path, f"has a sample {quoted(key)} that {fault}")
    in_order = tuple(members[extension] for extension in sorted(frames, key=frames.__getitem__))
    return ShardSample(key, members[videos[0]] if videos else None, in_order, members.get("json"), members.get("txt"))
