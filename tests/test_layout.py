"""Imports point one way: commands and benchmarks -> engine -> modules, dataloaders, which do not know each other."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
COMMANDS = {"benchmarks", "preprocess", "main_task_retrieval"}
FORBIDDEN = {
    "modules": {"dataloaders", "engine"} | COMMANDS,
    "dataloaders": {"modules", "engine"} | COMMANDS,
    "engine": COMMANDS,
}
# Commands, and the parts of a run that are about all of its settings.
CONFIG_USERS = {
    "main_task_retrieval.py", "engine/cli.py", "engine/config.py", "engine/preflight.py", "engine/splits.py",
    "engine/visualize.py",
}  # fmt: skip


def imports_of(path: Path) -> set[tuple[str, str]]:
    """(module, name) of every import in a file, wherever it stands."""
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


def test_the_whole_config_stays_at_the_top():
    for path in [ROOT / "main_task_retrieval.py", *sources("modules", "dataloaders", "engine")]:
        takes_config = ("engine.config", "Config") in imports_of(path)
        assert not takes_config or str(path.relative_to(ROOT)) in CONFIG_USERS, path


def test_the_checker_sees_a_forbidden_import(tmp_path):
    bad = tmp_path / "bad.py"
    bad.write_text("def f():\n    from engine.train import train\n")
    assert imports_of(bad) == {("engine.train", "train")}
