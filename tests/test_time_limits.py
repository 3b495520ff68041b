"""Every test has a time limit, and the output names a test that hangs."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import SLOW_TIMEOUT, pytest_collection_modifyitems

ROOT = Path(__file__).parents[1]
HANGS = """
import subprocess
import pytest

@pytest.mark.slow
@pytest.mark.timeout(3)
def test_that_has_a_limit_of_its_own():
    subprocess.run(["true"], check=True)

def test_that_hangs():
    subprocess.run(["sleep", "60"], check=True)
"""


def test_a_test_that_hangs_ends_with_its_name(tmp_path):
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests/test_made.py").write_text(HANGS)
    arguments = ["-q", "-n", "1", "-m", "", "-o", "timeout=2"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *arguments],
        cwd=tmp_path, env=os.environ | {"PYTHONPATH": ""}, capture_output=True, text=True, timeout=50, check=False,
    )  # fmt: skip
    assert done.returncode == 1, done.stdout + done.stderr
    assert "test_made.py::test_that_hangs" in done.stdout
    assert "1 failed, 1 passed" in done.stdout


def test_tests_have_a_limit_and_slow_ones_a_longer_one(request):
    assert 0 < float(request.config.getini("timeout")) < SLOW_TIMEOUT
    assert request.config.getini("timeout_method") == "thread"

    def made(*marks: pytest.MarkDecorator) -> pytest.Item:
        item = pytest.Function.from_parent(request.node.parent, name="made", callobj=lambda: None)
        for mark in marks:
            item.add_marker(mark)
        return item

    plain, slow, own = made(), made(pytest.mark.slow), made(pytest.mark.slow, pytest.mark.timeout(7))
    pytest_collection_modifyitems([plain, slow, own])
    limits = [mark.args if (mark := item.get_closest_marker("timeout")) else None for item in (plain, slow, own)]
    assert limits == [None, (SLOW_TIMEOUT,), (7,)]
