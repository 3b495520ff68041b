"""Runs a command of `python -m search` on an index, in this process."""

from pathlib import Path

import pytest

from search.__main__ import main


def run_command(
    index: Path, checkpoint: Path, capfd: pytest.CaptureFixture[str], command: str, *arguments: object
) -> tuple[int, str, str]:
    """Return exit code, stdout and stderr; what indexes uses the checkpoint and one process."""
    capfd.readouterr()
    model = ["--checkpoint", str(checkpoint)] if command == "index" else []
    jobs = ["--jobs", "1"] if command in ("index", "refresh") else []
    code = main([command, *map(str, arguments), "--index", str(index), *model, *jobs])
    return code, *capfd.readouterr()
