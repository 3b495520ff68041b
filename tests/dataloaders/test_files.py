"""The text files of a data set."""

from dataloaders import files
from dataloaders.files import read_lines, read_text
from tests.dataloaders.folders import assert_one_sentence


def test_a_huge_file_that_is_no_text_is_refused_by_its_beginning(tmp_path):
    path = tmp_path / "list.csv"
    with path.open("wb") as file:
        file.truncate(2**40)
    assert_one_sentence(
        lambda: read_text(path, "--val_csv"), ValueError, f"--val_csv {path} is not a text file in UTF-8"
    )


def test_texts_of_several_chunks(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "TEXT_CHUNK", 3)
    (tmp_path / "list").write_bytes("\ufeffcaf\u00e9,\r\n\u4e00\u53ea\u732b\r\rend".encode())
    assert read_text(tmp_path / "list", "--val_csv") == "caf\u00e9,\n\u4e00\u53ea\u732b\n\nend"


def test_sentences_are_cut_at_line_ends_alone(tmp_path):
    (tmp_path / "list").write_bytes("one\u2028two\r\nthree\x85\n\nthree\x85\n".encode())
    assert read_lines(tmp_path / "list", "--data_path") == ["one\u2028two", "three"]
