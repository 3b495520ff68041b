"""Checking a data set's videos: every kind of problem is found, named and counted, as training would meet it."""

import csv
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from preprocess.check_videos import main
from preprocess.make_moving_actions import main as make_moving_actions
from tests.small_data import SmallData, write_small_data
from tests.videos import grey_ramp, write_video

ROOT = Path(__file__).parents[2]


@pytest.fixture
def data(tmp_path: Path) -> SmallData:
    """Training videos 0..3 and test videos 4..6, of 5 frames each."""
    return write_small_data(tmp_path / "data with space", n_train=4, n_test=3)


def check(data: SmallData, *flags: str) -> int:
    files = data.flags()[:8]
    assert files[-2] == "--features_path"
    return main([*files, "--jobs", "2", "--max_frames", "5", *flags])


def report(data: SmallData) -> dict[str, dict[str, str]]:
    with (data.folder / "reports" / "report.csv").open(newline="", encoding="utf-8") as file:
        return {Path(row["path"]).name: row for row in csv.DictReader(file)}


def noise(path: Path, part: float) -> None:
    """Write a video of 60 frames of which only a part is on disk."""
    whole = write_video(path, np.random.default_rng(0).integers(0, 256, (60, 64, 64, 3), dtype=np.uint8)).read_bytes()
    path.write_bytes(whole[: int(len(whole) * part)])


@pytest.mark.parametrize(("split", "count"), [("train", 4), ("test", 3), ("all", 7)])
def test_a_whole_data_set(data, capsys, split, count):
    assert check(data, "--split", split) == 0
    printed = capsys.readouterr()
    assert printed.out == f"{count} videos: {count} ok, 0 short, 0 cut, 0 broken, 0 missing.\n"
    assert "video" not in printed.err.replace("video/s", "")


def test_the_validation_split(data, capsys):
    path = data.folder / "own.csv"
    path.write_text("path,caption,split\nvideo0.mp4,one,val\nvideo1.mp4,two,val\nvideo4.mp4,three,test\n")
    flags = ["--datatype", "custom", "--features_path", str(data.videos), "--val_csv", str(path), "--split", "val"]
    assert main([*flags, "--jobs", "1", "--max_frames", "5"]) == 0
    assert capsys.readouterr().out.startswith("2 videos: 2 ok, ")
    assert check(data, "--split", "val") == 2
    assert "MSR-VTT has no split 'val': pass train or test." in capsys.readouterr().err


def test_every_kind_of_trouble(data, capsys):
    (data.videos / "video0.mp4").unlink()
    (data.videos / "video1.mp4").write_text("<html>404 Not Found</html>\n" * 50)
    write_video(data.videos / "video2.mp4", grey_ramp(4))
    noise(data.videos / "video4.mp4", 0.9)
    noise(data.videos / "video5.mp4", 0.5)
    (data.videos / "video6.mp4").unlink()
    assert check(data, "--output", str(data.folder / "reports" / "report.csv")) == 1
    rows = report(data)
    expected = ["missing", "broken", "short", "ok", "cut", "broken", "missing"]
    assert [rows[f"video{n}.mp4"]["status"] for n in range(7)] == expected
    assert "has 4 frames, less than --max_frames 5" in rows["video2.mp4"]["reason"]
    csv_path = data.folder / "MSRVTT_train.9k.csv"
    assert (
        f"video0.mp4 is missing, also under any other video extension ({csv_path} lists it)"
        in rows["video0.mp4"]["reason"]
    )
    assert "of its 60 frames can be decoded" in rows["video4.mp4"]["reason"]
    whole = rows["video3.mp4"]
    assert [whole[key] for key in ("frames", "fps", "width", "height", "reason")] == ["5", "3.0", "64", "48", ""]

    printed = capsys.readouterr()
    assert "7 videos: 1 ok, 1 short, 1 cut, 2 broken, 2 missing." in printed.out
    lines = [line for line in printed.err.splitlines() if line.startswith(("missing:", "broken:", "cut:", "short:"))]
    assert [line.partition(":")[0] for line in lines] == ["missing"] * 2 + ["broken"] * 2 + ["cut", "short"]
    assert all(str(data.videos) in line for line in lines)


def test_short_videos_are_no_failure(data):
    write_video(data.videos / "video2.mp4", grey_ramp(1))
    assert check(data) == 0


def test_other_extensions_count_where_the_reader_takes_them(data, capsys):
    (data.videos / "video0.mp4").unlink()
    (data.videos / "video1.mp4").unlink()
    write_video(data.videos / "video1.mkv", grey_ramp(5))
    assert check(data) == 1
    assert "6 ok, 0 short, 0 cut, 0 broken, 1 missing" in capsys.readouterr().out


def test_many_problems_are_cut_short(data, capsys, monkeypatch):
    monkeypatch.setattr("preprocess.check_videos.SHOWN_PROBLEMS", 2)
    for path in data.videos.iterdir():
        path.unlink()
    assert check(data) == 1
    errors = capsys.readouterr().err
    assert errors.count("missing: ") == 2
    assert "... and 5 more: pass --output report.csv" in errors


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--val_csv", "none.csv"), "--val_csv none.csv is not a file"),
        (("--data_path", "none.json"), "--data_path none.json is not a file"),
        (("--features_path", "nowhere"), "--features_path nowhere is not a directory"),
        (("--max_frames", "0"), "--max_frames must be 1 or more"),
        (("--jobs", "0"), "--jobs must be 1 or more"),
    ],
)
def test_wrong_commands(data, capsys, flags, message):
    assert check(data, *flags) == 2
    assert message in capsys.readouterr().err


def test_files_that_a_split_does_not_need_may_be_left_out(data, capsys):
    files = ["--features_path", str(data.videos), "--val_csv", str(data.folder / "MSRVTT_JSFUSION_test.csv")]
    assert main([*files, "--split", "test"]) == 0
    assert main(files) == 2
    assert "the split train needs --train_csv and --data_path" in capsys.readouterr().err


def test_as_a_command(data):
    command = [sys.executable, "preprocess/check_videos.py", *data.flags()[:8]]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert done.stdout == "7 videos: 0 ok, 7 short, 0 cut, 0 broken, 0 missing.\n"
    assert "Traceback" not in done.stderr


def test_a_data_set_of_recognition(tmp_path, capsys):
    world = tmp_path / "world"
    tiny = ["--train_groups", "2", "--test_groups", "1", "--image_size", "32", "--jobs", "1"]
    assert make_moving_actions(["--output_dir", str(world), *tiny]) == 0
    (world / "videos/Hops/v_Hops_g02_c01.mp4").write_text("no video")
    files = ["--task", "recognition", "--data_path", str(world), "--features_path", str(world / "videos")]
    assert main([*files, "--max_frames", "8"]) == 1
    printed = capsys.readouterr()
    assert "48 videos: 47 ok, 0 short, 0 cut, 1 broken, 0 missing." in printed.out
    assert "v_Hops_g02_c01.mp4 is not a video" in printed.err
    assert main([*files, "--split", "test", "--labels_csv", str(world / "labels.csv")]) == 0
    assert "16 videos:" in capsys.readouterr().out
    assert main([*files, "--fold", "2"]) == 2
    assert "trainlist02.txt" in capsys.readouterr().err
    assert main([*files, "--task", "retrieval", "--fold", "2"]) == 2
    assert "--fold has no effect with --task retrieval" in capsys.readouterr().err
    assert main([*files, "--datatype", "msrvtt"]) == 2
    assert "--datatype msrvtt is not one of: hmdb51, ucf101, ssv2, kinetics400" in capsys.readouterr().err
