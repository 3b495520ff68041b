"""Helpers of the tests of data sets: small files in the published formats, and the form of an error."""

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

from dataloaders.samples import Sample


def touch_videos(folder: Path, *names: str) -> Path:
    """Create empty files; reading a split does not open videos."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


def write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content), encoding="utf-8")


def write_lines(path: Path, lines: Iterable[str]) -> None:
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def summary(samples: list[Sample]) -> list[tuple[str, str, tuple[str, ...]]]:
    """Return (id, the file's name, captions) of each sample."""
    return [(sample.video_id, sample.path.name, sample.captions) for sample in samples]


def result_or_message(read: Callable[[], Any]) -> tuple[Any, str]:
    """Return the result of `read` and "", or None and the message of its ValueError, which must not be a subclass."""
    try:
        return read(), ""
    except ValueError as error:
        if type(error) is not ValueError:
            raise
        return None, str(error)


def assert_one_sentence(read: Callable[[], Any], error: type[Exception], *parts: str) -> None:
    """Check that `read` fails with one sentence that has all `parts`."""
    with pytest.raises(error) as raised:
        read()
    message = str(raised.value)
    assert "\n" not in message
    assert message.endswith(".")
    for part in parts:
        assert part in message
