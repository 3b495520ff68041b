"""The recipes of CONTRIBUTING.md work: each is followed to the letter in a copy of the project, and its tests pass.

A block whose first line is a comment with a path is a new file. A block of kind `diff` changes the file in its first
line: lines with a space are there, those with a minus go, those with a plus come; `@@` begins another place.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.markdown import ROOT, code_blocks, command, joined, section

TEXT = (ROOT / "CONTRIBUTING.md").read_text()
RECIPES = re.findall(r"^## (A \w+.*)$", TEXT, re.MULTILINE)
NOT_COPIED = shutil.ignore_patterns(".*", "__pycache__", "data", "runs", "figs", "results", "*.egg-info")
LONGEST = {"modules/methods/lora_qv.py": 60, "engine/tasks/labels.py": 90}  # lines
RUN = """
import contextlib, io, json, sys, pytest
outcomes = {}
for title, runs in json.loads(sys.argv[1]).items():
    outcomes[title] = []
    for arguments in runs:
        with contextlib.redirect_stdout(io.StringIO()) as output:
            code = pytest.main(arguments)
        outcomes[title].append((code, output.getvalue()))
print(json.dumps(outcomes))
"""
UNTOUCHED = {f"engine/{name}.py" for name in ("train", "evaluate", "run", "config")}


def change(path: Path, hunks: str) -> None:
    """Apply a `diff` block; every place must be there once."""
    text = path.read_text()
    for hunk in hunks.split("@@\n"):
        lines = [line or " " for line in hunk.splitlines()]
        assert all(line[0] in " +-" for line in lines), hunk
        before, after = ("".join(f"{line[1:]}\n" for line in lines if line[0] != other) for other in "+-")
        assert text.count(before) == 1, f"{path.name} does not have this once:\n{before}"
        text = text.replace(before, after)
    path.write_text(text)


def follow(recipe: str, project: Path) -> list[str]:
    """Do what a recipe says in a copy of the project; returns its commands."""
    to_run = []
    for language, code in code_blocks(recipe):
        if language == "bash":
            to_run += joined(code)
            continue
        name, content = re.fullmatch(r"# (\S+)\n(.*)", code, re.DOTALL).groups()
        path = project / name
        if language == "diff":
            assert name not in UNTOUCHED
            change(path, content)
        else:
            assert not path.exists(), name
            path.write_text(content.lstrip("\n"))
    return to_run


def python(project: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments], env=os.environ | {"OMP_NUM_THREADS": "1"},
        cwd=project, capture_output=True, text=True, check=False, timeout=280,
    )  # fmt: skip


def arguments_of(line: str) -> list[str]:
    """What a command passes to pytest, which is all that scripts/test.sh does once everything is installed."""
    found = command(line)
    assert (found.program, found.variables) == ("scripts/test.sh", {})
    return found.arguments


def test_the_recipes_work(tmp_path):
    """One test, so that the copy is made once, and one process that runs all commands, so that torch loads once."""
    project = tmp_path / "project"
    shutil.copytree(ROOT, project, ignore=NOT_COPIED)
    lines = {title: follow(section(TEXT, title), project) for title in RECIPES}
    for arguments in (["check"], ["format", "--check"]):
        done = python(project, "-m", "ruff", *arguments)
        assert done.returncode == 0, done.stdout + done.stderr
    runs = {title: [arguments_of(line) for line in of_recipe] for title, of_recipe in lines.items()}
    done = python(project, "-c", RUN, json.dumps(runs))
    assert done.returncode == 0, done.stderr[-4000:]
    outcomes = json.loads(done.stdout)
    for title in RECIPES:
        assert outcomes[title], title
        for code, output in outcomes[title]:
            assert code == 0, f"{title}\n{output}"
            assert " passed" in output, title


def test_the_recipes_that_are_promised():
    assert RECIPES == ["A method", "A data set", "A task", "A backbone", "A loss"]


@pytest.mark.parametrize("name", LONGEST)
def test_new_files_are_short(name):
    (code,) = [code for _, code in code_blocks(TEXT) if code.startswith(f"# {name}\n")]
    assert len(code.splitlines()) - 1 <= LONGEST[name]


def test_a_place_that_is_not_there_is_noticed(tmp_path):
    path = tmp_path / "file.py"
    path.write_text("a\nb\nc\n")
    change(path, " a\n+x\n@@\n-c\n+d\n")
    assert path.read_text() == "a\nx\nb\nd\n"
    with pytest.raises(AssertionError, match="does not have this once"):
        change(path, " e\n+f\n")
