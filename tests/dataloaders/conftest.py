"""Fixtures for the tests of reading videos."""

from collections import Counter
from pathlib import Path

import pytest

from dataloaders import decode
from dataloaders import frames as frames_module
from dataloaders.decode import read_frames
from dataloaders.samples import Sample
from tests.dataloaders.small_clips import write_ramps


@pytest.fixture
def decoded_frames(monkeypatch) -> list:
    """Collect every frame that is decoded."""
    seen, pictures = [], decode._pictures

    def watch(*args):
        for picture in pictures(*args):
            seen.append(picture)
            yield picture

    monkeypatch.setattr(decode, "_pictures", watch)
    return seen


@pytest.fixture
def decoded(monkeypatch) -> Counter:
    """Count how often each file is decoded in this process."""
    counts: Counter = Counter()

    def counted(path, *args, **settings):
        counts[Path(path).name] += 1
        return read_frames(path, *args, **settings)

    monkeypatch.setattr(frames_module, "read_frames", counted)
    return counts


@pytest.fixture(scope="session")
def data(tmp_path_factory) -> list[Sample]:
    """Five videos of 20 frames with 3, 1, 2, 3 and 1 captions; shared, so never change them in place."""
    return write_ramps(tmp_path_factory.mktemp("ramps"))
