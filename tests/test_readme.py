"""What README.md names is there: classes, functions, files and scripts; and its Python lines run."""

import importlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from modules.clip import CLIP
from tests.tiny import TINY, tiny_batch

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def section(title: str) -> str:
    """From a heading to the next of its rank."""
    found = re.search(rf"^## {title}\n(.*?)(?=^## |\Z)", README, re.MULTILINE | re.DOTALL)
    assert found, title
    return found[1]


def rows(text: str, header: str) -> list[list[str]]:
    """The cells of the table that begins with this line."""
    lines = text[text.index(header) :].split("\n\n")[0].splitlines()[2:]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def quoted(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


def paths(cell: str) -> list[Path]:
    """Files of a cell: those behind the first lie in its folder."""
    first, *others = quoted(cell)
    folder = Path(first).parts[0] if "/" in first else ""
    return [ROOT / first, *(ROOT / folder / other for other in others)]


@pytest.mark.parametrize(
    "cells",
    rows(section("From the paper to the code"), "| the paper | what it says |"),
    ids=lambda cells: cells[0],
)
def test_what_the_paper_has_is_where_the_table_says(cells):
    files = paths(cells[3])
    modules = [importlib.import_module(".".join(file.relative_to(ROOT).with_suffix("").parts)) for file in files]
    for name in quoted(cells[2]):
        assert any(getattr(vars(module).get(name), "__module__", None) == module.__name__ for module in modules), name


def test_the_command_for_own_videos(small_data, tmp_path):
    """As it stands, but for the place of the videos and the number of epochs and frames."""
    (command,) = re.findall(r"^(DATA_PATH=/data/mine .*)$", README, re.MULTILINE)
    (tmp_path / "videos").symlink_to(small_data.videos)
    lines = [f"video{n}.mp4,a film of number {n}\n" for n in range(17)]
    (tmp_path / "train.csv").write_text("path,caption\n" + "".join(lines[:16]))
    (tmp_path / "test.csv").write_text("path,caption\n" + lines[16])
    places = {"PYTHON": sys.executable, "NGPU": "1", "output_dir": str(tmp_path / "run"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        ["bash", "-c", command.replace("/data/mine", str(tmp_path))], cwd=ROOT, capture_output=True, text=True,
        env=os.environ | places | {"epochs": "1", "max_frames": "3"}, timeout=240, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    settings = json.loads((tmp_path / "run" / "config.json").read_text())
    assert (settings["datatype"], settings["method"], settings["batch_size"]) == ("custom", "stop", 16)


def test_the_layout_names_files_that_are_there():
    table = rows(section("Layout"), "| | |")
    assert len(table) > 8
    for name, _ in table:
        for path in paths(name):
            assert path.exists(), path


def test_every_script_that_is_named_is_there():
    named = set(re.findall(r"\bscripts/\w+\.sh\b|\bpreprocess/\w+\.py\b", README))
    assert len(named) > 10
    for script in named:
        assert (ROOT / script).exists(), script
    for module in set(re.findall(r"python -m (engine\.\w+)", README)):
        assert (ROOT / (module.replace(".", "/") + ".py")).exists(), module


def test_the_lines_of_from_python_run(monkeypatch):
    code = re.search(r"```python\n(.*?)```", section("From Python"), re.DOTALL)[1]
    monkeypatch.setattr("modules.clip_weights.load_clip", lambda path: CLIP(TINY))
    video, frame_mask, token_ids = tiny_batch()
    names = {"video": video, "frame_mask": frame_mask, "token_ids": token_ids}
    with torch.no_grad():
        exec(code, names)
    assert names["logits"].shape == (len(token_ids), len(video))
