"""Fixtures shared by all tests."""

import os
from pathlib import Path

import hypothesis
import pytest

from tests.small_actions import SmallActions, write_small_actions
from tests.small_data import SmallData, write_small_data

SLOW_TIMEOUT = 1800  # seconds; all other tests get the `timeout` of pyproject.toml

# The profile of every property test: each run draws the same examples, and no limit depends on how busy the machine is.
# A test may set its own `max_examples`.
hypothesis.settings.register_profile(
    "reproducible",
    derandomize=True,
    deadline=None,
    print_blob=True,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("reproducible")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give slow tests their longer time limit, unless they set one."""
    for item in items:
        if item.get_closest_marker("slow") and not item.get_closest_marker("timeout"):
            item.add_marker(pytest.mark.timeout(SLOW_TIMEOUT))


@pytest.fixture(scope="session")
def reference() -> Path:
    """Return the folder with the reference numbers (`oracles/`) and the published split files (`data/msrvtt/`)."""
    folder = os.environ.get("STOP_REFERENCE")
    if not folder:
        pytest.skip("STOP_REFERENCE is not set: it names the folder with oracles/ and data/msrvtt/")
    path = Path(folder).resolve()
    if not (path / "oracles").is_dir():
        pytest.fail(f"STOP_REFERENCE={folder} has no folder oracles/")
    return path


@pytest.fixture(scope="session")
def small_data(tmp_path_factory) -> SmallData:
    """Write seventeen small mp4 files in MSR-VTT's formats and a tiny CLIP. All tests share them, so change none."""
    return write_small_data(tmp_path_factory.mktemp("small_data"))


@pytest.fixture(scope="session")
def small_actions(tmp_path_factory) -> SmallActions:
    """Write 44 small mp4 files in UCF101's layout and a tiny CLIP. All tests share them, so change none."""
    return write_small_actions(tmp_path_factory.mktemp("small_actions"))
