"""What the tests of reading share."""

from collections import Counter
from pathlib import Path

import pytest

from dataloaders import decode
from dataloaders import frames as frames_module
from dataloaders.decode import read_frames


@pytest.fixture
def decoded_frames(monkeypatch) -> list:
    """Every frame that is decoded."""
    seen, pictures = [], decode._pictures

    def watch(*args):
        for picture in pictures(*args):
            seen.append(picture)
            yield picture

    monkeypatch.setattr(decode, "_pictures", watch)
    return seen


@pytest.fixture
def decoded(monkeypatch) -> Counter:
    """How often each file is decoded in this process."""
    counts: Counter = Counter()

    def counted(path, *args, **settings):
        counts[Path(path).name] += 1
        return read_frames(path, *args, **settings)

    monkeypatch.setattr(frames_module, "read_frames", counted)
    return counts
