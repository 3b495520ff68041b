"""Rows of a results csv as a Markdown table:  python -m engine.report results/quickstart.csv"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

COLUMNS = {
    "method": "method",
    "selection": "weights",
    "trainable_parameters": "trained",
    "t2v R@1": "T2V R@1",
    "t2v R@5": "R@5",
    "t2v R@10": "R@10",
    "t2v MnR": "MnR",
    "v2t R@1": "V2T R@1",
    "v2t R@5": "R@5 ",
    "v2t R@10": "R@10 ",
    "v2t MnR": "MnR ",
    "seed": "seed",
}


def markdown_table(rows: pd.DataFrame) -> str:
    """One line a row, aligned for the eye: text-to-video (T2V) and video-to-text (V2T) recall in percent, mean rank."""
    table = [list(COLUMNS.values())]
    for _, row in rows.iterrows():
        cells = []
        for name in COLUMNS:
            value = row[name]
            if name == "trainable_parameters":
                value = "0" if row["selection"] == "zero-shot" else f"{value / 1e6:.2f} M"
            cells.append(f"{value:.1f}" if isinstance(value, float) else str(value))
        table.append(cells)
    widths = [max(len(line[column]) for line in table) for column in range(len(COLUMNS))]

    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)) + " |"

    return "\n".join([line(table[0]), "|-" + "-|-".join("-" * width for width in widths) + "-|", *map(line, table[1:])])


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("results_csv", type=Path)
    path = parser.parse_args(argv).results_csv
    if not path.is_file():
        print(f"error: {path}: no such file; --results_csv of a run writes one", file=sys.stderr)
        return 2
    print(markdown_table(pd.read_csv(path)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
