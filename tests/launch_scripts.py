"""Run a launch script with a Python that only records its arguments, and read the settings from its commands."""

import os
import subprocess
from pathlib import Path

from engine.cli import parse_config
from engine.tasks.registry import TASKS


def write_recorder(folder: Path) -> tuple[Path, Path]:
    """Write a stand-in for Python that appends its arguments to a file. Return the paths of both."""
    record = folder / "commands"
    python = folder / "python"
    python.write_text(f'#!/usr/bin/env bash\nprintf "%s\\n" "$@" "--end-of-command--" >>{record}\n')
    python.chmod(0o755)
    return python, record


def commands_of(script: Path, recorder: tuple[Path, Path], *arguments: str, **environment: str) -> list[list[str]]:
    """Return the arguments of every Python command that the script runs."""
    python, record = recorder
    subprocess.run(
        ["bash", str(script), *arguments],
        env=os.environ | {"PYTHON": str(python), "NGPU": "1", "runs": str(python.parent / "runs")} | environment,
        cwd=python.parent,
        check=True,
        capture_output=True,
    )
    commands = [command.split("\n")[:-1] for command in record.read_text().split("--end-of-command--\n") if command]
    return [command for command in commands if command[0] != "-c"]  # a command that asks what is installed


def refused_by(script: Path, recorder: tuple[Path, Path], *arguments: str, **environment: str) -> str:
    """Return the sentence with which the script refuses to run, without "error: ".

    It must be the only line, with status 2, and nothing may be written or run before it but a look for packages and
    backbones. Places are below the recorder's folder, unless the environment names others.
    """
    python, record = recorder
    folder = python.parent
    places = {"runs": folder / "runs", "results": folder / "results" / "rows.csv", "DATA_PATH": folder / "data"}
    before = sorted(folder.rglob("*"))
    done = subprocess.run(
        ["bash", str(script), *arguments], capture_output=True, text=True, check=False, cwd=folder, timeout=60,
        env=os.environ | {"PYTHON": str(python), "NGPU": "1"} | {k: str(v) for k, v in places.items()} | environment,
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1, done.stderr
    assert [path for path in sorted(folder.rglob("*")) if path not in (*before, record)] == []
    ran = record.read_text().split("--end-of-command--\n")[:-1] if record.exists() else []
    assert [command for command in ran if not command.startswith(("-c\n", "-m\ntools.weights\n"))] == []
    record.unlink(missing_ok=True)
    return done.stderr.removeprefix("error: ").removesuffix("\n")


def settings_of(command: list[str]) -> dict:
    """Return the settings of a command that trains or evaluates, by flag name.

    An --init_model that an earlier command of the script writes is not there, and is read as if it was not passed.
    """
    task, words = Path(command[0]).stem.removeprefix("main_task_"), command[1:]
    place = words.index("--init_model") + 1 if "--init_model" in words else 0
    if place and words[place].endswith(".safetensors") and not Path(words[place]).exists():
        del words[place - 1 : place + 1]
    return parse_config(words, TASKS[task].settings).flat()
