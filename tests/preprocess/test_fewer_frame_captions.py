"""Captions of fewer frames are those of the frames that training reads; anything else is refused."""

import json
from pathlib import Path

import pytest

from dataloaders.frame_captions import read_frame_captions
from dataloaders.frame_sampling import at_frame_rate, uniform
from preprocess.fewer_frame_captions import main


def write(folder: Path, content: object) -> list[str]:
    path = folder / "all.json"
    path.write_text(json.dumps(content), encoding="utf-8")
    return ["--frame_captions", str(path), "--output", str(folder / "out" / "few.json")]


@pytest.mark.parametrize("frames", [1, 5, 8, 12])
def test_each_caption_belongs_to_its_frame(tmp_path, frames):
    flags = write(tmp_path, {"a_x": [f"frame {i}" for i in range(12)], "b_ü": [f"frame {i}" for i in range(9)] * 2})
    assert main([*flags, "--max_frames", str(frames)]) == 0
    found = read_frame_captions(tmp_path / "out/few.json", frames)
    read = at_frame_rate(12, 3.0, 0)[uniform(12, frames)]
    assert found["a_x"] == [f"frame {i}" for i in read]
    assert list(found) == ["a_x", "b_ü"]
    if frames == 8:
        assert read.tolist() == [0, 1, 3, 4, 6, 7, 9, 11]


@pytest.mark.parametrize(
    ("content", "frames", "message"),
    [
        ({"a_x": ["p", "q"]}, "3", "the entry a_x is no list of 3 or more captions"),
        ({"a_x": [1, 2]}, "2", "the entry a_x is no list of 2"),
        (["a"], "2", "all.json"),
        ({"a_x": ["p", "q"]}, "0", "--max_frames must be at least 1"),
    ],
)
def test_mistakes(tmp_path, capsys, content, frames, message):
    assert main([*write(tmp_path, content), "--max_frames", frames]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_missing_file(tmp_path, capsys):
    flags = ["--frame_captions", str(tmp_path / "none.json"), "--max_frames", "2", "--output", str(tmp_path / "o.json")]
    assert main(flags) == 2
    assert "none.json" in capsys.readouterr().err
