"""Commands as a clumsy or a hostile user gives them: one sentence with the flag, or the right result."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from search import Index
from search.__main__ import main
from search.index import parse_hit
from search.ranking import combine
from search.store import PER_FILE
from tests.search.test_resuming import update

ROOT = Path(__file__).parents[2]


@pytest.fixture
def index(videos, encoder, tmp_path) -> Path:
    update(tmp_path / "index", videos, encoder)
    return tmp_path / "index"


@pytest.mark.parametrize(
    "text", ["9" * 30 + ":1", "9223372036854775808", "1:1048576", f"{1 << 43}:0", ":1", "²:1", "1:", "-1:0"]
)
def test_numbers_that_are_no_hit(text):
    with pytest.raises(ValueError, match="--like"):
        parse_hit(text)


def test_numbers_that_are_hits():
    assert parse_hit("3:7") == parse_hit(str(3 * PER_FILE + 7)) == 3 * PER_FILE + 7
    assert parse_hit(f"{(1 << 43) - 1}:{PER_FILE - 1}") == (1 << 63) - 1


@pytest.mark.parametrize(
    ("command", "part"),
    [
        (["index", "", "--index", "x"], "argument FOLDER: the path is empty"),
        (["index", ".", "--index", ""], "argument --index: the path is empty"),
        (["query", "red", "--index", ""], "argument --index: the path is empty"),
        (["forget", "", "--index", "x"], "argument PATH: the path is empty"),
        (["export", "--to", "", "--index", "x"], "argument --to: the path is empty"),
    ],
)
def test_an_empty_path_is_not_the_working_folder(command, part, tmp_path, monkeypatch, capfd):
    """A shell's unset variable is an empty path; `forget` would then forget all files below."""
    monkeypatch.chdir(tmp_path)
    assert main(command) == 2
    assert part in capfd.readouterr().err
    assert not list(tmp_path.iterdir())


def test_two_forms_of_output_at_once_are_refused(tmp_path, capfd):
    assert main(["query", "red", "--json", "--print0", "--index", str(tmp_path)]) == 2
    assert "--print0: not allowed with argument --json" in capfd.readouterr().err


def test_dates_at_the_ends_of_time(index, capfd):
    for date in ("0001-01-01T00:00:00+23:59", "9999-12-31T23:59:59-23:59", "0001-01-01"):
        code = main(["query", "--like", "1:0", "--after", date, "--index", str(index)])
        told = capfd.readouterr().err
        assert (code, told) == (0, "") or "--after" in told


def test_weights_however_large_or_small():
    rows = np.eye(3, dtype=np.float32)
    for weight in (1e-310, 1e-30, 1e30, 1e308):
        np.testing.assert_allclose(combine(rows[:2], np.array([weight, weight])), [2**-0.5, 2**-0.5, 0], rtol=1e-6)
        np.testing.assert_allclose(combine(rows[:2], np.array([weight, -weight])), [2**-0.5, -(2**-0.5), 0], rtol=1e-6)
    np.testing.assert_allclose(combine(rows[:2], np.array([1, 1e300])), [0, 1, 0], atol=1e-6)
    with pytest.raises(ValueError, match="cancel out"):
        combine(np.concatenate([rows[:1], rows[:1]]), np.array([1e300, -1e300]))


@pytest.mark.parametrize("name", ["a\nb", "\x1b[31m", "\udcff", "x" * 101])
def test_names_of_models_that_cannot_be_shown(videos, encoder, tmp_path, name, monkeypatch, capfd):
    monkeypatch.setattr("search.updating.load_encoder", lambda *source, **options: encoder)
    assert main(["index", str(videos), "--model", name, "--index", str(tmp_path / "index"), "--jobs", "1"]) == 2
    assert "pass at most 100 characters that can be printed" in capfd.readouterr().err


@pytest.mark.parametrize("flags", [["--window", "1e-9"], ["--stride", "1e-7"], ["--window", "5", "--stride", "0.009"]])
def test_windows_shorter_than_a_frame(trained, videos, tmp_path, flags, capfd):
    command = ["index", str(videos), "--checkpoint", str(trained.checkpoint), "--index", str(tmp_path / "index")]
    assert main([*command, *flags]) == 2
    assert "pass 0.01 or more" in capfd.readouterr().err
    assert not (tmp_path / "index").exists()


def test_an_index_without_windows(index, videos, capfd):
    assert main(["forget", str(videos), "--index", str(index)]) == 0
    capfd.readouterr()
    assert main(["query", "red", "--index", str(index)]) == 2
    assert "has no windows of the model vpt: index a folder with videos in it" in capfd.readouterr().err
    assert main(["status", "--index", str(index)]) == main(["verify", "--index", str(index)]) == 0


@pytest.mark.slow
def test_kept_vectors_of_texts_that_are_damaged(index, capfd):
    query = ["query", "red", "--json", "--index", str(index)]
    assert main(query) == 0
    expected = json.loads(capfd.readouterr().out)
    (kept,) = index.glob("nonsense-*.npy")
    whole = kept.read_bytes()
    for content in (b"", b"PK\x03\x04 no archive", b"\x80\x04."):
        kept.write_bytes(content)
        for bound in index.glob("bound-*.json"):
            bound.unlink()
        assert main(query) == 0
        assert json.loads(capfd.readouterr().out) == expected
        assert kept.read_bytes() == whole  # made again


def test_an_index_whose_name_is_odd(videos, encoder, tmp_path, capfd):
    name = os.fsdecode(b"i\xff\n<x>")
    update(tmp_path / name, videos, encoder)
    flags = ["--index", str(tmp_path / name)]
    assert main(["status", *flags]) == 0
    assert r"i\udcff\n<x>: 7 files" in capfd.readouterr().out
    assert main(["query", "--like", "1:0", *flags]) == 0
    target = tmp_path / os.fsdecode(b"\xfe\n.npz")
    assert main(["export", "--to", str(target), *flags]) == 0
    assert capfd.readouterr().err.count("\n") == 1
    assert target.is_file()


@pytest.mark.slow
@pytest.mark.parametrize(
    "command", ["status", "status --json", "query --like 1:0", "query --like 1:0 --print0", "query --like 1:0 --json"]
)
def test_a_reader_that_closes_its_pipe(index, command):
    """Such as head; the command ends without a word."""
    words = [sys.executable, "-m", "search", *command.split(), "--index", str(index)]
    process = subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.close()
    assert process.wait() == 0
    assert process.stderr.read() == b""
    process.stderr.close()


def test_what_python_asks_is_not_stopped_by_a_closed_index(index):
    with Index.open(index) as opened:
        ids, _ = opened.vectors()
    with pytest.raises(OSError, match="cannot be used"):
        opened.windows(ids)
