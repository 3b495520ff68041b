"""Fixtures shared by all tests."""

import os
from pathlib import Path

import hypothesis
import pytest

from tests.small_data import SmallData, write_small_data

SLOW_TIMEOUT = 1800  # seconds; other tests have the `timeout` of pyproject.toml

# Every property test runs under this profile; a test sets its own `max_examples` at most. The same examples in every
# run, and no limit that depends on how busy the machine is.
hypothesis.settings.register_profile(
    "reproducible",
    derandomize=True,
    deadline=None,
    print_blob=True,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("reproducible")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.get_closest_marker("slow") and not item.get_closest_marker("timeout"):
            item.add_marker(pytest.mark.timeout(SLOW_TIMEOUT))


@pytest.fixture(scope="session")
def reference() -> Path:
    """The folder with reference numbers (`oracles/`) and the published split files (`data/msrvtt/`)."""
    folder = os.environ.get("STOP_REFERENCE")
    if not folder:
        pytest.skip("STOP_REFERENCE is not set: it names the folder with oracles/ and data/msrvtt/")
    path = Path(folder).resolve()
    if not (path / "oracles").is_dir():
        pytest.fail(f"STOP_REFERENCE={folder} has no folder oracles/")
    return path


@pytest.fixture(scope="session")
def small_data(tmp_path_factory) -> SmallData:
    """Seventeen small mp4 files in MSR-VTT's formats with a tiny CLIP; shared, so never change it in place."""
    return write_small_data(tmp_path_factory.mktemp("small_data"))
