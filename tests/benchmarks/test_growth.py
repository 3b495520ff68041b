"""The curves over frames and clips: their sizes, where a curve leaves the line, and the command's files."""

import dataclasses
import json

import pytest

from benchmarks.growth import Point, Settings, curves, leaves_the_line, main
from benchmarks.operations import count_step
from modules.clip import ARCHITECTURES
from tests.small_data import write_small_data


def point(attention: str, batch_size: int, frames: int, gflop: float) -> Point:
    return Point(attention, batch_size, frames, 1.0, (1.0, 1.0), gflop)


def test_two_curves_start_at_the_same_size():
    assert Settings(frames="4,2", batches="1,3,3").sizes == [(1, 2), (1, 4), (3, 2)]


def test_where_a_curve_leaves_the_line():
    straight = [point("frame", 1, frames, 2.0 * frames) for frames in (4, 8, 16)]
    bent = [point("joint", 1, frames, 2.0 * frames + 0.02 * frames**2) for frames in (4, 8, 16)]
    assert leaves_the_line(straight) is None
    assert leaves_the_line(bent[::-1]) == 16
    assert curves([*straight, *bent, point("joint", 2, 4, 1.0)], "joint") == (
        bent,
        [bent[0], point("joint", 2, 4, 1.0)],
    )


def test_only_with_attention_frame_do_operations_grow_in_proportion_to_frames():
    architecture = dataclasses.replace(ARCHITECTURES["ViT-B/32"], vision_layers=2, text_layers=2)
    frame, joint = (
        [count_step("stop", architecture, frames, 3, attention=attention) for frames in (8, 16, 32)]
        for attention in ("frame", "joint")
    )
    assert frame[2] - frame[1] == pytest.approx(2 * (frame[1] - frame[0]), rel=1e-9)
    assert joint[2] - joint[1] > 2.1 * (joint[1] - joint[0])


def test_the_whole_command(tmp_path, capsys):
    data = write_small_data(tmp_path / "data", 1, 1)
    flags = ["--pretrained_clip_name", str(data.clip), "--max_words", "8", "--repeats", "1"]
    files = ["--output", str(tmp_path / "a/b.json"), "--chart", str(tmp_path / "c/d.png")]
    assert main([*flags, *files, "--frames", "2,4", "--batches", "1,2"]) == 0
    printed = capsys.readouterr().out
    written = json.loads((tmp_path / "a/b.json").read_text())
    sizes = [(found["attention"], found["batch_size"], found["frames"]) for found in written["points"]]
    assert sizes == [(attention, *size) for attention in ("frame", "joint") for size in ((1, 2), (1, 4), (2, 2))]
    assert min(found["step"] for found in written["points"]) > 0
    assert "attention joint: a frame costs over 1.1 times its operations in the shortest clip from T = 4 on" in printed
    assert (tmp_path / "c/d.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--frames", "4,x"], "--frames '4,x' is not a list such as 4,8,16 of at least 2"),
        (["--frames", "1"], "--frames '1' is not a list such as 4,8,16 of at least 2"),
        (["--batches", ""], "--batches '' is not a list"),
        (["--repeats", "0"], "--repeats 0 is out of range"),
    ],
)
def test_wrong_commands(flags, message, capsys):
    assert main(flags) == 2
    printed = capsys.readouterr()
    assert printed.err.startswith("error: ")
    assert message in printed.err
