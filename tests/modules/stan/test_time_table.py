"""The rows of the time table, and those between them."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from modules.stan.time_table import TimeTable


def test_frame_t_has_row_t():
    table = TimeTable(8, 0)
    assert torch.equal(table(64), table.weight)
    assert torch.equal(table(5), table.weight[:5])
    assert torch.equal(table(1), table.weight[:1])


@settings(max_examples=15)
@given(st.integers(1, 64), st.integers(1, 100))
@torch.no_grad()
def test_other_numbers_of_frames_read_rows_between(trained, frames):
    """Against the definition: frame t lies at (t + 1/2) / T of the clip."""
    table = TimeTable(3, trained)
    rows = table(frames)
    assert rows.shape == (frames, 3)
    for t in range(frames):
        place = min(max((t + 0.5) * trained / frames - 0.5, 0), trained - 1)
        below = int(place)
        above = min(below + 1, trained - 1)
        expected = (1 - place + below) * table.weight[below] + (place - below) * table.weight[above]
        torch.testing.assert_close(rows[t], expected, atol=1e-4, rtol=1e-4)
    if frames == trained:
        assert torch.equal(rows, table.weight[:frames])


def test_more_frames_than_rows():
    with pytest.raises(ValueError, match="has 64 rows, and the clips have 65 frames: pass --max_frames 64 or less, or"):
        TimeTable(8, 0)(65)
    assert TimeTable(8, 64)(65).shape == (65, 8)
