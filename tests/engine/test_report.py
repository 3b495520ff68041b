"""Tables from result rows."""

import pandas as pd
import pytest

from engine.report import main, table_of_means, table_of_runs

ROWS = pd.DataFrame(
    {
        "name": ["zero-shot", "STOP", "STOP"],
        "method": ["clip4clip", "stop", "stop"],
        "selection": ["zero-shot", "last epoch", "last epoch"],
        "trainable_parameters": [10, 7_475_712, 7_475_712],
        "seed": [0, 0, 1],
        "t2v R@1": [10.0, 40.0, 44.0],
        "v2t MnR": [20.0, 3.0, 5.0],
    }
)


def test_a_line_a_run():
    header, _, *lines = table_of_runs(ROWS).splitlines()
    assert [cell.strip() for cell in header.split("|")[1:-1]] == ["", "weights", "trained", "T2V R@1", "MnR", "seed"]
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines]
    assert cells[0] == ["zero-shot", "zero-shot", "0", "10.0", "20.0", "0"]
    assert cells[2] == ["STOP", "last epoch", "7.48 M", "44.0", "5.0", "1"]


def test_mean_and_deviation_over_seeds():
    lines = table_of_means(ROWS).splitlines()[2:]
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines]
    assert cells[0] == ["zero-shot", "0", "10.0", "20.0", "1"]  # one seed has no deviation
    assert cells[1] == ["STOP", "7.48 M", "42.0 ± 2.8", "4.0 ± 1.4", "2"]


@pytest.mark.parametrize(("name", "seed", "status"), [("STOP", "1", 0), ("STOP", "2", 1), ("ST", "1", 1)])
def test_is_a_run_there(tmp_path, name, seed, status):
    path = tmp_path / "results.csv"
    ROWS.to_csv(path, index=False)
    assert main([str(path), "--has", name, seed]) == status


def test_missing_file(tmp_path, capsys):
    assert main([str(tmp_path / "none.csv")]) == 2
    assert "none.csv: no such file" in capsys.readouterr().err
