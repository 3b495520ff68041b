"""The file of reversed pairs."""

from pathlib import Path

import pytest

from dataloaders.samples import Sample
from dataloaders.twins import read_twins

SAMPLES = [Sample(name, Path(f"{name}.mp4"), ("a caption",)) for name in ("a", "b", "c", "d", "e")]


def test_pairs_go_both_ways(tmp_path):
    path = tmp_path / "twins.csv"
    path.write_text("video_id,twin_id\nb,d\na,e\n")
    assert read_twins(path, SAMPLES).tolist() == [4, 3, -1, 1, 0]


def test_a_pair_with_a_video_that_was_left_out_does_not_count(tmp_path):
    path = tmp_path / "twins.csv"
    path.write_text("video_id,twin_id\nb,gone\na,e\ngone,also gone\n")
    assert read_twins(path, SAMPLES, left_out=["gone", "also gone"]).tolist() == [4, -1, -1, -1, 0]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("one,two\na,b\n", "no columns `video_id`"),
        ("video_id,twin_id\na,z\n", "names z, not in the test split"),
        ("video_id,twin_id\na\n", "line 2: fewer fields than columns"),
        ("video_id,twin_id\na,b,c\n", "line 2: more fields than columns"),
        ("video_id,twin_id\na,b\nc,a\n", "line 3: c and a are not a pair"),
        ("video_id,twin_id\na,a\n", "line 2: a and a are not a pair"),
    ],
)
def test_wrong_files(tmp_path, text, message):
    path = tmp_path / "twins.csv"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        read_twins(path, SAMPLES)


def test_the_message_names_the_split_s_own_flag(tmp_path):
    path = tmp_path / "twins.csv"
    path.write_text("video_id,twin_id\na,z\n")
    with pytest.raises(ValueError, match=r"^--train_twins_csv .* names z, not in the train split"):
        read_twins(path, SAMPLES, "train")


def test_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"^--twins_csv .* is not a file"):
        read_twins(tmp_path / "none.csv", SAMPLES)
