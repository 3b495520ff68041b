"""What runs of text-video retrieval write: their metrics, and the one sentence of a mistake."""

import json
from pathlib import Path

from main_task_retrieval import main


def lines_of(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def scores(line: dict) -> dict[str, float]:
    return {name: value for name, value in line.items() if name.startswith(("t2v", "v2t"))}


def error_of(arguments: list[str], capsys) -> str:
    assert main(arguments) == 2
    _, found, message = capsys.readouterr().err.rpartition("error: ")  # progress bars stand before it
    assert found
    message = message.strip()
    assert message.count("\n") == 0
    assert "Traceback" not in message
    return message
