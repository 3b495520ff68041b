"""Commands that write at their end check the place before they start to work."""

import sys

import pytest

from benchmarks import data, epoch, growth, methods, step
from engine.flags import check_file, check_folder
from preprocess import check_videos, train_small_clip
from tools import report, visualize

WRITERS = {
    "benchmark_data": (data.main, [], "--output"),
    "benchmark_epoch": (epoch.main, [], "--output"),
    "benchmark_growth": (growth.main, ["--chart", ""], "--output"),
    "benchmark_growth, chart": (growth.main, ["--output", ""], "--chart"),
    "benchmark_methods": (methods.main, ["--chart", ""], "--output"),
    "benchmark_methods, chart": (methods.main, ["--output", ""], "--chart"),
    "visualize": (visualize.main, ["maps", "none.safetensors"], "--output"),
    "report": (report.main, ["none.jsonl"], "--curves"),
    "train_small_clip": (train_small_clip.main, [], "--output"),
    "check_videos": (
        check_videos.main,
        ["--datatype", "custom", "--val_csv", "none.csv", "--split", "test", "--features_path", "none"],
        "--output",
    ),
}


@pytest.mark.parametrize("command", WRITERS)
def test_every_command_checks_its_output_first(tmp_path, capsys, command):
    main, flags, flag = WRITERS[command]
    (tmp_path / "file").touch()
    path = tmp_path / "file" / ("x.safetensors" if command == "train_small_clip" else "x.png")
    assert main([*flags, flag, str(path)]) == 2
    message = f"error: {flag} {path.parent}: {path.parent} is a file and not a folder; name another place\n"
    assert capsys.readouterr().err == message


def test_a_chart_without_matplotlib(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setattr("benchmarks.common.find_spec", lambda name: None)
    for main in (growth.main, methods.main):
        assert main(["--output", "", "--chart", str(tmp_path / "chart.png")]) == 2
        assert "--chart needs matplotlib: pip install matplotlib" in capsys.readouterr().err
        assert main(["--output", "", "--chart", str(tmp_path / "chart.gif")]) == 2
        assert "give a name that ends in .png, .pdf or .svg" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("main", "flags", "message"),
    [
        (methods.main, ["--pretrained_clip_name", "none.pt"], "There are no CLIP weights at none.pt"),
        (
            methods.main,
            ["--max_words", "78"],
            "--max_words 78 is out of range: it takes a number",
        ),
        (
            growth.main,
            ["--max_words", "78"],
            "--max_words 78 is out of range: it takes a number",
        ),
        (step.main, ["--max_words", "78"], "--max_words 78 is out of range: it takes a number"),
        (data.main, ["--videos", "none"], "--videos none holds no video file"),
    ],
)
def test_benchmarks_check_their_inputs_first(capsys, monkeypatch, main, flags, message):
    """Check the errors before the benchmarks measure peaks and make clips, which takes minutes."""
    monkeypatch.setattr("benchmarks.methods.in_own_process", None)
    monkeypatch.setattr("benchmarks.data.write_made_clip", None)
    monkeypatch.setattr("benchmarks.step.measure", None)
    assert main(flags) == 2
    printed = capsys.readouterr().err
    assert printed.startswith(f"error: {message}")
    assert printed.count("\n") == 1


def test_good_places_stay_unchanged(tmp_path):
    check_folder("--output_dir", tmp_path / "a" / "b")
    check_file("--output", tmp_path / "a" / "b.csv")
    there = tmp_path / "c.csv"
    there.write_text("content")
    check_file("--output", there, (".csv", ".txt"))
    assert there.read_text() == "content"
    assert [path.name for path in tmp_path.iterdir()] == ["c.csv"]


def test_a_folder_that_refuses_files(tmp_path):
    """Check /proc, where even root cannot create files."""
    for place in ("/proc", "/proc/run"):
        with pytest.raises(ValueError, match=r"--output_dir /proc.*: cannot be written to \(.*\); name another place"):
            check_folder("--output_dir", type(tmp_path)(place))
