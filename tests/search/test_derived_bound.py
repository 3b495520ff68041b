"""The bound of what fits well is kept for as long as it fits the index."""

import logging

import pytest

from search.engines.derived import open_bound


def test_the_bound_is_kept_for_a_stamp(tmp_path):
    path, measure = tmp_path / "new" / "bound.json", iter([0.25, 0.5, 0.75]).__next__
    assert [open_bound(path, stamp, measure) for stamp in ("a", "a", "b", "b")] == [0.25, 0.25, 0.5, 0.5]
    path.write_text(path.read_text()[:9])
    assert open_bound(path, "b", measure) == 0.75


@pytest.mark.parametrize("text", ['{"stamp": "a", "stands_out": "0.5"}', '{"stamp": "a", "bound": 0.5}', "[1]"])
def test_another_content_is_measured_again(tmp_path, text):
    path = tmp_path / "bound.json"
    path.write_text(text)
    assert open_bound(path, "a", lambda: 0.25) == open_bound(path, "a", lambda: 0.5) == 0.25


def test_a_place_that_cannot_be_written(tmp_path, caplog):
    (tmp_path / "file").touch()
    with caplog.at_level(logging.WARNING, "stop"):
        assert open_bound(tmp_path / "file" / "bound.json", "a", lambda: 0.25) == 0.25
    assert "is measured again next time" in caplog.text
