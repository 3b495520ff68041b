"""Training videos that are held out to select weights."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataloaders.samples import Sample
from engine.tasks.splits import hold_out


def samples_of(count: int) -> list[Sample]:
    return [Sample(f"video{number}", Path(f"{number}.mp4"), ("a caption",)) for number in range(count)]


def twins_of(pairs: int) -> dict[str, str]:
    """The twins of `pairs` pairs: video 0 and 1, 2 and 3 ..."""
    return {f"video{number}": f"video{number ^ 1}" for number in range(2 * pairs)}


@given(count=st.integers(2, 30), more=st.integers(3, 30), pairs=st.integers(0, 15), seed=st.integers(0, 99))
def test_twins_are_held_out_together(count, more, pairs, seed):
    samples, twin_of = samples_of(count + more), twins_of(pairs)
    kept, held = hold_out(samples, count, seed, twin_of)
    ids = {sample.video_id for sample in held}
    assert sorted(kept + held, key=samples.index) == samples
    assert count <= len(held) <= count + 1
    assert {twin_of[name] for name in ids if name in twin_of} <= ids | {f"video{n}" for n in range(len(samples), 99)}


def test_without_twins_the_draw_is_the_first_of_a_permutation():
    samples = samples_of(20)
    assert hold_out(samples, 6, 3) == hold_out(samples, 6, 3, {})
    assert len(hold_out(samples, 6, 3)[1]) == 6
    assert hold_out(samples, 6, 3)[1] != hold_out(samples, 6, 4)[1]


@pytest.mark.parametrize(("count", "pairs"), [(4, 0), (5, 0), (3, 2)])
def test_something_is_left_to_train_on(count, pairs):
    with pytest.raises(ValueError, match=f"--holdout_videos {count} "):
        hold_out(samples_of(4), count, 0, twins_of(pairs))
