"""The benchmark of an index's database."""

import json

from benchmarks.search_store import main


def test_a_small_measurement(tmp_path, capsys):
    flags = ["--windows", "60", "--size", "8", "--repeats", "1", "--folder", str(tmp_path / "disk")]
    assert main([*flags, "--output", str(tmp_path / "store.json")]) == 0
    assert "60 windows of 8 numbers in 3 files" in capsys.readouterr().out
    measured = json.loads((tmp_path / "store.json").read_text())["measured"]
    assert measured["files"] == 3
    assert all(value > 0 for value in measured.values())
    assert not list((tmp_path / "disk").iterdir())
    assert main([*flags, "--windows", "1"]) == 2
    assert "--windows" in capsys.readouterr().err
