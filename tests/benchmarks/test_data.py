"""The benchmark of the loader measures all sources on the same clips."""

import json
import re

import pytest
import torch

from benchmarks.data import MADE, SOURCES, Row, format_rows, main, write_made_clip
from dataloaders.decode import read_frames
from tests.videos import grey_ramp, write_video


@pytest.fixture(autouse=True)
def same_threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_made_clips_resemble_re_encoded_ones(tmp_path):
    frames, n_frames, fps = read_frames(write_made_clip(tmp_path / "a.mp4", 0, seconds=4), lambda n, fps: range(n))
    assert (n_frames, fps) == (12, 3.0)
    assert frames.shape == (12, 224, 320, 3)
    assert (frames[0].astype(int) - frames[6]).std() > 20  # it moves


def test_a_small_run(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("benchmarks.data.write_made_clip", lambda path, seed: write_video(path, grey_ramp(9)))
    (tmp_path / "videos").mkdir()
    for number in range(3):
        write_video(tmp_path / "videos" / f"{number}.mp4", grey_ramp(12))
    flags = ["--clips", "2", "--max_frames", "3", "--batch_size", "4", "--num_thread_reader", "0", "--repeats", "2"]
    output = tmp_path / "out" / "numbers.json"
    assert main(["--videos", str(tmp_path / "videos"), "--image_size", "16", *flags, "--output", str(output)]) == 0
    numbers = json.loads(output.read_text())
    assert [(row["data"], row["source"]) for row in numbers["rows"]] == [
        (data, source) for data in (tmp_path.name, MADE) for source in SOURCES
    ]
    for row in numbers["rows"]:
        assert all(row[name] > 0 for name in ("megabytes", "storage", "loader"))
    raw = numbers["rows"][SOURCES.index("raw")]["megabytes"]
    assert raw == pytest.approx(12 * 3 * 16 * 16 / 1e6, abs=0.001)
    assert numbers["settings"]["clips"] == 2
    assert numbers["commit"]
    printed = capsys.readouterr().out
    assert len(re.findall(r"\(1\.0x\)", printed)) >= 4


def test_ratios_are_to_the_video_files_of_the_same_clips():
    rows = [Row("a", "video files", 1, 10, 20), Row("a", "raw", 9, 1000, 50), Row("b", "video files", 1, 4, 5)]
    _, first, second, third = format_rows(rows).splitlines()
    assert first.split()[-4:] == ["10", "(1.0x)", "20", "(1.0x)"]
    assert second.split()[-4:] == ["1,000", "(100.0x)", "50", "(2.5x)"]
    assert third.split()[-4:] == ["4", "(1.0x)", "5", "(1.0x)"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--clips", "0"], "--clips 0 is out of range"),
        (["--num_thread_reader", "-1"], "--num_thread_reader -1 is out of range"),
        (["--clip", "3"], "did you mean --clips?"),
        (["--videos", "none"], "--videos none holds no video file"),
    ],
)
def test_wrong_commands(flags, message, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("benchmarks.data.write_made_clip", lambda path, seed: write_video(path, grey_ramp(3)))
    assert main(flags) == 2
    printed = capsys.readouterr().err
    assert message in printed
    assert printed.splitlines()[-1].startswith("error: ")
