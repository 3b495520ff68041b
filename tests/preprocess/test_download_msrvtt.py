"""Fetching MSR-VTT: nothing without consent; broken and stubborn servers; a file with its final name is complete."""

import hashlib
import os
import pty
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from dataloaders.msrvtt import read_split
from modules.clip_weights import RELEASES, find_weights
from tests.launch_scripts import commands_of, settings_of, write_recorder
from tests.preprocess.msrvtt_server import LISTS, SCRIPT, WEIGHTS, Place, Server, error_of, serving


@pytest.fixture
def server(small_data) -> Iterator[Server]:
    with serving(small_data) as served:
        yield served


@pytest.fixture
def place(tmp_path, server) -> Place:
    return Place(tmp_path, server.url)


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
