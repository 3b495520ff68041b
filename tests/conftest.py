"""Fixtures shared by all tests."""

import os
from pathlib import Path

import pytest


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
