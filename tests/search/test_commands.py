"""The commands of `python -m search` that make, change and check an index, from end to end, on small real files."""

import csv
import json
import os
import runpy
import shutil
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from modules.methods import METHODS
from modules.methods import method_options as settings_of
from search import Index
from search.__main__ import main, make_parser, method_options
from search.store import Store
from tests.search.commands import run_command
from tests.videos import write_video


@pytest.fixture
def run(trained, tmp_path, capfd):
    """Return a function that runs a command on the index of this test, and returns exit code, stdout and stderr."""
    return partial(run_command, tmp_path / "index", trained.checkpoint, capfd)


def content(folder: Path) -> dict[str, list]:
    """Return what the index holds: by file, id, windows and vectors."""
    with Index.open(folder) as index:
        ids, vectors = index.vectors()
        held: dict[str, list] = {}
        for id_, window, vector in zip(ids, index.windows(ids), vectors, strict=True):
            held.setdefault(window.file, []).append((id_, window.start, window.end, vector.tolist()))
        return held


def test_only_what_changed_is_read(run, videos, tmp_path):
    (videos / ".hidden.mp4").write_bytes(b"x")
    (videos / "coming.mp4.part").write_bytes(b"x")
    assert run("index", videos)[0] == 0
    before = content(tmp_path / "index")
    code, _, told = run("index", videos)
    assert code == 0
    assert "0 files to read" in told
    assert "1 hidden, 1 partial downloads" in told
    assert content(tmp_path / "index") == before

    (videos / "video11.mp4").rename(videos / "below" / "moved.mp4")  # keeps its vectors and its id
    os.utime(videos / "video12.mp4", (1, 1))  # touched
    shutil.copy(videos / "video14.mp4", videos / "video13.mp4")  # replaced
    (videos / "video15.mp4").unlink()
    code, _, told = run("refresh")
    assert code == 0, told
    assert "2 files to read, 1 moved, 1 gone" in told
    assert "1 files read, 1 windows" in told
    after = content(tmp_path / "index")
    here = {str(path) for path in videos.rglob("video1*.mp4")} | {str(videos / "below" / "moved.mp4")}
    assert set(after) == here
    assert after[str(videos / "below" / "moved.mp4")] == before[str(videos / "video11.mp4")]
    assert after[str(videos / "video12.mp4")] == before[str(videos / "video12.mp4")]
    replaced, same = after[str(videos / "video13.mp4")], after[str(videos / "video14.mp4")]
    assert replaced[0][3] == same[0][3]
    assert replaced[0][0] not in {row[0] for rows in before.values() for row in rows}  # an id never means another clip
    assert run("verify", "--full")[:2] == (0, "")


def test_an_unmounted_disk_removes_nothing(run, videos, tmp_path):
    run("index", videos)
    before = content(tmp_path / "index")
    for path in list(videos.glob("*.mp4"))[:4]:
        path.rename(tmp_path / path.name)
    code, _, told = run("index", videos)
    assert code == 2
    assert "4 of the 7 files" in told
    assert "--yes" in told
    assert content(tmp_path / "index") == before
    assert run("index", videos, "--yes")[0] == 0
    assert len(content(tmp_path / "index")) == 3
    shutil.rmtree(videos)
    code, _, told = run("refresh")
    assert code == 2
    assert "is no folder" in told


def test_broken_files_are_named_and_tried_again_when_asked(run, videos, tmp_path):
    whole = (videos / "video11.mp4").read_bytes()
    (videos / "video11.mp4").write_bytes(whole[: len(whole) // 2])
    (videos / "text.mp4").write_text("no video")
    (videos / "empty.mkv").write_bytes(b"")
    os.mkfifo(videos / "pipe.mp4")
    code, _, told = run("index", videos)
    assert code == 3
    assert "6 files read, 6 windows" in told
    assert "3 of 9 files could not be read" in told
    assert "1 not regular files" in told
    with open(tmp_path / "index" / "failures.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [Path(row["file"]).name for row in rows] == ["empty.mkv", "text.mp4", "video11.mp4"]
    assert not any(str(videos) in row["reason"] for row in rows)  # it stands beside it

    code, _, told = run("index", videos)
    assert code == 3  # they are still missing
    assert "0 files to read" in told
    assert "3 files could not be read before, or not all of (--retry tries again)" in told
    assert "text.mp4" not in told
    assert "failures.csv" in told
    told = run("index", videos, "--retry")[2]
    assert "3 files to read" in told
    assert "3 of 9 files could not be read" in told
    assert "text.mp4" in told
    (videos / "video11.mp4").write_bytes(whole)
    (videos / "text.mp4").unlink()
    (videos / "empty.mkv").unlink()
    assert run("index", videos)[0] == 0
    assert len(content(tmp_path / "index")) == 7
    assert not (tmp_path / "index" / "failures.csv").exists()


def test_names_that_break_lesser_tools(run, videos, small_data, tmp_path):
    names = [b"<img src=x onerror=alert(1)>.mp4", b"two\nlines.mp4", b"not \xff utf-8.MP4", b"-rf.mp4", b"a:b %s.mp4"]
    for path in videos.glob("*.mp4"):
        path.unlink()
    source = (small_data.videos / "video1.mp4").read_bytes()
    for number, name in enumerate(names):
        with open(os.path.join(os.fsencode(videos), name), "wb") as file:
            file.write(source + bytes(number + 1))  # other contents
    (videos / "link.mp4").symlink_to("/dev/zero")
    code, _, told = run("index", videos, "--follow")
    assert code == 0, told
    assert "6 files read" in told
    assert {os.path.basename(os.fsencode(path)) for path in content(tmp_path / "index")} == {*names, b"video10.mp4"}
    code, out, _ = run("query", "red", "--print0", "--in", "*.mp4", "--in", "*.MP4")
    assert {os.path.basename(os.fsencode(path)) for path in out.split("\0")[:-1]} >= {b"-rf.mp4", b"two\nlines.mp4"}
    hits = json.loads(run("query", "red", "--json")[1])["hits"]
    assert {os.fsencode(hit["file"]) for hit in hits} >= {os.fsencode(videos / "a:b %s.mp4")}
    for target in ("vectors.npz", "vectors.json"):
        assert run("export", "--to", tmp_path / target)[0] == 0
    with np.load(tmp_path / "vectors.npz") as written:
        assert {os.fsencode(name) for name in written["files"].tolist()} >= {os.fsencode(videos / "two\nlines.mp4")}
        assert written["vectors"].shape == (6, 24)
    assert len(json.loads((tmp_path / "vectors.json").read_text())["windows"]) == 6


def test_status_and_forget(run, videos, tmp_path):
    run("index", videos)
    status = json.loads(run("status", "--json")[1])
    assert status["roots"] == [str(videos)]
    assert status["models"][0] | {"key": "", "source": "", "hours": 0, "engine": {}} == {
        "name": "vpt", "key": "", "method": "vpt", "source": "", "window": pytest.approx(5 / 3), "files": 7,
        "stride": pytest.approx(5 / 6), "windows": 7, "hours": 0, "failed": 0, "engine": {}, "cut": "windows",
    }  # fmt: skip
    assert "model vpt" in run("status")[1]
    assert run("forget", videos / "below")[0] == 0
    assert run("forget", videos / "video11.mp4")[0] == 0
    assert len(content(tmp_path / "index")) == 5
    assert "holds nothing there" in run("forget", videos / "video11.mp4")[2]
    assert "2 files to read" in run("refresh")[2]
    assert run("forget", "--model", "vpt")[0] == 0
    with Store(tmp_path / "index") as store:
        assert not store.models()
        assert store.files()
    assert "holds nothing yet" in run("query", "red")[2]
    assert "is no folder" in run("index", tmp_path / "nowhere")[2]


def test_verify_sees_changes(run, videos, tmp_path):
    run("index", videos)
    path, status = videos / "video11.mp4", os.stat(videos / "video11.mp4")
    changed = bytearray(path.read_bytes())
    changed[-1] ^= 1
    path.write_bytes(changed)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))  # nothing to see but the content
    (videos / "video12.mp4").unlink()
    code, out, _ = run("verify")
    assert (code, out.count("\n")) == (3, 1)
    assert "video12.mp4" in out
    code, out, _ = run("verify", "--full")
    assert (code, out.count("\n")) == (3, 2)
    assert "other content" in out


def test_a_dry_run_writes_nothing(run, videos, tmp_path):
    code, _, told = run("index", videos, "--dry_run")
    assert code == 0, told
    assert "7 files" in told
    assert "minutes, measured on" in told
    assert not (tmp_path / "index").exists()


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["My", "Videos"], "unknown argument Videos: put a text or a path that has spaces in quotes"),
        (["videos", "--windoww", "4"], "unknown argument --windoww, did you mean --window;"),
        (["videos", "--checkpiont=a.safetensors"], "unknown argument --checkpiont, did you mean --checkpoint;"),
        (["videos", "--colour"], "unknown argument --colour;"),
    ],
)
def test_slips_in_the_arguments_of_index(arguments, part, tmp_path, capfd):
    assert main(["index", *arguments, "--index", str(tmp_path / "index")]) == 2
    assert part in capfd.readouterr().err


def test_no_setting_of_a_method_is_taken_for_a_slip():
    parser = make_parser().parse_args(["index", "videos"]).parser
    for name, method in METHODS.items():
        words = [word for option in settings_of(method) for word in (f"--{option.name}", "1")]
        assert len(method_options(words, parser)) == len(words) // 2, name


def test_a_bare_clip(small_data, videos, tmp_path, capfd):
    flags = ["--index", str(tmp_path / "index"), "--pretrained_clip_name", str(small_data.clip), "--jobs", "1"]
    assert main(["index", str(videos), *flags]) == 0
    assert "does not know their order" in capfd.readouterr().err
    assert main(["query", "a red half", "--index", str(tmp_path / "index")]) == 0
    assert len(capfd.readouterr().out.split()) == 7
    picture = np.zeros((48, 64, 3), np.uint8)
    picture[:, :32] = (40, 60, 220)
    import cv2

    cv2.imwrite(str(tmp_path / "red.png"), picture[..., ::-1])
    assert main(["query", "--image", str(tmp_path / "red.png"), "--index", str(tmp_path / "index")]) == 0
    assert "nothing moves in a picture" in capfd.readouterr().err
    assert main(["index", str(videos), *flags, "--layers", "3"]) == 2
    assert "--layers is unknown without --checkpoint" in capfd.readouterr().err


@pytest.mark.parametrize(("given", "used"), [("", "PASSIVE"), ("ACTIVE", "ACTIVE")])
def test_threads_that_wait_leave_the_cores_to_decoding(monkeypatch, capfd, given, used):
    monkeypatch.setenv("OMP_WAIT_POLICY", given)
    if not given:
        monkeypatch.delenv("OMP_WAIT_POLICY")
    monkeypatch.setattr(sys, "argv", ["search", "--help"])
    with pytest.raises(SystemExit):
        runpy.run_module("search", run_name="__main__")
    assert os.environ["OMP_WAIT_POLICY"] == used


def test_without_a_checkpoint_the_only_model_is_taken(trained, small_data, videos, tmp_path, capfd):
    """Whoever names a model once need not name it again, not even for another folder."""
    flags = ["--index", str(tmp_path / "index"), "--jobs", "1"]
    below = videos / "below"

    def models() -> dict[str, int]:
        with Store(tmp_path / "index") as store:
            return {model.name: store.totals(model)[1] for model in store.models()}

    assert main(["index", str(below), *flags, "--checkpoint", str(trained.checkpoint)]) == 0
    assert main(["index", str(videos), *flags]) == 0
    assert models() == {"vpt": 7}
    capfd.readouterr()
    assert main(["index", str(videos), *flags, "--window", "0.5"]) == 2
    assert "the model vpt of the index is another one" in capfd.readouterr().err
    assert main(["index", str(below), *flags, "--pretrained_clip_name", str(small_data.clip)]) == 0
    capfd.readouterr()
    assert main(["index", str(videos), *flags]) == 2
    assert "has several models: pass --model with one of" in capfd.readouterr().err
    assert main(["index", str(videos), *flags, "--model", "clip"]) == 0
    assert models() == {"vpt": 7, "clip": 7}


def test_a_folder_without_videos(run, videos, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "notes.txt").write_text("a text")
    for flags in ([], ["--dry_run"]):
        code, _, told = run("index", tmp_path / "empty", *flags)
        assert code == 0
        assert "0 videos" in told
        assert "nothing to index: files count by their endings, such as .mp4" in told


def test_a_picture_that_stands_still_is_one_window(run, tmp_path):
    """So is a gap between the time stamps of two frames."""
    videos = tmp_path / "still"
    videos.mkdir()
    frames = np.repeat(np.random.default_rng(0).integers(0, 255, (3, 32, 48, 3), dtype=np.uint8), 12, axis=0)
    write_video(videos / "three.mkv", frames, fps=1, codec="ffv1")
    code, _, told = run("index", videos, "--window", "2", "--stride", "1")
    assert code == 0, told
    (windows,) = content(tmp_path / "index").values()
    assert [window[1:3] for window in windows] == [(0, 12), (11, 13), (12, 24), (23, 25), (24, 36)]
