"""Prints a results csv as a Markdown table; draws the metrics of runs as curves.

    python -m tools.report results/quickstart.csv                one row per run
    python -m tools.report results/ablation.csv --mean           one row per name: mean and deviation over seeds
    python -m tools.report results/ablation.csv --has NAME SEED  exit status 0 if the file has that run, else 1
    python -m tools.report runs/*/metrics.jsonl --curves curves.png   loss, learning rate and R@1 or top-1
    python -m tools.report compare A/predictions.csv B/predictions.csv   two runs of recognition; see compare --help

Recall is in percent, mean rank (MnR) counts from 1; T2V is text to video, V2T video to text. "Reversed pairs" is the
percentage of captions that score their own clip above the same clip played backwards; chance is 50. Columns with
"(DSL)" and "(QB-Norm)" are post-processed, in runs with --dsl or --qb_norm. "Direction" is the percentage of videos
that score their class above the one that they would show when played backwards. "HM" is the harmonic mean of top-1 and
"novel top-1", after --classes base; with --mean, of their means over seeds.
"""

import argparse
import csv
import json
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd

from engine.flags import PICTURES, check_file
from engine.messages import print_error, print_result

METRICS = {"t2v twins": "reversed pairs"} | {
    f"{way} {name}{extra}": f"{way.upper()} {name}{extra}" if name == "R@1" else name
    for extra in ("", " (DSL)", " (QB-Norm)")
    for way in ("t2v", "v2t")
    for name in ("R@1", "R@5", "R@10", "MnR")
}
METRICS |= {"top1": "top-1", "top5": "top-5", "mean_class": "mean class", "direction": "direction"}
METRICS |= {"novel top1": "novel top-1", "novel direction": "novel direction", "HM": "HM"}
COLUMNS = ("name", "selection", "trainable_parameters", "seed")  # of a results csv, beside the metrics
# Columns of recognition that say what was measured: rows that differ here are no repetitions. Splits, lists and draws
# of classes are averaged, as papers do, and named.
MEASURED = ("data", "classes", "shots", "classifier", "class_texts", "views", "view_fusion")
AVERAGED = ("split", "list", "draw")
CURVES = {
    "loss": "training loss",
    "lr": "learning rate",
    "t2v R@1": "T2V R@1, % (● test, ■ holdout, ▲ val)",
    "top1": "top-1, % (● test, ■ holdout, ▲ val)",
}
LINES = {"train": "-", "test": "o-", "holdout": "s--", "val": "^--"}
LEGEND_COLUMNS = 4


def read_rows(path: Path) -> pd.DataFrame:
    """Return the rows of a results csv: metrics as numbers, all else as text.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: the file is empty, is not a csv, comes from another program, or has a metric that is not a number.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; --results_csv of a run writes one")
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            header, *body = [cells for cells in csv.reader(file, strict=True) if cells] or [[]]
    except (csv.Error, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: is not a results csv ({error}); --results_csv of a run writes one") from error
    if not header:
        raise ValueError(f"{path}: is empty; --results_csv of a run writes it")
    metrics = [name for name in METRICS if name in header]
    lacks = [name for name in COLUMNS if name not in header] + ([] if metrics else ["t2v R@1 or top1"])
    if lacks or len(set(header)) < len(header):
        wrong = f"lacks the columns {', '.join(lacks)}" if lacks else "has two columns of one name"
        raise ValueError(f"{path}: is not a results csv, it {wrong}; --results_csv of a run writes one")
    for number, cells in enumerate(body, start=1):
        if len(cells) != len(header):
            raise ValueError(
                f"{path}: row {number} has {len(cells)} cells, the header has {len(header)}; correct or delete the row"
            )
    rows = pd.DataFrame(body, columns=header)
    for name in ("trainable_parameters", *metrics):
        numbers = pd.to_numeric(rows[name], errors="coerce")
        wrong = numbers.isna()
        if name.endswith("direction"):  # a run writes "nan" if no test video is of a class with a reversal
            wrong &= rows[name] != "nan"
        if wrong.any():
            row = int(wrong.to_numpy().argmax())
            raise ValueError(
                f"{path}: row {row + 1} has {rows[name].iloc[row][:40]!r} in the column {name}, which must be a "
                "number; correct or delete the row"
            )
        rows[name] = numbers
    return rows


def table_of_runs(rows: pd.DataFrame) -> str:
    """Return a table with one row per run, in the order of the file."""
    metrics = [name for name in METRICS if name in rows]
    body = [
        [_name(row), row["selection"], _trained(row), *(number(row[name]) for name in metrics), str(row["seed"])]
        for _, row in rows.iterrows()
    ]
    return markdown(["", "weights", "trained", *(METRICS[name] for name in metrics), "seed"], body)


def table_of_means(rows: pd.DataFrame) -> str:
    """Return a table with one row per name: the mean and, with two or more seeds, the standard deviation (n - 1).

    A name whose weights were selected in several ways, such as trained and untrained, or that measured several things,
    such as shots or views, has one row for each. Several splits, lists or draws of half of the classes are averaged,
    and the last column names them. The harmonic mean of base and novel classes is that of the means, as in the tables
    of ViFi-CLIP and its successors.
    """
    rows, metrics = as_repetitions(rows), [name for name in METRICS if name in rows]
    body = []
    apart = ["selection", *(name for name in MEASURED if name in rows and "split" in rows)]
    ways = rows.groupby("name")[apart].nunique()
    for (name, *values), group in rows.groupby(["name", *apart], sort=False):
        cells = []
        for metric in metrics:
            measured = group[metric].dropna()
            if metric == "HM" and {"top1", "novel top1"} <= set(metrics):
                cells.append(number(harmonic_mean_of_means(group)))
                continue
            spread = f" ± {measured.std():.1f}" if len(measured) > 1 else ""
            cells.append(f"{number(measured.mean())}{spread}")
        told = [
            value if what == "selection" else f"{what.replace('_', ' ')} {value}"
            for what, value in zip(apart, values, strict=True)
            if ways.loc[name, what] > 1
        ]
        over = [
            f"{what}s {', '.join(sorted(group[what].unique()))}"
            for what in AVERAGED
            if what in group and group[what].nunique() > 1
        ]
        label = ", ".join([_name(group.iloc[0]), *told])
        body.append([label, _trained(group.iloc[0]), *cells, "; ".join([str(len(group)), *over])])
    return markdown(["", "trained", *(METRICS[name] for name in metrics), "seeds"], body)


def as_repetitions(rows: pd.DataFrame) -> pd.DataFrame:
    """Return rows in which the repetitions of a protocol agree in the columns MEASURED.

    Draws of half of the classes differ in `classes`; their number gets a column of its own, `draw`. Lists of other
    classes may differ in `class_texts`, because each needs its own prompts: all of them then get the texts of all.
    """
    rows = rows.copy()
    if "classes" in rows:
        draw = rows["classes"].str.extract(r"^half:(\d+)$", expand=False)
        rows["classes"], rows["draw"] = rows["classes"].mask(draw.notna(), "half"), draw.fillna("")
    if {"list", "class_texts"} <= set(rows):
        for _, group in rows.groupby("name"):
            pairs = group[["list", "class_texts"]].drop_duplicates()
            if pairs["list"].is_unique and pairs["class_texts"].is_unique:
                rows.loc[group.index, "class_texts"] = ", ".join(pairs["class_texts"])
    return rows


def harmonic_mean_of_means(rows: pd.DataFrame) -> float:
    """Return the harmonic mean of the mean top-1 on base classes and on novel classes; 0 if one of them is 0."""
    base, novel = rows["top1"].mean(), rows["novel top1"].mean()
    return 2 * base * novel / (base + novel) if base and novel else 0.0


def number(value: float, digits: int = 1) -> str:
    """Return a metric as text; "-" for NaN, if there was nothing to measure."""
    return "-" if math.isnan(value) else f"{value:.{digits}f}"


def _name(row: pd.Series) -> str:
    """Return a row's name, followed by "(983 of 1000 videos)" if some were left out."""
    videos = str(row.get("videos", ""))
    return f"{row['name']} ({videos} videos)" if " of " in videos else str(row["name"])


def _trained(row: pd.Series) -> str:
    return "0" if row["selection"] in ("zero-shot", "untrained") else f"{row['trainable_parameters'] / 1e6:.2f} M"


def markdown(header: list[str], body: list[list[str]]) -> str:
    """Return a Markdown table whose columns are aligned as text."""
    widths = [max(len(line[column]) for line in [header, *body]) for column in range(len(header))]

    def line(cells: list[str]) -> str:
        return "| " + " | ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)) + " |"

    return "\n".join([line(header), "|-" + "-|-".join("-" * width for width in widths) + "-|", *map(line, body)])


def read_metrics(path: Path) -> pd.DataFrame:
    """Return a `metrics.jsonl` with columns kind, epoch and those of CURVES; NaN where a line lacks a value.

    A run that was started again in its folder, from scratch or from a checkpoint, repeats epochs; the last line of an
    epoch counts. Raises ValueError if the file is empty or has a line that no run writes.
    """
    lines: list[dict] = []
    trained = 0.0
    for number, text in enumerate(path.read_bytes().splitlines(), start=1):
        try:
            values = json.loads(text)
            kind = values["kind"]
            if kind not in LINES:
                raise ValueError(kind)
            epoch = float(values["epoch" if kind == "train" else "step"])  # evaluations count epochs, not steps
            line = {"kind": kind, "epoch": epoch} | {name: float(values.get(name, "nan")) for name in CURVES}
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path}: line {number} is damaged: no run writes such a line") from error
        if kind == "train":
            if epoch <= trained:  # started again
                lines = [earlier for earlier in lines if earlier["epoch"] < epoch]
            trained = epoch
        lines.append(line)
    if not lines:
        raise ValueError(f"{path}: is empty; a run writes its first line after --n_display steps")
    return pd.DataFrame(lines).drop_duplicates(["kind", "epoch"], keep="last").sort_values("epoch")


def read_runs(paths: Sequence[Path]) -> dict[str, pd.DataFrame]:
    """Return `read_metrics` of each file, by the name of its folder; by the folder's path if two names are equal."""
    names = [path.resolve().parent.name for path in paths]
    if len(set(names)) < len(names):
        names = [str(path.parent) for path in paths]
    return {name: read_metrics(path) for name, path in zip(names, paths, strict=True)}


def draw_curves(runs: Mapping[str, pd.DataFrame], output: Path) -> None:
    """Draw runs, the results of `read_metrics` by name; raise ValueError if matplotlib is not installed."""
    try:
        from matplotlib import colormaps
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ValueError("--curves needs matplotlib: pip install matplotlib") from error
    colour = colormaps["tab10"] if len(runs) <= 10 else colormaps["turbo"].resampled(len(runs))
    figure = Figure(figsize=(13, 4 + 0.25 * math.ceil(len(runs) / LEGEND_COLUMNS)), layout="constrained")
    titles = {name: title for name, title in CURVES.items() if any(rows[name].notna().any() for rows in runs.values())}
    panels = figure.subplots(1, len(titles), sharex=True, squeeze=False)[0]
    for number, (name, rows) in enumerate(runs.items()):
        panels[0].plot([], [], color=colour(number), label=name)  # gives every run an entry in the legend
        for panel, metric in zip(panels, titles, strict=True):
            for kind, line in rows.dropna(subset=metric).groupby("kind"):
                panel.plot(line["epoch"], line[metric], LINES[kind], color=colour(number))
    for panel, title in zip(panels, titles.values(), strict=True):
        panel.set(title=title, xlabel="epoch")
        panel.ticklabel_format(axis="y", scilimits=(-2, 3))
        panel.grid(alpha=0.3)
    figure.legend(loc="outside lower center", ncols=LEGEND_COLUMNS, frameon=False)
    output.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(output, dpi=120)


def main(argv: Sequence[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else list(argv)
    if argv[:1] == ["compare"]:
        from tools.compare import main as compare  # imports torch, which tables do not need

        return compare(argv[1:])
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", type=Path, nargs="+", help="a results csv; with --curves, metrics.jsonl of runs")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--mean", action="store_true", help="one row per name: mean and deviation over seeds")
    what.add_argument("--has", nargs=2, metavar=("NAME", "SEED"), help="exit status 0 if the file has that run, else 1")
    what.add_argument("--curves", type=Path, metavar="PICTURE", help="draw runs' metrics.jsonl into this file")
    arguments = parser.parse_args(argv)
    try:
        if arguments.curves:
            check_file("--curves", arguments.curves, PICTURES)
            draw_curves(read_runs(arguments.files), arguments.curves)
            print(arguments.curves)
            return 0
        results_csv, *others = arguments.files
        if others:
            raise ValueError(f"{others[0]}: a table takes one results csv; only --curves takes several files")
        rows = read_rows(results_csv)
        if arguments.has:
            name, seed = arguments.has
            return 0 if ((rows["name"] == name) & (rows["seed"] == seed)).any() else 1
        if rows.empty:
            raise ValueError(f"{results_csv}: has no row yet")
        print_result(table_of_means(rows) if arguments.mean else table_of_runs(rows))
    except (ValueError, OSError) as error:
        print_error(error)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
