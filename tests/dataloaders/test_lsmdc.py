"""LSMDC's files: columns separated by tabs, ids with dots, clips in one folder for each film."""

import functools

import pytest

from dataloaders.lsmdc import read_split
from tests.dataloaders.folders import assert_one_sentence, summary, touch_videos, write_lines

FIRST, SECOND = "0001_American_Beauty_00.00.51.926-00.00.54.129", "1004_Juno_00.01.02.003-00.01.04.500"


def line(clip_id: str, sentence: str) -> str:
    return "\t".join([clip_id, "00.00.51.926", "00.00.54.129", "00.00.51.426", "00.00.54.629", sentence])


@pytest.fixture
def read(tmp_path):
    rows = [line(SECOND, 'SOMEONE says "no.'), line(FIRST, "A street, seen from above."), line(SECOND, 'He "runs".')]
    write_lines(tmp_path / "LSMDC16_annos_training.csv", rows)
    write_lines(tmp_path / "LSMDC16_challenge_1000_publictect.csv", [line(FIRST, "SOMEONE sleeps.")])
    videos = touch_videos(tmp_path / "videos", f"0001_American_Beauty/{FIRST}.avi", f"{SECOND}.mp4")
    return functools.partial(read_split, data_path=tmp_path, features_path=videos)


def test_samples(read):
    assert summary(read("train")) == [
        (SECOND, f"{SECOND}.mp4", ('SOMEONE says "no.', 'He "runs".')),
        (FIRST, f"{FIRST}.avi", ("A street, seen from above.",)),
    ]
    assert summary(read("test")) == [(FIRST, f"{FIRST}.avi", ("SOMEONE sleeps.",))]


def test_a_line_that_comes_twice_counts_once_and_is_noted(read, tmp_path, caplog):
    caplog.set_level("INFO", "stop")
    write_lines(tmp_path / "LSMDC16_annos_val.csv", [line(SECOND, "x"), line(FIRST, "y"), line(SECOND, "x")])
    assert [sample.captions for sample in read("val")] == [("x",), ("y",)]
    assert "LSMDC16_annos_val.csv repeats 1 of its lines, which count once" in caplog.text


@pytest.mark.parametrize("row", [FIRST, f"{FIRST}\ta\tb", line(FIRST, ""), line("", "x"), line(FIRST, "a\tb")])
def test_a_line_of_another_kind(read, tmp_path, row):
    write_lines(tmp_path / "LSMDC16_annos_val.csv", [line(SECOND, "x"), row])
    assert_one_sentence(lambda: read("val"), ValueError, "LSMDC16_annos_val.csv has the line", "with tabs between")


def test_what_can_be_missing(read, tmp_path):
    assert_one_sentence(lambda: read("val"), FileNotFoundError, "LSMDC16_annos_val.csv", "--data_path")
