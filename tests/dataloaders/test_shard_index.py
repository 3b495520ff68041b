"""The index of shards and the table of a tar: what webdataset writes is read, and nothing is passed over."""

import hashlib
import io
import json
import subprocess
import tarfile
from contextlib import suppress
from functools import partial
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dataloaders import shard_index
from dataloaders.shard_index import (
    INDEX,
    Member,
    Shard,
    ShardIndex,
    member_table,
    parse_index,
    read_index,
    write_index,
)
from preprocess.shard_clips import StoredClip
from preprocess.shard_folder import ShardWriter
from tests.dataloaders.folders import assert_one_sentence, result_or_message

wds = pytest.importorskip("webdataset")

SHARD = {"file": "000000.tar", "samples": 2, "bytes": 10240, "sha256": "0" * 64}


def tar_of(path: Path, *members: tuple[str, bytes], **fields: object) -> Path:
    """Write a tar of these members in this order; `fields` are set in the header of the last."""
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
        for number, (name, content) in enumerate(members):
            header = tarfile.TarInfo(name)
            header.size = len(content)
            if number == len(members) - 1:
                for field, value in fields.items():
                    setattr(header, field, value)
            tar.addfile(header, io.BytesIO(content))
    return path


def written_by_webdataset(path: Path, **options: float | None) -> list[dict[str, bytes | str]]:
    samples: list[dict[str, bytes | str]] = [
        {"__key__": "a/000", "mp4": b"clip" * 300, "json": b'{"captions": ["a"]}'},
        {"__key__": "a/001", "000.jpg": b"one", "001.jpg": b"", "txt": b"a dog"},
        {"__key__": "b", "webm": b"\0" * 512, "txt": b"c", "json": b"{}"},
    ]
    with wds.TarWriter(str(path), **options) as writer:
        for sample in samples:
            writer.write(sample)
    return samples


# ---- the table ------------------------------------------------------------------------------------------------------


def test_what_webdataset_wrote(tmp_path):
    path = tmp_path / "a.tar"
    samples = written_by_webdataset(path)
    content = path.read_bytes()
    table = member_table(path)
    assert [sample.key for sample in table] == ["a/000", "a/001", "b"]
    for sample, wanted in zip(table, samples, strict=True):
        members = [member for member in (sample.video, *sample.frames, sample.json, sample.txt) if member]
        found = {name: content[offset : offset + size] for name, offset, size in members}
        key = wanted.pop("__key__")
        assert found == {f"{key}.{extension}": value for extension, value in wanted.items()}
    assert [member.name for member in table[1].frames] == ["a/001.000.jpg", "a/001.001.jpg"]
    assert table[2].video is not None
    assert table[2].video.name == "b.webm"


def test_frames_come_in_the_order_of_their_numbers(tmp_path):
    names = [f"{number:03d}" for number in range(1002)]
    shuffled = [(f"k.{name}.JPG", name.encode()) for name in sorted(names, key=lambda name: name[::-1])]
    (sample,) = member_table(tar_of(tmp_path / "a.tar", *shuffled, ("k.txt", b"a")))
    assert [member.name for member in sample.frames] == [f"k.{name}.JPG" for name in names]


def test_folders_and_notes_about_the_tar_are_no_samples(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        folder = tarfile.TarInfo("./")
        folder.type = tarfile.DIRTYPE
        tar.addfile(folder)
        for name in ("__meta__/info.json", "./a.mp4", "./a.txt"):
            tar.addfile(tarfile.TarInfo(name), io.BytesIO())
    assert [sample.key for sample in member_table(tmp_path / "a.tar")] == ["./a"]


CLIP, TEXT = ("a.mp4", b"clip"), ("a.txt", b"text")


@pytest.mark.parametrize(
    ("members", "parts"),
    [
        ([], ["no sample"]),
        ([CLIP], ["'a'", "no caption"]),
        ([TEXT], ["'a'", "no picture"]),
        ([CLIP, TEXT, ("b.mp4", b"")], ["'b'", "no caption"]),
        ([CLIP, TEXT, ("a.webm", b"")], ["one video"]),
        ([CLIP, TEXT, ("a.000.jpg", b"")], ["one video"]),
        ([TEXT, ("a.000.jpg", b""), ("a.002.jpg", b"")], ["without a gap"]),
        ([TEXT, ("a.001.jpg", b"")], ["without a gap"]),
        ([TEXT, ("a.000.jpg", b""), ("a.0000.jpg", b"")], ["without a gap"]),
        ([TEXT, ("a.000.jpg", b""), ("a.000.jpeg", b"")], ["without a gap"]),
        ([CLIP, TEXT, ("a.wav", b"")], ["unknown kind", "wav"]),
        ([CLIP, TEXT, ("a.mp4", b"")], ["'a.mp4'", "twice"]),
        ([CLIP, TEXT, ("a.MP4", b"")], ["'a.MP4'", "twice"]),
        ([CLIP, TEXT, ("b.mp4", b""), ("b.txt", b""), CLIP], ["two samples", "'a'"]),
        ([CLIP, TEXT, ("README", b"")], ["'README'", "extension"]),
        ([CLIP, TEXT, (".hidden", b"")], ["'.hidden'", "extension"]),
    ],
)
def test_members_that_are_refused(tmp_path, members, parts):
    path = tar_of(tmp_path / "a.tar", *members)
    assert_one_sentence(partial(member_table, path), ValueError, "a.tar", *parts)


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.GNUTYPE_SPARSE])
def test_members_that_are_not_plain_files(tmp_path, kind):
    path = tar_of(tmp_path / "a.tar", CLIP, TEXT, ("b.mp4", b""), type=kind, linkname="/etc/passwd")
    assert_one_sentence(partial(member_table, path), ValueError, "a.tar")


def test_a_negative_size_does_not_go_round_in_circles(tmp_path):
    path = tar_of(tmp_path / "a.tar", CLIP, TEXT, ("b.mp4", b""))
    content = bytearray(path.read_bytes())
    header = content.index(b"b.mp4")
    content[header + 124 : header + 136] = b"\xff" * 10 + b"\xf8\x00"  # -2048 in base 256
    content[header + 148 : header + 156] = b" " * 8
    content[header + 148 : header + 156] = b"%06o\0 " % sum(content[header : header + 512])
    path.write_bytes(content)
    assert_one_sentence(partial(member_table, path), ValueError, "a.tar")


def test_every_cut_is_noticed(tmp_path):
    whole = tmp_path / "whole.tar"
    written_by_webdataset(whole)
    content = whole.read_bytes()
    table = member_table(whole)
    last = max(member.offset + member.size for sample in table for member in (sample.video, sample.json) if member)
    end = -(-last // 512) * 512
    path = tmp_path / "a.tar"
    for length in [*range(0, end, 256), end - 1, end, end + 511]:
        path.write_bytes(content[:length])
        assert_one_sentence(partial(member_table, path), ValueError, "a.tar")
    path.write_bytes(content[: end + 512])
    assert member_table(path) == table


@pytest.mark.parametrize("kind", ["joined", "gzip", "text"])
def test_no_tar(tmp_path, kind):
    path = tar_of(tmp_path / "a.tar", CLIP, TEXT)
    content = path.read_bytes()
    if kind == "gzip":
        with tarfile.open(path, "w:gz"):
            pass
    else:
        path.write_bytes({"joined": content + content, "text": b"video_id,caption\n" * 100}[kind])
    assert_one_sentence(partial(member_table, path), ValueError, "a.tar")


@settings(max_examples=40)
@given(st.data())
def test_damaged_headers_are_refused_or_read(tmp_path_factory, data):
    """No change of a header's bytes gives anything but a table or one sentence, and members stay within the file."""
    path = tmp_path_factory.mktemp("tar") / "a.tar"
    content = bytearray(tar_of(path, CLIP, TEXT).read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, 511)) + 1024 * data.draw(st.integers(0, 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content)
    table, message = result_or_message(partial(member_table, path))
    assert "\n" not in message
    for sample in table or ():
        for member in (sample.video, *sample.frames, sample.json, sample.txt):
            assert member is None or 0 < member.offset + member.size <= len(content)


def test_what_the_index_says_is_compared(tmp_path):
    path = tar_of(tmp_path / "000000.tar", CLIP, TEXT)
    shard = Shard("000000.tar", 1, path.stat().st_size, "0" * 64)
    assert len(member_table(path, shard)) == 1
    for wrong in ({"samples": 2}, {"bytes": 5}):
        other = Shard(**{**shard.__dict__, **wrong})
        assert_one_sentence(partial(member_table, path, other), ValueError, "000000.tar", INDEX)
    assert_one_sentence(partial(member_table, tmp_path / "b.tar"), FileNotFoundError, "b.tar")


# ---- ordinary headers, which are read without tarfile ----------------------------------------------------------------


def members_of(path: Path) -> list[Member]:
    with path.open("rb") as file:
        return list(shard_index._members(path, file, path.stat().st_size))


def by_tarfile(path: Path) -> tuple[list[Member] | None, str]:
    """Return the members of a tar, or the message of its fault, if tarfile reads all headers."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shard_index, "_plain_members", lambda file: None)
        return result_or_message(partial(members_of, path))


@pytest.mark.parametrize("writer", ["ours", "webdataset", "webdataset with mtime", "GNU tar"])
def test_ordinary_tars_need_no_tarfile(tmp_path, monkeypatch, writer):
    path = tmp_path / "a.tar"
    if writer == "ours":
        shard = ShardWriter(tmp_path, 0)
        for place in range(3):
            shard.add(place, StoredClip((("000.jpg", b"a" * 512 * place), ("001.jpg", b"b"), ("json", b"{}"))))
        shard.finish([])
        path = tmp_path / "000000.tar"
    elif writer == "GNU tar":
        for name in ("a.mp4", "a.txt", "b.mp4", "b.txt"):
            (tmp_path / "f" / name).parent.mkdir(exist_ok=True)
            (tmp_path / "f" / name).write_bytes(b"x" * 700)
        subprocess.run(["tar", "-cf", path, "-C", tmp_path, "f"], check=True)
    else:
        written_by_webdataset(path, mtime=None if writer == "webdataset" else 5.0)
    expected, message = by_tarfile(path)
    assert message == ""
    monkeypatch.setattr(tarfile, "open", None)
    assert members_of(path) == expected


NAMES = st.sampled_from([
    "k.mp4", "k.txt", "k.000.jpg", "l.mp4", "l.txt", "é.mp4", "é.txt", "k", "d/", f"{'d/' * 60}k.mp4",
    f"{'k' * 99}.mp4", f"{'k' * 96}.mp4", "", "k.json/", "k\0l.mp4",
])  # fmt: skip
KINDS = st.sampled_from([tarfile.REGTYPE] * 12 + [tarfile.AREGTYPE, tarfile.DIRTYPE, tarfile.SYMTYPE, b"S", b"7"])
FIELDS = st.fixed_dictionaries({
    "type": KINDS, "mtime": st.sampled_from([0, 5, 1.5, -1, 8**12]), "uid": st.sampled_from([0, 8**7]),
    "uname": st.sampled_from(["", "é" * 40]),
    "pax_headers": st.sampled_from([{}, {}, {"mtime": "2"}, {"path": "p.mp4"}, {"size": "3"}]),
})  # fmt: skip
FORMATS = st.sampled_from([tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
DAMAGES = st.lists(st.tuples(st.integers(0, 6000), st.binary(min_size=1, max_size=2), st.booleans()), max_size=2)


@settings(max_examples=100)
@given(st.lists(st.tuples(NAMES, st.integers(0, 1100), FIELDS), max_size=4), FORMATS, DAMAGES, st.integers(0, 20))
def test_any_tar_reads_as_by_tarfile(tmp_path_factory, members, form, damages, cut):
    """Whatever the kinds of members and the damage: the same members, or the same message."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=form) as tar, suppress(ValueError):  # not all fit each format
        for name, size, values in members:
            header = tarfile.TarInfo(name)
            header.size = size
            for field, value in values.items():
                setattr(header, field, value)
            tar.addfile(header, io.BytesIO(b"x" * size))
    content = bytearray(stream.getvalue())
    for place, put, correct in damages:
        content[place : place + len(put)] = put
        start = place // 512 * 512
        if correct:  # the sum of the header, so that the damage counts
            content[start + 148 : start + 156] = b" " * 8
            content[start + 148 : start + 156] = b"%06o\0 " % sum(content[start : start + 512])
    path = tmp_path_factory.mktemp("tar") / "a.tar"
    path.write_bytes(content[: len(content) - 512 * cut])
    assert result_or_message(partial(members_of, path)) == by_tarfile(path)


# ---- the index ------------------------------------------------------------------------------------------------------


def test_an_index_comes_back(tmp_path):
    digest = hashlib.sha256(b"").hexdigest()
    index = ShardIndex((Shard("000000.tar", 3, 10240, digest), Shard("b/é.tar", 1, 1, digest)), {"fps": 3.0, "a": "ü"})
    write_index(tmp_path, index)
    assert read_index(tmp_path) == index
    assert (index.samples, index.bytes) == (4, 10241)
    assert [path.name for path in tmp_path.iterdir()] == [INDEX]
    assert json.loads((tmp_path / INDEX).read_text())["shards"][0] == {
        "file": "000000.tar", "samples": 3, "bytes": 10240, "sha256": digest,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        ("{", ["not valid JSON"]),
        ("[]", ["version"]),
        ({"shards": [SHARD]}, ["version"]),
        ({"version": 2, "shards": [SHARD]}, ["version 2"]),
        ({"version": True, "shards": [SHARD]}, ["version True"]),
        ({"version": 1}, ["shards"]),
        ({"version": 1, "shards": []}, ["shards"]),
        ({"version": 1, "shards": {"a": SHARD}}, ["shards"]),
        ({"version": 1, "settings": [], "shards": [SHARD]}, ["settings"]),
        ({"version": 1, "shards": [SHARD, SHARD]}, ["shard 1", "twice"]),
        ({"version": 1, "shards": ["000000.tar"]}, ["shard 0", "not an object"]),
    ],
)
def test_an_index_that_is_refused(content, parts):
    text = content if isinstance(content, str) else json.dumps(content)
    assert_one_sentence(partial(parse_index, text, "x/shards.json"), ValueError, "x/shards.json", *parts)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(("file", name) for name in ("../x.tar", "/x.tar", "a/../x.tar", "./x.tar", "a//x.tar", "x\\y.tar", "x.zip")),
        *(("file", name) for name in ("http://x/y.tar", "pipe:cat x.tar", "", None, 3, "x\0.tar", "\ud800.tar")),
        *((name, value) for name in ("samples", "bytes") for value in (0, -1, 1.0, True, "3", None)),
        *(("sha256", value) for value in ("0" * 63, "G" * 64, "A" * 64, None, 0)),
    ],
)
def test_an_entry_that_is_refused(field, value):
    text = json.dumps({"version": 1, "shards": [{**SHARD, field: value}]})
    assert_one_sentence(partial(parse_index, text, "shards.json"), ValueError, "shards.json", "shard 0", f'"{field}"')
    text = json.dumps({"version": 1, "shards": [{name: entry for name, entry in SHARD.items() if name != field}]})
    assert_one_sentence(partial(parse_index, text, "shards.json"), ValueError, "shard 0", f'"{field}"')


def test_no_index(tmp_path):
    assert_one_sentence(partial(read_index, tmp_path), FileNotFoundError, str(tmp_path), INDEX)
    assert_one_sentence(partial(read_index, tmp_path / "none"), FileNotFoundError, "--shards", "none")
