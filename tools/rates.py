"""Chooses a row's learning rate by held-out training videos; the file of rates is a results csv of held-out metrics.

    python -m tools.rates add RUN --results_csv results/rates.csv    adds a run with --select_on holdout to the file
    python -m tools.rates best results/rates.csv NAME                prints the best rate of the rows "NAME, lr RATE"

`add` takes the row that the run wrote to RUN/test.csv, and replaces its metrics by those of the held-out videos after
the last epoch. `best` takes the highest mean of R@1 in both directions, or top-1, and of equal ones the lowest rate.
Test videos have no part in the choice.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from engine.logger import append_row
from engine.messages import print_error
from tools.report import METRICS, read_rows

DECIDING = ("t2v R@1", "v2t R@1", "top1")


def held_out_row(run: Path) -> dict[str, Any]:
    """Return the results row of a run, with the metrics of its held-out videos after the last epoch.

    Raises:
        OSError: RUN/test.csv or RUN/metrics.jsonl cannot be read.
        ValueError: a file is not what a run with --select_on holdout writes.
    """
    row = read_rows(run / "test.csv").iloc[-1].to_dict()
    try:
        lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
        measured = [line for line in lines if line["kind"] == "holdout"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{run / 'metrics.jsonl'}: is damaged: no run writes such a line") from error
    if not measured:
        raise ValueError(f"{run / 'metrics.jsonl'}: has no held-out metrics; train with --select_on holdout")
    last = measured[-1]
    kept = {name: value for name, value in row.items() if name not in METRICS and not name.endswith("MdR")}
    metrics = {name: last[name] for name in METRICS if name in last}
    return {**kept, "selection": "held-out videos, last epoch", "epoch": str(last["step"]), **metrics}


def best_rate(rates: Path, name: str) -> str:
    """Return the best learning rate of a row, as it stands in the name of the search's row.

    Raises:
        OSError, ValueError: the file cannot be read, is no results csv, or has no row "NAME, lr RATE".
    """
    rows = read_rows(rates)
    start = f"{name}, lr "
    found = rows[rows["name"].str.startswith(start)]
    if found.empty:
        raise ValueError(f"{rates}: has no row {start}RATE; the search writes one for each rate")
    recall = found[[metric for metric in DECIDING if metric in found]].mean(axis=1)
    found = found.assign(rate=found["name"].str.removeprefix(start), recall=recall)
    found = found.assign(value=found["rate"].astype(float)).sort_values("value")
    return str(found.loc[found["recall"].idxmax(), "rate"])


def main(argv: Sequence[str] | None = None) -> int:
    """Run one of the two commands; return 0, or 2 after one sentence about a mistake."""
    parser = argparse.ArgumentParser(prog="python -m tools.rates", description=__doc__.partition("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    add = commands.add_parser("add", help="add a run with --select_on holdout to the file")
    add.add_argument("run", type=Path, help="its folder")
    add.add_argument("--results_csv", type=Path, required=True, help="the file of rates")
    best = commands.add_parser("best", help="print the best rate of a row")
    best.add_argument("file", type=Path, help="the file of rates")
    best.add_argument("name", help="the name of the row, without its rate")
    arguments = parser.parse_args(argv)
    try:
        if arguments.command == "add":
            append_row(arguments.results_csv, held_out_row(arguments.run))
        else:
            print(best_rate(arguments.file, arguments.name))
    except (ValueError, OSError) as error:
        print_error(error)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
