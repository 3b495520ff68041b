"""The layout of the code: imports point one way, files stay short, and the engine knows no task."""

import ast
import subprocess
import sys
import tokenize
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PROGRAMS = ("main_task_recognition", "main_task_retrieval")
COMMANDS = {"benchmarks", "preprocess", "search", "tools", *PROGRAMS}
FORBIDDEN = {
    "modules": {"dataloaders", "engine", *COMMANDS},
    "dataloaders": {"modules", "engine", *COMMANDS},
    "engine": COMMANDS,
    "benchmarks": {"preprocess", "tools"},
    "search": {"benchmarks", "tools", *PROGRAMS},
}
# Commands, and the parts of a run that are about all of its settings.
CONFIG_USERS = {
    "engine/cli.py", "engine/config.py", "engine/identity.py", "engine/preflight.py", "engine/run.py",
    "tools/visualize.py",
}  # fmt: skip
# Commands in engine/ that no part of a run imports, so that nobody who reads the engine has to read them.
BESIDE = {"engine/average.py"}
MOST_LINES = 400
MOST_OF_A_METHOD = 250  # what two methods repeat is a shared part instead
LIMITS = {"engine/train.py": 300} | {f"{name}.py": 35 for name in PROGRAMS}
OF_A_TASK = (
    "token_ids",
    "video_index",
    "frame_mask",
    "info_nce",
    "R@1",
    "text_to_video",
    "caption",
    "top1",
    "classifier",
)


def imports_of(path: Path) -> set[tuple[str, str]]:
    """Return (module, name) of every import in a file, including imports inside functions."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {(alias.name, "") for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative imports hide where a name comes from"
            found |= {(node.module or "", alias.name) for alias in node.names}
    return found


def sources(*folders: str) -> list[Path]:
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


@pytest.mark.parametrize("folder", FORBIDDEN)
def test_imports_point_one_way(folder):
    files = sources(folder)
    assert files
    for path in files:
        packages = {module.split(".")[0] for module, _ in imports_of(path)}
        assert not packages & FORBIDDEN[folder], path


def test_the_engine_knows_no_task():
    """Check that it imports only the contract; the registry of tasks is for commands that open any checkpoint."""
    for path in sorted((ROOT / "engine").glob("*.py")):
        tasks = {module for module, _ in imports_of(path) if module.startswith("engine.tasks")}
        assert tasks <= {"engine.tasks.base"}, path


@pytest.mark.parametrize("name", ["train.py", "evaluate.py"])
def test_the_training_loop_contains_no_name_of_a_task(name):
    """Check for keys of a batch, losses and metrics."""
    with open(ROOT / "engine" / name, "rb") as file:
        words = [token.string for token in tokenize.tokenize(file.readline)]
    for word in words:
        assert not any(of_a_task in word for of_a_task in OF_A_TASK), word


def test_files_stay_short():
    folders = ("modules", "dataloaders", "engine", "search", "benchmarks", "tools", "preprocess", "tests")
    python = [*ROOT.glob("*.py"), *sources(*folders)]
    for path in python:
        name = path.relative_to(ROOT).as_posix()
        usual = MOST_OF_A_METHOD if name.startswith("modules/methods/") else MOST_LINES
        most = None if name.startswith("modules/kernels/") else LIMITS.get(name, usual)
        length = len(path.read_text().splitlines())
        assert most is None or length <= most, f"{name} has {length} lines"
    parts = [path for path in (ROOT / "engine").glob("*.py") if path.relative_to(ROOT).as_posix() not in BESIDE]
    engine = sum(len(path.read_text().splitlines()) for path in parts)
    assert engine < 3000, f"the engine without its tasks has {engine} lines"


def test_nothing_imports_a_command_beside_the_engine():
    commands = {name.removesuffix(".py").replace("/", ".") for name in BESIDE}
    for path in [*ROOT.glob("*.py"), *sources("modules", "dataloaders", "engine")]:
        imported = {part for module, name in imports_of(path) for part in (module, f"{module}.{name}")}
        assert not imported & commands, path


def test_only_top_modules_take_the_whole_config():
    for path in [*(ROOT / f"{name}.py" for name in PROGRAMS), *sources("modules", "dataloaders", "engine")]:
        takes_config = ("engine.config", "Config") in imports_of(path)
        name = path.relative_to(ROOT).as_posix()
        assert not takes_config or name in CONFIG_USERS or name.startswith("engine/tasks/"), path


def test_the_checker_sees_a_forbidden_import(tmp_path):
    bad = tmp_path / "bad.py"
    bad.write_text("def f():\n    from engine.train import train\n")
    assert imports_of(bad) == {("engine.train", "train")}


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("modules.released_weights", "load_released_state_dict"),
        ("modules.methods", "build_method"),
        ("modules.methods", "METHODS"),
        ("modules.clip_weights", "load_clip"),
    ],
)
def test_what_others_import_can_be_imported_first(module, name):
    """No circle of imports is in the way, whatever a script imports before."""
    code = f"from {module} import {name}"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
