"""Fetching MSR-VTT: archives that are broken, too large or hostile, and those that lack something."""

import io
import shutil
import stat
import zipfile
from collections.abc import Iterator

import numpy as np
import pytest

from tests.preprocess.msrvtt_server import LISTS, Place, Server, archive, error_of, serving


@pytest.fixture
def server(small_data) -> Iterator[Server]:
    with serving(small_data) as served:
        yield served


@pytest.fixture
def place(tmp_path, server) -> Place:
    return Place(tmp_path, server.url)


@pytest.mark.parametrize(
    "answer", [b"<html>Please log in</html>", b"<!DOCTYPE html>" + b" " * 10**5, b"\x1f\x8b", bytes(9)]
)
def test_an_answer_that_is_not_an_archive_never_gets_the_name_of_one(place, server, answer):
    whole = server.files["/captions.zip"]
    server.files["/captions.zip"] = answer
    (place.folder / "captions.zip").write_bytes(answer)
    for url in (server.url, f"file://{place.folder}"):
        message = error_of(place.run("--yes", captions_url=f"{url}/captions.zip"))
        assert "msrvtt_data.zip is not a complete zip file" in message
        assert "set captions_url to another place" in message
        assert place.content() == set()
    server.files["/captions.zip"] = whole
    assert place.run("--yes", parts="captions").returncode == 0


def test_an_archive_without_its_end_keeps_the_name_of_a_part(place, server):
    whole = server.files["/captions.zip"]
    (place.folder / "cut.zip").write_bytes(whole[: len(whole) // 2])
    cut = f"file://{place.folder}/cut.zip"
    assert "sent only the start of one; run again" in error_of(place.run("--yes", captions_url=cut))
    assert place.content() == {"msrvtt_data.zip.part"}
    assert place.run("--yes", parts="captions").returncode == 0
    assert server.asked == [("/captions.zip", f"bytes={len(whole) // 2}-")]
    assert (place.data / "msrvtt_data.zip").read_bytes() == whole


def test_an_archive_that_unpacks_to_more_than_it_may_is_not_unpacked(place, server):
    bomb = archive({f"{n}/MSRVTT_train.{n}.csv": bytes(2 * 10**6) for n in range(3)})
    assert len(bomb) < 10_000
    server.files["/captions.zip"] = bomb
    message = error_of(place.run("--yes", captions_most_mb="5"))
    assert "msrvtt_data.zip would unpack to 6 MB, more than 5 MB" in message
    assert "set captions_url to another place" in message
    assert place.content() == {"msrvtt_data.zip"}
    message = error_of(place.run("--yes", captions_most_mb="6"))
    assert "holds no MSRVTT_data.json" in message


def test_an_archive_that_states_more_than_the_disk_has_is_not_unpacked(place, server):
    """Only the archive's list states this size; the file itself is small."""
    content = bytearray(archive({"MSRVTT_data.json": b"{}"}))
    entry = content.rindex(b"PK\x01\x02")
    content[entry + 24 : entry + 28] = (2**32 - 2).to_bytes(4, "little")  # APPNOTE 4.3.12: uncompressed size
    server.files["/captions.zip"] = bytes(content)
    message = error_of(place.run("--yes", captions_most_mb="4000"))
    assert "would unpack to 4,295 MB, more than 4000 MB" in message
    most = str(shutil.disk_usage(place.folder).free // 10**6 + 10**6)
    disk_full = "import collections, shutil; u = collections.namedtuple('u', 'total used free'); "
    disk_full += "shutil.disk_usage = lambda path: u(10**9, 10**9 - 10**6, 10**6)"
    (place.folder / "sitecustomize.py").write_text(disk_full)
    message = error_of(place.run("--yes", captions_most_mb=most, PYTHONPATH=str(place.folder)))
    assert "would unpack to 4,295 MB and the disk has 1 MB free: make room" in message
    assert place.content() == {"msrvtt_data.zip"}


def test_an_archive_that_is_larger_than_it_may_be_is_not_fetched(place, server):
    server.files["/captions.zip"] = archive({"MSRVTT_data.json": np.random.default_rng(0).bytes(1_100_000)})
    message = error_of(place.run("--yes", captions_most_mb="1"))
    assert "captions.zip is larger than the 1 MB that" in message
    assert place.content() == set()


def test_paths_and_links_in_an_archive_lead_nowhere(place, server, small_data):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as target:
        for name in LISTS:
            target.writestr(f"../../../{name}", (small_data.folder / name).read_bytes())
        link = zipfile.ZipInfo("MSRVTT_train.7k.csv")
        link.external_attr = (stat.S_IFLNK | 0o777) << 16
        target.writestr(link, "/etc/passwd")
    server.files["/captions.zip"] = buffer.getvalue()
    assert place.run("--yes", parts="captions").returncode == 0
    assert place.content() == {*LISTS, "msrvtt_data.zip"}
    assert {path.name for path in place.folder.rglob("*") if path.is_file()} == {*LISTS, "msrvtt_data.zip"}


def test_two_files_of_one_name_in_an_archive(place, server):
    lists = dict.fromkeys(LISTS, b"x")
    server.files["/captions.zip"] = archive({**lists, "other/MSRVTT_data.json": b"y"})
    message = error_of(place.run("--yes"))
    assert "holds two files MSRVTT_data.json (MSRVTT_data.json, other/MSRVTT_data.json)" in message
    server.files["/captions.zip"] = archive({**lists, "other/MSRVTT_data.json": b"x"})
    (place.data / "msrvtt_data.zip").unlink()
    assert place.run("--yes", parts="captions").returncode == 0


def test_an_encrypted_archive(place, server):
    content = bytearray(server.files["/captions.zip"])
    for header, flags in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):  # APPNOTE 4.3.7 and 4.3.12: bit 0, encrypted
        start = -1
        while (start := content.find(header, start + 1)) >= 0:
            content[start + flags] |= 1
    server.files["/captions.zip"] = bytes(content)
    assert "is not a complete zip file (File" in error_of(place.run("--yes"))


def test_a_damaged_archive(place, server):
    content = bytearray(server.files["/videos.zip"])
    content[len(content) // 2] ^= 0xFF
    server.files["/videos.zip"] = bytes(content)
    assert "MSRVTT.zip is not a complete zip file" in error_of(place.run("--yes"))
    assert not (place.data / "videos").exists()
    # The message says to delete the archive, and that is enough.
    (place.data / "MSRVTT.zip").unlink()
    content[len(content) // 2] ^= 0xFF
    server.files["/videos.zip"] = bytes(content)
    assert place.run("--yes").returncode == 0


def test_an_archive_without_a_list(place, server):
    server.files["/captions.zip"] = archive({"msrvtt_data/MSRVTT_train.9k.csv": b"video_id\n"})
    assert "msrvtt_data.zip holds no MSRVTT_data.json" in error_of(place.run("--yes"))
    assert not (place.data / "MSRVTT_train.9k.csv").exists()


def test_an_archive_with_too_few_videos(place, server):
    assert "MSRVTT.zip holds 17 videos and not 10000" in error_of(place.run("--yes", n_videos="10000"))
    assert not (place.data / "videos").exists()


def test_a_half_unpacked_archive_is_unpacked_again(place, server, small_data):
    assert place.run("--yes").returncode == 0
    (place.data / "videos").rename(place.data / ".videos.partial")
    (place.data / ".videos.partial" / "video0.mp4").write_bytes(b"half of")
    server.asked.clear()
    assert place.run("--yes").returncode == 0
    assert server.asked == []
    assert (place.data / "videos/video0.mp4").read_bytes() == (small_data.videos / "video0.mp4").read_bytes()
    assert not (place.data / ".videos.partial").exists()
