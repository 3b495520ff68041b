"""The README is short and true: commands, tables, Python lines. The tables that map the paper to the code are true."""

import importlib
import json
import os
import re
import subprocess
import sys

import numpy as np
import pytest
import torch

from modules.methods import METHODS
from tests.markdown import ROOT, code_blocks, quoted, section, table
from tests.videos import write_video
from tools.report import main as report

README = (ROOT / "README.md").read_text()
PAPER_TO_CODE = (ROOT / "docs/paper_to_code.md").read_text()
PAPER_VS_RELEASE = (ROOT / "docs/paper_vs_release.md").read_text()
MADE_WORLD = (ROOT / "docs/made_world.md").read_text()


def test_it_is_short():
    assert len(README.encode()) <= 8192
    film, *pictures = re.findall(r"!\[.*\]\((\S+)\)", README)
    assert (ROOT / film).stat().st_size < 400_000
    assert all((ROOT / picture).stat().st_size < 100_000 for picture in pictures)


def test_the_command_for_all_tests_is_that_of_ci():
    (line,) = re.findall(r"^bash scripts/test\.sh", README, re.MULTILINE)
    assert f"{line} " in (ROOT / ".ci/run").read_text()


def test_the_python_lines_score_a_clip(tmp_path, monkeypatch, capsys):
    ((language, code),) = code_blocks(section(README, "From Python"))
    assert language == "python"
    assert len([line for line in code.splitlines() if line]) <= 10
    (tmp_path / "pretrained").symlink_to(ROOT / "pretrained")
    write_video(tmp_path / "clip.mp4", np.random.default_rng(0).integers(0, 255, (12, 64, 80, 3), dtype=np.uint8))
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    with torch.no_grad():
        exec(code, names)
    assert capsys.readouterr().out.startswith("tensor([[")
    assert names["video"].shape == (1, 128)


def test_the_command_for_own_videos(small_data, tmp_path):
    """As it stands, but for the place of the videos and the number of epochs and frames."""
    (shown,) = re.findall(r"^(DATA_PATH=/data/mine .*)$", README, re.MULTILINE)
    assert shown in (ROOT / "docs/datasets.md").read_text()
    (tmp_path / "videos").symlink_to(small_data.videos)
    lines = [f"video{n}.mp4,a film of number {n}\n" for n in range(17)]
    (tmp_path / "train.csv").write_text("path,caption\n" + "".join(lines[:16]))
    (tmp_path / "test.csv").write_text("path,caption\n" + lines[16])
    places = {"PYTHON": sys.executable, "NGPU": "1", "output_dir": str(tmp_path / "run"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        ["bash", "-c", shown.replace("/data/mine", str(tmp_path))], cwd=ROOT, capture_output=True, text=True,
        env=os.environ | places | {"epochs": "1", "max_frames": "3"}, timeout=240, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    settings = json.loads((tmp_path / "run" / "config.json").read_text())
    assert (settings["datatype"], settings["method"], settings["batch_size"]) == ("custom", "stop", 16)


def test_the_tables_of_results_are_those_of_the_files(capsys):
    assert report([str(ROOT / "results/quickstart.csv")]) == 0
    quickstart = capsys.readouterr().out.strip()
    assert quickstart in README
    assert quickstart in MADE_WORLD
    assert report([str(ROOT / "results/ablation_moving_shapes.csv"), "--mean"]) == 0
    assert capsys.readouterr().out.strip() in MADE_WORLD


def test_the_methods_and_what_they_train():
    printed = {
        quoted(name)[0]: count
        for text in (section(README, "Methods"), (ROOT / "docs/methods.md").read_text())
        for name, _, count, _ in table(text, "| `--method` |")
    }
    assert printed.keys() == METHODS.keys()
    assert len(METHODS) == 24  # "twenty-two peers" of STOP and its release
    measured = json.loads((ROOT / "results/benchmark.json").read_text())["methods"]
    trained = {line["method"]: f"{line['trainable_parameters'] / 1e6:.2f} M" for line in measured}
    assert trained.items() <= printed.items()


def test_the_layout_names_what_is_there():
    rows = table(section(README, "Layout"), "| | |")
    assert len(rows) > 6
    for name, _ in rows:
        assert (ROOT / quoted(name)[0]).exists(), name
    named = {quoted(name)[0].strip("/") for name, _ in rows}
    assert {path.parent.name for path in ROOT.glob("*/__init__.py")} <= named


def test_every_page_of_the_docs_is_linked():
    for path in (ROOT / "docs").glob("*.md"):
        assert f"(docs/{path.name})" in README, path.name


def module_of(path: str):
    return importlib.import_module(path.removesuffix(".py").replace("/", "."))


@pytest.mark.parametrize("cells", table(PAPER_TO_CODE, "| the paper | what it says |"), ids=lambda cells: cells[0])
def test_what_the_paper_has_is_where_the_table_says(cells):
    modules = [module_of(file) for file in quoted(cells[3])]
    for name in quoted(cells[2]):
        assert any(getattr(vars(module).get(name), "__module__", None) == module.__name__ for module in modules), name


def test_names_of_choices_exist():
    files = [path.read_text() for folder in ("stop", "methods") for path in (ROOT / "modules" / folder).glob("*.py")]
    chosen = PAPER_TO_CODE[PAPER_TO_CODE.index("## What the paper leaves open") :]
    for name in quoted(chosen):
        if re.fullmatch(r"\w{4,}", name) and name not in ("frame", "joint"):
            assert any(re.search(rf"\b{name}\b", text) for text in files), name


def test_names_of_the_release_exist():
    places = [module_of("modules/released/prompts.py"), module_of("modules/methods/dgl.py")]
    places.append(module_of("modules/methods/stop_released.py"))
    named = [name for cells in table(PAPER_VS_RELEASE, "| | the paper") for name in quoted(cells[3])]
    assert len(named) > 8
    for name in named:
        if re.fullmatch(r"[\w.]+", name):
            owner, _, attribute = name.partition(".")
            found = [getattr(place, owner) for place in places if hasattr(place, owner)]
            assert found, name
            assert not attribute or hasattr(found[0], attribute), name
