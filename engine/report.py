"""Rows of a results csv as a Markdown table.

    python -m engine.report results/quickstart.csv                one line a run
    python -m engine.report results/ablation.csv --mean           one line a name: mean and deviation over seeds
    python -m engine.report results/ablation.csv --has NAME SEED  exit status 0 if that run is there, else 1

Recall is in percent, mean rank (MnR) counts from 1; T2V is text to video, V2T video to text. "Reversed pairs" is how
often, in percent, a caption scores its own clip above the same clip played backwards; chance is 50.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

METRICS = {
    "t2v twins": "reversed pairs",
    "t2v R@1": "T2V R@1",
    "t2v R@5": "R@5",
    "t2v R@10": "R@10",
    "t2v MnR": "MnR",
    "v2t R@1": "V2T R@1",
    "v2t R@5": "R@5",
    "v2t R@10": "R@10",
    "v2t MnR": "MnR",
}


def table_of_runs(rows: pd.DataFrame) -> str:
    """One line a run, in the order of the file."""
    metrics = [name for name in METRICS if name in rows]
    body = [
        [row["name"], row["selection"], _trained(row), *(f"{row[name]:.1f}" for name in metrics), str(row["seed"])]
        for _, row in rows.iterrows()
    ]
    return _markdown(["", "weights", "trained", *(METRICS[name] for name in metrics), "seed"], body)


def table_of_means(rows: pd.DataFrame) -> str:
    """One line a name, in the order of the file: mean and, of two seeds or more, standard deviation (n - 1)."""
    metrics = [name for name in METRICS if name in rows]
    body = []
    for name, group in rows.groupby("name", sort=False):
        cells = []
        for metric in metrics:
            spread = f" ± {group[metric].std():.1f}" if len(group) > 1 else ""
            cells.append(f"{group[metric].mean():.1f}{spread}")
        body.append([str(name), _trained(group.iloc[0]), *cells, str(len(group))])
    return _markdown(["", "trained", *(METRICS[name] for name in metrics), "seeds"], body)


def _trained(row: pd.Series) -> str:
    return "0" if row["selection"] == "zero-shot" else f"{row['trainable_parameters'] / 1e6:.2f} M"


def _markdown(header: list[str], body: list[list[str]]) -> str:
    widths = [max(len(line[column]) for line in [header, *body]) for column in range(len(header))]

    def line(cells: list[str]) -> str:
        return "| " + " | ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)) + " |"

    return "\n".join([line(header), "|-" + "-|-".join("-" * width for width in widths) + "-|", *map(line, body)])


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results_csv", type=Path)
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--mean", action="store_true", help="one line a name: mean and deviation over seeds")
    what.add_argument("--has", nargs=2, metavar=("NAME", "SEED"), help="is that run there?")
    arguments = parser.parse_args(argv)
    if not arguments.results_csv.is_file():
        print(f"error: {arguments.results_csv}: no such file; --results_csv of a run writes one", file=sys.stderr)
        return 2
    rows = pd.read_csv(arguments.results_csv)
    if arguments.has:
        name, seed = arguments.has
        return 0 if ((rows["name"] == name) & (rows["seed"].astype(str) == seed)).any() else 1
    print(table_of_means(rows) if arguments.mean else table_of_runs(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
