"""Results that nobody reads to the end are no error; neither are those of a whole command."""

import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
COMMANDS = {
    "families": ["engine.describe", "--families"],
    "describe": ["main_task_retrieval", "--describe", "--method", "clip4clip"],
    "report": ["tools.report", "results/ablation_moving_shapes.csv"],
    "means": ["tools.report", "results/ablation_moving_shapes.csv", "--mean"],
    "table": ["tools.table", "results/table_moving_shapes.csv", "--no_cited"],
}


@pytest.mark.parametrize("name", COMMANDS)
def test_a_reader_that_has_left_is_no_error(name):
    process = subprocess.Popen(
        [sys.executable, "-m", *COMMANDS[name]],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    process.stdout.close()
    _, error = process.communicate(timeout=300)
    assert (process.returncode, error) == (0, "")
