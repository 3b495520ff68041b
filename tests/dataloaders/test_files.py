"""The text files of a data set."""

from dataloaders.files import read_lines


def test_sentences_are_cut_at_line_ends_alone(tmp_path):
    (tmp_path / "list").write_bytes("one\u2028two\r\nthree\x85\n\nthree\x85\n".encode())
    assert read_lines(tmp_path / "list", "--data_path") == ["one\u2028two", "three"]
