"""Prints the comparison of methods, measured beside published, as a Markdown table, and draws it.

    python -m tools.table results/table_msrvtt_common.csv
    python -m tools.table results/table_msrvtt_common.csv --benchmark results/benchmark.json --chart figs/table.png

A row is the mean over the seeds of one name, with the deviation (n - 1). GFLOP are counted for one clip and one
caption, forward, from the settings in the row's command. "Step" is the time of a training step over the floor, the work
of every method on a frozen CLIP, from files of benchmarks.methods; a row has it if its options were measured on its
CLIP. "Cited" columns are what a paper prints, and where; cited and measured numbers never share a column.

    python -m tools.table results/zero_shot_msrvtt.csv --backbones

prints a row of each backbone instead, with its parameters and the protocol of its row.
"""

import argparse
import csv
import json
import math
import shlex
import sys
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pandas as pd

from engine.cli import parse_config
from engine.config import Config
from engine.describe import describe
from engine.flags import PICTURES, check_file
from engine.messages import print_error, print_result
from engine.tasks.registry import TASKS
from modules.clip import CLIP
from modules.clip_weights import backbone_of
from modules.undrawn import undrawn
from tools.report import METRICS, markdown, number, read_rows

Model = tuple[str, str, tuple[tuple[str, Any], ...]]  # the name of its CLIP, method, options
CITED = Path(__file__).parent / "cited_msrvtt.csv"
CITED_METRICS = ("t2v R@1", "t2v R@5", "t2v R@10", "t2v MnR", "v2t R@1", "v2t R@5", "v2t R@10", "v2t MnR")
UNPUBLISHED = ", learning rate not published"  # ends the names of rows whose papers do not state it


def read_cited(path: Path) -> dict[str, dict[str, str]]:
    """Return the published rows by name; raise OSError or ValueError if the file is not a csv of them."""
    with open(path, newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file)
        lacks = [name for name in ("name", *CITED_METRICS, "source") if name not in (reader.fieldnames or [])]
        if lacks:
            raise ValueError(f"{path}: is no csv of published rows, it lacks the columns {', '.join(lacks)}")
        return {row["name"]: row for row in reader}


def model_of(config: Config) -> Model:
    """Return what a row of a benchmark and one of the results must have in common to be of the same model.

    Frames and words are left out: a benchmark has its own numbers of them.
    """
    of_data = ("max_frames", "max_words")
    options = {name: value for name, value in config.model.options.items() if name not in of_data}
    return config.model.pretrained_clip_name, config.model.method, tuple(sorted(options.items()))


def steps_of(path: Path) -> dict[Model, float]:
    """Return the step over the floor by model, from a file of benchmarks.methods; raise OSError or ValueError."""
    steps = {}
    try:
        content = json.loads(path.read_text())
        clip = content["settings"]["pretrained_clip_name"]
        for row in content["methods"]:  # such as "stop --merge 3"
            flags = ["--describe", "--pretrained_clip_name", clip, "--method", *shlex.split(row["method"])]
            steps[model_of(parse_config(flags, TASKS["retrieval"].settings))] = float(row["floor_ratio"])
        return steps
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path}: is not what benchmarks.methods --output writes") from error


def config_of(row: pd.Series) -> Config:
    """Return the settings of the run that wrote a row.

    Raises ValueError if its command is none of this project or has flags that no longer exist.
    """
    python, program, *flags = shlex.split(row["command"])
    task = Path(program).stem.removeprefix("main_task_")
    if task not in TASKS:
        raise ValueError(f"the row {row['name']} was not written by a training program: {row['command'][:60]}")
    if "--do_train" not in flags and "--do_eval" not in flags:
        raise ValueError(f"the row {row['name']} neither trained nor evaluated: {python} {program}")
    return parse_config(flags, TASKS[task].settings)


@cache
def _gflop(method: str, clip: str, options: tuple[tuple[str, Any], ...], frames: int, words: int) -> float:
    return float(describe(method, clip, "", dict(options), frames, words)["gflops_per_clip"])


def gflop_of(config: Config) -> float | None:
    """Return the operations of a run's model in 10^9, or None if its CLIP is not on this machine."""
    model, data = config.model, config.data
    options = tuple(sorted(model.options.items()))
    try:
        return _gflop(model.method, model.pretrained_clip_name, options, data.max_frames, data.max_words)
    except FileNotFoundError:
        return None


def compare(
    rows: pd.DataFrame, cited: Mapping[str, Mapping[str, str]], steps: Mapping[Model, float]
) -> tuple[list[str], list[list[str]], list[dict[str, Any]]]:
    """Return header and cells of the table, and what the chart draws of each row.

    Published rows come first in the order of their file, also those without a measured one, then the others, the best
    first.
    """
    metrics = [name for name in METRICS if name in rows and "(" not in name]
    ranked_by = "t2v R@1" if "t2v R@1" in rows else "top1"
    groups = dict(list(rows.groupby("name", sort=False)))
    best_first = sorted(groups, key=lambda name: groups[name][ranked_by].mean(), reverse=True)
    measured = {name.removesuffix(UNPUBLISHED): name for name in best_first}
    header = ["", "trained", "GFLOP", "step", *(METRICS[name] for name in metrics), "seeds"]
    header += ["cited T2V R@1", "R@5", "R@10", "MnR", "cited V2T R@1", "R@5", "R@10", "MnR", "cited from"]
    body, points = [], []
    for name in [*cited, *(name for name in measured if name not in cited)]:
        quoted = [cited.get(name, {}).get(metric, "") for metric in (*CITED_METRICS, "source")]
        if name not in measured:
            body.append([name, "", "", "", *("" for _ in metrics), "", *quoted])
            continue
        group = groups[measured[name]]
        first = group.iloc[0]
        trained = 0 if first["selection"] == "zero-shot" else int(first["trainable_parameters"])
        config = config_of(first)
        gflop = gflop_of(config)
        step = steps.get(model_of(config)) if trained else None
        cells = [
            number(group[metric].mean()) + (f" ± {group[metric].std():.1f}" if len(group) > 1 else "")
            for metric in metrics
        ]
        counts = [
            f"{trained / 1e6:.{3 if 0 < trained < 5e3 else 2}f} M",  # 4,608 are not 0.00 M
            "" if gflop is None else f"{gflop:.1f}",
            "" if step is None else f"{step:.2f}",
        ]
        body.append([measured[name], *counts, *cells, str(len(group)), *quoted])
        recall, spread = group[ranked_by].mean(), group[ranked_by].std() if len(group) > 1 else 0.0
        points.append(
            {"name": name, "recall": recall, "spread": spread, "trained": trained, "gflop": gflop, "step": step}
        )
    return header, body, points


def compare_backbones(rows: pd.DataFrame) -> tuple[list[str], list[list[str]]]:
    """Return header and cells of a table with a row for each row of the results, the best R@1 first.

    Parameters and pixels are left empty where the backbone is not on this machine.
    """
    metrics = [name for name in METRICS if name in rows and "(" not in name]
    first = next(name for name in ("t2v R@1", "top1", *metrics) if name in metrics)
    body = []
    for _, row in rows.sort_values(first, ascending=False, kind="stable").iterrows():
        config = config_of(row)
        parameters, pixels = _backbone_cells(config)
        gflop = gflop_of(config)
        cells = ["" if gflop is None else f"{gflop:.1f}", *(number(row[metric]) for metric in metrics)]
        body.append([row["name"], parameters, *cells, _protocol(config, row) + pixels])
    return ["", "parameters (vision)", "GFLOP", *(METRICS[name] for name in metrics), "protocol"], body


def _backbone_cells(config: Config) -> tuple[str, str]:
    """Return the parameters of a run's backbone, and how it gets its pixels; empty if it is not on this machine."""
    model = config.model
    try:
        backbone = backbone_of(model.pretrained_clip_name, model.pretrained_dir, model.asked_of_clip())
    except FileNotFoundError:
        return "", ""
    with undrawn():
        clip = CLIP(backbone.architecture, backbone)
    whole, vision = (sum(parameter.numel() for parameter in part.parameters()) / 1e6 for part in (clip, clip.visual))
    how, side = backbone.preprocessing, f"{clip.visual.image_size}/{clip.visual.patch_size}"
    resize = "squash" if how.resize_mode == "squash" else "crop"
    return f"{whole:.1f} M ({vision:.1f})", f"; {side} pixels, {resize}, {how.interpolation}"


def _protocol(config: Config, row: pd.Series) -> str:
    data, method = config.data, config.model.method
    how = f"{method}, {row['selection']}"
    if method == "clip4clip" and row["selection"] == "zero-shot":
        how = "CLIP on video"
    rate = f" at {data.feature_framerate:g} a second" if data.feature_framerate else ""
    frames = f"{data.max_frames} frames{rate}, {data.frame_sampling}"
    return f"{how}; {row['videos']} videos; {frames}; {data.max_words} words"


def draw(points: Sequence[Mapping[str, Any]], output: Path) -> None:
    """Draw R@1 or top-1 over trained parameters, GFLOP and step time; raise ValueError without matplotlib."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ValueError("--chart needs matplotlib: pip install matplotlib") from error
    titles = {"trained": "trained parameters, millions", "gflop": "GFLOP per clip", "step": "training step / floor"}
    shown = {key: title for key, title in titles.items() if any(point[key] for point in points)}
    if not shown:
        raise ValueError("--chart has nothing to draw: no row was trained, and no CLIP of a row is on this machine")
    ranked = sorted(points, key=lambda point: point["recall"], reverse=True)
    figure = Figure(figsize=(5 * len(shown) + 3.5, max(5.5, 0.22 * len(ranked))), layout="constrained")
    panels = figure.subplots(1, len(shown), sharey=True, squeeze=False)[0]
    for panel, (key, title) in zip(panels, shown.items(), strict=True):
        drawn = [(rank, point) for rank, point in enumerate(ranked, 1) if point[key]]
        values = [point[key] / 1e6 if key == "trained" else point[key] for _, point in drawn]
        places = [math.log(value) for value in values] if key == "trained" else values
        heights = apart(places, [point["recall"] for _, point in drawn])
        for (rank, point), value, height in zip(drawn, values, heights, strict=True):
            colour = "C3" if point["name"].startswith("STOP") else "C0"
            panel.errorbar(value, point["recall"], point["spread"], fmt="o", color=colour, elinewidth=0.8)
            panel.annotate(f"   {rank}", (value, point["recall"]), (value, height), size=8, va="center",
                           arrowprops={"arrowstyle": "-", "color": "0.7", "lw": 0.5})  # fmt: skip
        if key == "trained":
            panel.set_xscale("log")
        panel.margins(x=0.12, y=0.08)
        panel.set_xlabel(title)
        panel.grid(alpha=0.3)
    panels[0].set_ylabel("R@1, text to video, or top-1, %")
    lines = [f"{rank:2}  {point['name']}  {number(point['recall'])}" for rank, point in enumerate(ranked, 1)]
    panels[-1].annotate("\n".join(lines), (1.03, 1), xycoords="axes fraction", size=8, va="top", linespacing=1.5)
    figure.savefig(output, dpi=120)


def apart(places: Sequence[float], heights: Sequence[float]) -> list[float]:
    """Raise labels, as little as is needed, so that no two of them are close in both directions."""
    width = 0.08 * (max(places) - min(places))
    height = 0.03 * (max(heights) - min(heights))
    labels: dict[int, float] = {}
    for index in sorted(range(len(places)), key=lambda index: heights[index]):
        label = heights[index]
        for taken in sorted(labels[other] for other in labels if abs(places[other] - places[index]) <= width):
            if abs(label - taken) < height:
                label = taken + height
        labels[index] = label
    return [labels[index] for index in range(len(places))]


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table; return 0, or 2 after one sentence about a mistake."""
    parser = argparse.ArgumentParser(prog="python -m tools.table", description=__doc__.partition("\n")[0])
    parser.add_argument("results", type=Path, help="a results csv, such as that of scripts/table_msrvtt.sh")
    published = parser.add_mutually_exclusive_group()
    published.add_argument("--cited", type=Path, help="csv of published rows (default: MSR-VTT, ViT-B/32)")
    published.add_argument("--no_cited", action="store_true", help="no published rows, for other data")
    parser.add_argument("--benchmark", type=Path, nargs="+", default=[], help="files of benchmarks.methods, for steps")
    parser.add_argument("--chart", type=Path, help="draw R@1 over parameters, GFLOP and step time into this picture")
    parser.add_argument("--backbones", action="store_true", help="a row of each backbone, with its protocol")
    arguments = parser.parse_args(argv)
    try:
        if arguments.chart:
            check_file("--chart", arguments.chart, PICTURES)
        given = {"--cited": arguments.cited, "--benchmark": arguments.benchmark, "--chart": arguments.chart}
        if arguments.backbones and (vain := [flag for flag, value in given.items() if value]):
            raise ValueError(f"{vain[0]} has no effect with --backbones: leave one of them out")
        cited = {} if arguments.no_cited else read_cited(arguments.cited or CITED)
        steps = {model: ratio for path in arguments.benchmark for model, ratio in steps_of(path).items()}
        rows = read_rows(arguments.results)
        if rows.empty:
            raise ValueError(f"{arguments.results}: has no row yet")
        if arguments.backbones:
            print_result(markdown(*compare_backbones(rows)))
            return 0
        header, body, points = compare(rows, cited, steps)
        if arguments.no_cited:
            header, body = header[:-9], [cells[:-9] for cells in body]
        print_result(markdown(header, body))
        if arguments.chart:
            draw(points, arguments.chart)
            print(f"\n{arguments.chart}")
    except (ValueError, OSError) as error:
        print_error(error)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
