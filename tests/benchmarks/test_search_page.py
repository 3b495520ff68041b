"""The benchmark of the page: a real server, asked by a few users for a moment."""

import json

import pytest

from benchmarks.search_page import main


@pytest.mark.slow
def test_the_whole_command(small_data, tmp_path, capsys):
    for package in ("fastapi", "uvicorn"):
        pytest.importorskip(package, reason=f"{package} is not installed: pip install -r requirements-search.txt")
    output = tmp_path / "page.json"
    small = ["--windows", "200", "--users", "2", "--seconds", "2", "--top", "4", "--clip", str(small_data.clip)]
    assert main([*small, "--folder", str(tmp_path / "made"), "--output", str(output)]) == 0
    written = json.loads(output.read_text())
    assert {(row["kind"], row["indexing"]) for row in written["rows"]} == {
        (kind, indexing) for kind in ("query", "thumb", "video") for indexing in (False, True)
    }
    for row in written["rows"]:
        assert row["errors"] == 0
        assert 0 < row["p50_ms"] <= row["p95_ms"] <= row["most_ms"]
    assert written["files_added"] > 0
    assert 0 < written["memory"]["server_mb"] <= written["memory"]["server_most_mb"]
    assert not list((tmp_path / "made").iterdir())
    assert "2 users, 200 windows" in capsys.readouterr().out


@pytest.mark.parametrize("flags", [["--windows", "5"], ["--users", "0"], ["--seconds", "0"], ["--top", "101"]])
def test_mistakes(flags, capsys):
    assert main([*flags, "--output="]) == 2
    assert flags[0] in capsys.readouterr().err
