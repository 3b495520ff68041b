"""The benchmark of a folder with mixed files."""

import json

import av
import pytest

from benchmarks.search_folder import CODECS, FRAMES_PER_SECOND, main, make_clips
from tests.videos import grey_ramp, write_video


@pytest.mark.slow
def test_clips_of_six_codecs(tmp_path):
    folder = tmp_path / "videos"
    folder.mkdir()
    broken = make_clips(folder, 12, 4)
    assert len(broken) == 4
    codecs, lengths = set(), set()
    for path in sorted(path for path in folder.iterdir() if path.name not in broken):
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            codecs.add((stream.codec_context.name, path.suffix))
            lengths.add(len(list(container.decode(stream))) / FRAMES_PER_SECOND)
    assert len(codecs) >= 5  # all files of one of the six may be broken
    assert len(lengths) == 8
    assert 4 <= min(lengths) < max(lengths) <= 40
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.slow
def test_a_small_folder(small_data, tmp_path, capsys):
    real = tmp_path / "real"
    real.mkdir()
    write_video(real / "own.mp4", grey_ramp(30), fps=3)
    (real / "notes.txt").write_text("no video")
    flags = ["--clips", "7", "--broken", "2", "--real", str(real), "--pretrained_clip_name", str(small_data.clip)]
    assert main([*flags, "--output", str(tmp_path / "folder.json")]) == 0
    assert "hours of video an hour and core" in capsys.readouterr().out
    measured = json.loads((tmp_path / "folder.json").read_text())["measured"]
    assert measured["files"] == 8
    short = {name for name, how in measured["broken"].items() if how == "half" and name.endswith(".ts")}
    assert set(measured["failures"]) == set(measured["broken"]) - short
    assert len(measured["failures"]) >= 1
    assert measured["files_with_windows"] >= 6
    assert measured["windows"] > measured["files_with_windows"]
    assert all(value > 0 for name, value in measured.items() if not isinstance(value, list | dict))
    assert not any("/" in reason for reason in measured["failures"].values())


@pytest.mark.parametrize(
    ("flags", "part"),
    [
        (["--clips", "6", "--broken", "7"], "--broken 7 is more than --clips 6"),
        (["--real", "nowhere"], "--real nowhere: is no folder"),
        (["--output", "."], "--output"),
    ],
)
def test_mistakes(flags, part, capsys):
    assert main(flags) == 2
    assert part in capsys.readouterr().err


def test_there_are_six_codecs():
    assert len({codec for codec, _ in CODECS.values()}) == len({name.split(".")[0] for name in CODECS}) == 6
