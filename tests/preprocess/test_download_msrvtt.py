"""Fetching MSR-VTT: nothing without consent; broken and stubborn servers; a file with its final name is complete."""

import hashlib
import io
import os
import pty
import re
import shutil
import stat
import subprocess
import sys
import threading
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from dataloaders.msrvtt import read_split
from modules.clip_weights import RELEASES, find_weights
from tests.launch_scripts import commands_of, settings_of, write_recorder
from tests.small_data import SmallData

SCRIPT = Path(__file__).parents[2] / "preprocess" / "download_msrvtt.sh"
WEIGHTS = np.random.default_rng(0).bytes(300_000)
LISTS = ("MSRVTT_data.json", "MSRVTT_train.9k.csv", "MSRVTT_JSFUSION_test.csv")


@dataclass
class Server:
    """A web server with some files, which can misbehave and records its requests."""

    url: str
    files: dict[str, bytes] = field(default_factory=dict)
    ranges: bool = True
    breaks: int = 0  # how many answers end after half of their stated length
    status_after_break: int = 0
    status: int = 0  # if not 0, the answer to everything
    asked: list[tuple[str, str | None]] = field(default_factory=list)  # path, the header Range

    def handler(self) -> type[BaseHTTPRequestHandler]:
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                asked = self.headers["Range"]
                server.asked.append((self.path, asked))
                if server.status or self.path not in server.files:
                    self.send_error(server.status or 404)
                    return
                content = server.files[self.path]
                start = int(re.fullmatch(r"bytes=(\d+)-", asked)[1]) if asked and server.ranges else 0
                if start >= len(content):
                    self.send_error(416)
                    return
                self.send_response(206 if start else 200)
                if start:
                    self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
                self.send_header("Content-Length", str(len(content) - start))
                self.end_headers()
                rest = content[start:]
                if server.breaks:
                    server.breaks -= 1
                    server.status = server.status_after_break
                    rest = rest[: len(rest) // 2]
                self.wfile.write(rest)

            def log_message(self, *args: object) -> None:
                pass

        return Handler


def archive(members: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as target:
        for name, content in members.items():
            target.writestr(name, content)
    return buffer.getvalue()


def captions_archive(data: SmallData) -> bytes:
    return archive({f"msrvtt_data/{name}": (data.folder / name).read_bytes() for name in LISTS})


def videos_archive(data: SmallData) -> bytes:
    videos = {f"MSRVTT/videos/all/{path.name}": path.read_bytes() for path in data.videos.iterdir()}
    return archive({"MSRVTT/annotation/MSR_VTT.json": b"{}", "__MACOSX/._video0.mp4": b"no video", **videos})


@pytest.fixture
def server(small_data) -> Iterator[Server]:
    served = Server("")
    with ThreadingHTTPServer(("127.0.0.1", 0), served.handler()) as running:
        served.url = f"http://127.0.0.1:{running.server_port}"
        served.files = {
            "/clip.pt": WEIGHTS,
            "/captions.zip": captions_archive(small_data),
            "/videos.zip": videos_archive(small_data),
        }
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield served
        running.shutdown()


@dataclass(frozen=True)
class Place:
    """The folders that a test downloads to, and the environment that names them."""

    folder: Path
    url: str

    @property
    def data(self) -> Path:
        return self.folder / "data with space" / "msrvtt"

    @property
    def weights(self) -> Path:
        return self.folder / "pretrained"

    def run(self, *flags: str, stdin: int = subprocess.DEVNULL, **changed: str) -> subprocess.CompletedProcess[str]:
        values = {
            "PYTHON": sys.executable, "HOME": str(self.folder), "no_proxy": "*",
            "DATA_PATH": str(self.data), "pretrained_dir": str(self.weights),
            "clip_url": f"{self.url}/clip.pt", "clip_sha256": hashlib.sha256(WEIGHTS).hexdigest(),
            "captions_url": f"{self.url}/captions.zip", "videos_url": f"{self.url}/videos.zip", "n_videos": "17",
            "weights_mb": "1", "captions_mb": "1", "videos_mb": "1", "max_tries": "2", "retry_wait": "0",
        }  # fmt: skip
        # Loading modules/clip_weights.py takes seconds, so only tests about weights fetch them.
        return subprocess.run(
            ["bash", str(SCRIPT), *flags], env=os.environ | {"parts": "captions videos"} | values | changed,
            stdin=stdin, capture_output=True, text=True, check=False, timeout=300,
        )  # fmt: skip

    def content(self) -> set[str]:
        return {str(path.relative_to(self.data)) for path in self.data.rglob("*") if path.is_file()}


@pytest.fixture
def place(tmp_path, server) -> Place:
    return Place(tmp_path, server.url)


def error_of(done: subprocess.CompletedProcess[str]) -> str:
    """Return the only line of a failed run's stderr."""
    assert done.returncode in (1, 2), done
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ")
    assert line.endswith(".")
    return line


def test_everything_lies_where_msrvtt_sh_looks_for_it(place, server, small_data, tmp_path, capsys):
    done = place.run("--yes", parts="weights captions videos")
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    videos = {f"videos/{path.name}" for path in small_data.videos.iterdir()}
    assert place.content() == {*LISTS, *videos, "msrvtt_data.zip", "MSRVTT.zip"}
    assert all(
        (place.data / name).read_bytes() == (small_data.folder / name).read_bytes() for name in (*LISTS, *videos)
    )
    assert f"python preprocess/check_videos.py --train_csv {place.data}/MSRVTT_train.9k.csv" in done.stdout

    environment = {"DATA_PATH": str(place.data), "pretrained_dir": str(place.weights)}
    (command,) = commands_of(SCRIPT.parents[1] / "scripts/msrvtt.sh", write_recorder(tmp_path), **environment)
    settings = settings_of(command)
    files = {name: Path(settings[name]) for name in ("data_path", "features_path", "train_csv", "val_csv")}
    assert [len(read_split(split, **files)) for split in ("train", "test")] == [10, 7]
    weights = find_weights(settings["pretrained_clip_name"], settings["pretrained_dir"])
    assert weights == place.weights / "ViT-B-32.pt"
    assert weights.read_bytes() == WEIGHTS


def test_what_is_there_is_not_fetched_again(place, server):
    assert place.run("--yes").returncode == 0
    place.weights.mkdir()
    (place.weights / "ViT-B-32.pt").write_bytes(WEIGHTS)
    server.asked.clear()
    (place.data / "msrvtt_data.zip").unlink()
    done = place.run(parts="weights captions videos")  # nothing to fetch, so nothing to ask
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Already there: ") == 3
    assert server.asked == []
    assert "No longer needed: " + str(place.data / "MSRVTT.zip") in done.stdout
    assert str(place.data / "msrvtt_data.zip") not in done.stdout

    (place.weights / "ViT-B-32.pt").write_bytes(b"damaged since")
    assert "ViT-B-32.pt does not have the sha256" in error_of(place.run("--yes", parts="weights"))
    assert (place.weights / "ViT-B-32.pt").read_bytes() == b"damaged since"


@pytest.mark.parametrize("name", ["ViT-B/32", pytest.param("ViT-L/14", marks=pytest.mark.slow)])
def test_it_says_what_it_would_do_and_does_nothing_without_a_terminal(tmp_path, name):
    release = RELEASES[name]
    public = dict.fromkeys(["clip_url", "clip_sha256", "captions_url", "videos_url", "captions_mb"], "")
    place = Place(tmp_path, "")
    done = place.run(parts="weights captions videos", pretrained_clip_name=name, **public)
    assert error_of(done) == "error: nothing was fetched, because there is no terminal to ask on: pass --yes to agree."
    assert f"weights, about 1 MB: {release.url} -> {place.weights}/{release.file}\n" in done.stdout
    assert "captions, about 50 MB: https://github.com/ArrowLuo/CLIP4Clip/releases/" in done.stdout
    assert (
        f"videos, about 1 MB: https://www.robots.ox.ac.uk/~maxbain/frozen-in-time/data/MSRVTT.zip -> {place.data}"
        in (done.stdout)
    )
    assert f"about 1 MB in {place.weights} and 102 MB in {place.data}; " in done.stdout
    assert re.search(r"; [\d.]+ [MG]B and [\d.]+ [MG]B are free there\.\n", done.stdout)
    assert "their licences and terms apply" in done.stdout
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("answer", "fetched"), [("y\n", True), ("n\n", False), ("\n", False)])
def test_it_asks_at_a_terminal(place, server, answer, fetched):
    terminal, stdin = pty.openpty()
    try:
        os.write(terminal, answer.encode())
        done = place.run(stdin=stdin, parts="captions")
    finally:
        os.close(terminal)
        os.close(stdin)
    assert bool(server.asked) == fetched
    assert (place.data / "MSRVTT_data.json").exists() == fetched
    assert done.returncode == (0 if fetched else 1)
    assert fetched or "nothing was fetched: the answer was no." in done.stderr


def test_a_broken_download_resumes_within_a_run(place, server):
    server.breaks = 1
    done = place.run("--yes")
    assert done.returncode == 0, done.stderr
    half = len(server.files["/captions.zip"]) // 2
    assert server.asked == [("/captions.zip", None), ("/captions.zip", f"bytes={half}-"), ("/videos.zip", None)]


def test_a_broken_download_resumes_in_the_next_run(place, server):
    server.breaks, server.status_after_break = 1, 503
    assert "cannot be reached (curl's exit code is 22): run again later" in error_of(place.run("--yes"))
    half = len(server.files["/captions.zip"]) // 2
    assert place.content() == {"msrvtt_data.zip.part"}
    assert (place.data / "msrvtt_data.zip.part").stat().st_size == half
    server.asked.clear()
    server.status = 0
    assert place.run("--yes").returncode == 0
    assert server.asked[0] == ("/captions.zip", f"bytes={half}-")
    assert (place.data / "msrvtt_data.zip").read_bytes() == server.files["/captions.zip"]


def test_tries_count_only_while_nothing_comes(place, server):
    server.breaks = 6  # each brings half of what was missing
    assert place.run("--yes", max_tries="2").returncode == 0


def test_a_server_that_always_breaks_and_never_resumes(place, server):
    server.breaks, server.ranges = 1000, False
    assert "cannot be reached (curl's exit code is 18)" in error_of(place.run("--yes"))
    assert len(server.asked) < 10


@pytest.mark.parametrize("ranges", [False, True])
@pytest.mark.parametrize("left", ["a part of something else", "all", "too much"])
def test_a_part_that_cannot_be_continued_is_fetched_again(place, server, ranges, left):
    """A server without ranges sends whole files; a server with ranges has nothing beyond the end."""
    content = server.files["/captions.zip"]
    part = {"a part of something else": b"x" * 100, "all": content, "too much": content + b"x"}[left]
    place.data.mkdir(parents=True)
    (place.data / "msrvtt_data.zip.part").write_bytes(part)
    server.ranges = ranges
    done = place.run("--yes", captions_sha256=hashlib.sha256(content).hexdigest())
    if ranges and left == "a part of something else":
        assert "is not the file with the sha256" in error_of(done)
        done = place.run("--yes")
    assert done.returncode == 0, done.stderr
    assert (place.data / "msrvtt_data.zip").read_bytes() == content


def test_a_wrong_checksum(place, server):
    server.files["/clip.pt"] = b"<html>Not what you look for</html>"
    message = error_of(place.run("--yes", parts="weights"))
    assert f"{server.url}/clip.pt is not the file with the sha256" in message
    assert "set clip_url to another place" in message
    assert list(place.weights.iterdir()) == []


@pytest.mark.parametrize("status", [404, 403, 503])
def test_an_address_that_answers_with_an_error(place, server, status):
    server.status = status
    message = error_of(place.run("--yes"))
    assert f"{server.url}/captions.zip" in message
    assert "set captions_url to another place" in message
    assert len(server.asked) == (2 if status == 503 else 1)  # only a busy server is asked again
    assert place.content() == set()


def test_no_network(place, server):
    nowhere = "http://127.0.0.1:9/videos.zip"
    message = error_of(place.run("--yes", videos_url=nowhere))
    assert f"{nowhere} cannot be reached" in message
    assert "set videos_url to another place" in message
    assert {*LISTS} < place.content()


def test_a_file_in_place_of_an_address(place, tmp_path, server):
    (tmp_path / "captions.zip").write_bytes(server.files["/captions.zip"])
    assert place.run("--yes", parts="captions", captions_url=f"file://{tmp_path}/captions.zip").returncode == 0
    assert {*LISTS} < place.content()
    assert server.asked == []
    message = error_of(place.run("--yes", parts="videos", videos_url=f"file://{tmp_path}/none.zip"))
    assert "none.zip is not a valid address: set videos_url" in message


def test_too_little_room(place, server):
    message = error_of(place.run("--yes", videos_mb=str(10**9)))
    assert "about 2000000.0 GB are needed and the disk of" in message
    assert "set DATA_PATH and pretrained_dir to another disk" in message
    assert server.asked == []


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


def test_the_users_own_files_stay_unchanged(place, server):
    (place.data / "videos").mkdir(parents=True)
    (place.data / "videos" / "video0.mp4").write_bytes(b"mine")
    (place.data / "MSRVTT_data.json").write_text("mine")
    message = error_of(place.run("--yes"))
    assert "videos holds 1 videos and not 17: complete it, or move it away" in message
    assert [path for path, _ in server.asked] == ["/captions.zip"]
    assert (place.data / "MSRVTT_data.json").read_text() == "mine"
    assert (place.data / "MSRVTT_train.9k.csv").exists()


@pytest.mark.parametrize(
    ("flags", "changed", "message"),
    [
        (("--force",), {}, "--force is unknown: the only flag is --yes"),
        ((), {"parts": "captions films"}, 'parts="captions films" names films: choose among'),
        ((), {"parts": "weights", "pretrained_clip_name": "ViT-B/64"}, "ViT-B/64 is not one of ViT-B/32, ViT-B/16"),
    ],
)
def test_wrong_commands(place, server, flags, changed, message):
    done = place.run("--yes", *flags, **changed)
    assert done.returncode == 2
    assert message in error_of(done)
    assert server.asked == []


def test_weights_under_another_known_name_are_enough(place, server):
    (place.weights / "clip-vit-base-patch32").mkdir(parents=True)
    done = place.run(parts="weights")
    assert done.returncode == 0, done.stderr
    assert f"Already there: {place.weights}/clip-vit-base-patch32" in done.stdout
