"""Checks that rows which a script of tables does not run again were made as it would make them now.

    python -m tools.finished PLAN ...

A PLAN is a file that ends each of its parts with a zero byte: a results csv, the program, and the flags of the run that
the script leaves out because the csv has its row. Settings that only change the cost, and the folder of data, may
differ. So another --epochs is told, instead of a table whose rows do not have it.
"""

import argparse
import shlex
import sys
from collections.abc import Sequence
from dataclasses import asdict
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import pandas as pd

from engine.cli import parse_flags
from engine.config import Config, ModelConfig, sections_with
from engine.identity import COST
from engine.messages import print_error
from engine.tasks.registry import TASKS
from tools.report import read_rows

FOLDERS = ("pretrained_dir", "data_path", "features_path")
OF_EVALUATION = ("precision", "precision_val")
RUN = ("seed", "do_train", "select_on", "holdout_videos")


def settings_of(program: str, flags: Sequence[str]) -> dict[str, Any]:
    """Return the settings that decide a run's numbers, by flag name; of files that are read, the names alone.

    Raises ValueError if this version does not take the flags. A checkpoint is not read.
    """
    task = Path(program).stem.removeprefix("main_task_")
    if task not in TASKS:
        raise ValueError(f"{program} is no training program of this project")
    settings = TASKS[task].settings
    config = Config.from_flat(parse_flags(sections_with(settings), ModelConfig.method, flags), settings)
    kept: dict[str, Any] = {"task": task, **config.model.options}
    for section in (config.model, config.data, config.task):
        kept |= asdict(section)
    optim = asdict(config.optim)
    kept |= optim if config.run.do_train else {name: optim[name] for name in OF_EVALUATION}
    kept |= {name: getattr(config.run, name) for name in RUN}
    kept["frames"] = "jpeg frame cache" if config.run.frame_cache and config.run.frame_cache_format == "jpeg" else ""
    for name in ("pretrained_clip_name", "train_csv", "val_csv", *config.task.places):
        if isinstance(kept[name], str) and Path(kept[name]).suffix:
            kept[name] = Path(kept[name]).name
    kept["init_model"] = "/".join(Path(kept["init_model"]).parts[-2:])  # the run's folder and the file
    return {name: value for name, value in kept.items() if name not in {"options", *COST, *FOLDERS}}


def difference(row: pd.Series, program: str, flags: Sequence[str]) -> str:
    """Return how the run of a row and a planned one differ, such as "--epochs 2, not 4"; empty if they do not.

    Raises ValueError if the row's command cannot be read.
    """
    _, made_by, *made_with = shlex.split(row["command"])
    made, planned = settings_of(made_by, made_with), settings_of(program, flags)
    names = [name for name in planned | made if made.get(name) != planned.get(name)]
    return " and ".join(f"--{name} {made.get(name)!r}, not {planned.get(name)!r}" for name in names)


def main(argv: Sequence[str] | None = None) -> int:
    """Return 0, or 2 after a sentence about the first row that differs."""
    parser = argparse.ArgumentParser(prog="python -m tools.finished", description=__doc__.partition("\n")[0])
    parser.add_argument("plans", type=Path, nargs="+", metavar="PLAN")
    rows_of = cache(read_rows)
    try:
        for plan in parser.parse_args(argv).plans:
            results, program, *flags = plan.read_text(encoding="utf-8").split("\0")[:-1]
            given = dict(pairwise(flags))
            rows = rows_of(Path(results))
            found = rows[(rows["name"] == given["--row_name"]) & (rows["seed"] == given["--seed"])]
            for _, row in found.iterrows():
                named = f"{results}: the row {row['name']}, seed {row['seed']}"
                try:
                    differs = difference(row, program, flags)
                except ValueError as error:
                    print(f"note: {named} cannot be compared with what would be run now ({error})", file=sys.stderr)
                    continue
                if differs:
                    raise ValueError(
                        f"{named} was made with {differs}: set `results` to another file, or pass the same values"
                    )
    except (ValueError, OSError) as error:
        print_error(error)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
