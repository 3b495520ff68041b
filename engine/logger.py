"""Writes a run's log, metrics.jsonl, TensorBoard files and rows of a results csv; reports to Weights & Biases if asked.

Only the main process writes.
"""

import csv
import json
import logging
import logging.handlers
import platform
import shlex
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from dataloaders.quoting import shorten
from engine.distributed import Process
from engine.writing import write_atomically, writing

log = logging.getLogger("stop")

# Values of `selection` in results of weights that the run did not train itself.
ZERO_SHOT, UNTRAINED, AS_GIVEN, AVERAGE = "zero-shot", "untrained", "checkpoint as given", "average"  # or their start


class RunLogger:
    """Writes the progress of a run into one folder.

    Args:
        wandb_project: also report to this Weights & Biases project; if empty, to none.
        run_name: the run's name there; if empty, the folder's name.
        begin: open the files at once. If false, nothing is written before `begin` is called, so that a refused run
            leaves the folder unchanged. Earlier log lines appear on the console at once and in the file later.

    Raises:
        OSError: the folder cannot be written to.
        ValueError: Weights & Biases is requested, but is not installed or does not start.
    """

    def __init__(
        self, output_dir: Path, process: Process, wandb_project: str = "", run_name: str = "", begin: bool = True
    ) -> None:
        self.output_dir, self.process = output_dir, process
        self.is_main = process.is_main
        self._project, self._run_name = wandb_project, run_name
        self._settings: tuple[str, dict[str, Any]] | None = None
        self._tensorboard: Any = None
        self._wandb: Any = None
        log.handlers.clear()
        log.propagate = False
        log.setLevel(logging.INFO if self.is_main else logging.WARNING)
        self._format = logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S")
        self._waiting = logging.handlers.MemoryHandler(sys.maxsize, logging.CRITICAL + 1, flushOnClose=False)
        for handler in (logging.StreamHandler(sys.stdout), *([self._waiting] if self.is_main else [])):
            handler.setFormatter(self._format)
            log.addHandler(handler)
        if begin:
            self.begin()

    def begin(self) -> None:
        """Open the files; a second call does nothing. All processes call this together; if one fails, all fail."""
        self.process.on_main(self._open)

    def _open(self) -> None:
        if self._tensorboard is not None:
            return
        try:
            from torch.utils.tensorboard import SummaryWriter  # takes a second to import
        except ImportError as error:
            raise ValueError(f"TensorBoard is missing ({error}): pip install tensorboard") from error
        with writing(self.output_dir):
            self.output_dir.mkdir(parents=True, exist_ok=True)
        if self._project:
            name = self._run_name or self.output_dir.resolve().name
            self._wandb = _start_wandb(self._project, name, self.output_dir)
        with writing(self.output_dir / "log.txt"):
            file = _LogFile(self.output_dir / "log.txt")
        file.setFormatter(self._format)
        log.removeHandler(self._waiting)
        log.addHandler(file)
        self._waiting.setTarget(file)
        self._waiting.flush()
        with writing(self.output_dir / "tensorboard"):
            self._tensorboard = SummaryWriter(str(self.output_dir / "tensorboard"))
        if self._settings is not None:
            self._write_settings(*self._settings)

    def config(self, settings: dict[str, Any], name: str = "config.json") -> None:
        """Write all settings, by flag name, to the file `name`; before `begin`, keep them until then."""
        if not self.is_main:
            return
        self._settings = (name, settings)
        if self._tensorboard is not None:
            self._write_settings(name, settings)

    def _write_settings(self, name: str, settings: dict[str, Any]) -> None:
        text = json.dumps(settings, indent=2) + "\n"
        write_atomically(self.output_dir / name, lambda partial: partial.write_text(text))
        if self._wandb is not None:
            self._wandb.config.update(settings)

    def metrics(self, step: int, kind: str, values: dict[str, Any]) -> None:
        """Append a line to `metrics.jsonl`; add its numbers to TensorBoard and Weights & Biases as `kind/...`."""
        if not self.is_main:
            return
        assert self._tensorboard is not None
        path = self.output_dir / "metrics.jsonl"
        with writing(path), open(path, "a") as file:
            file.write(json.dumps({"time": round(time.time(), 2), "step": step, "kind": kind} | values) + "\n")
        scalars = {
            f"{kind}/{name}".replace("@", "").replace(" ", "_"): value
            for name, value in values.items()
            if isinstance(value, int | float)
        }
        with writing(self.output_dir / "tensorboard"):
            for tag, value in scalars.items():
                self._tensorboard.add_scalar(tag, value, step)
        if self._wandb is not None:
            self._wandb.log({f"{kind}/step": step} | scalars)

    def rewind(self, step: int, epoch: float) -> None:
        """Delete the lines of `metrics.jsonl` that a run resumed after `step` steps will write again.

        The steps of evaluations are epochs; lines of --do_eval stay. A last line that a crash cut short is deleted too.
        """
        path = self.output_dir / "metrics.jsonl"
        if not self.is_main or not path.is_file():
            return
        kept = []
        for text in path.read_text().splitlines(keepends=True):
            try:
                line = json.loads(text)
            except json.JSONDecodeError:
                continue
            of_training = line["step"] <= (step if line["kind"] == "train" else epoch) and "selection" not in line
            if of_training or line.get("selection", "").startswith((ZERO_SHOT, UNTRAINED, AS_GIVEN, AVERAGE)):
                kept.append(text)
        write_atomically(path, lambda partial: partial.write_text("".join(kept)))

    def close(self) -> None:
        """Close all files; raise OSError if that fails, unless another error is being handled."""
        failed = sys.exc_info()[0] is not None
        try:
            if self._tensorboard is not None:
                with writing(self.output_dir / "tensorboard"):
                    self._tensorboard.close()
        except OSError:
            if not failed:
                raise
        finally:
            if self._wandb is not None:
                self._wandb.finish(exit_code=int(failed))
            for handler in list(log.handlers):
                log.removeHandler(handler)
                with suppress(OSError):  # already raised when the line was logged
                    handler.close()


class _LogFile(logging.FileHandler):
    """A log file that raises an error if a line cannot be written; `logging` only prints a traceback and goes on."""

    def handleError(self, record: logging.LogRecord) -> None:
        error = sys.exc_info()[1]
        if isinstance(error, OSError):
            with writing(Path(self.baseFilename)):
                raise error
        super().handleError(record)


def _start_wandb(project: str, name: str, folder: Path) -> Any:
    """Start a run on Weights & Biases, with its local files in `folder`."""
    try:
        import wandb
    except ImportError as error:
        raise ValueError("--wandb_project needs Weights & Biases: pip install wandb") from error
    try:
        run = wandb.init(project=project, name=name, dir=str(folder))
    except wandb.Error as error:
        raise ValueError(f"--wandb_project {project}: Weights & Biases did not start: {error}") from error
    # A step must not decrease there, but evaluations count epochs, so each kind of line gets its own axis.
    # https://docs.wandb.ai/guides/track/log/customize-logging-axes
    for kind in ("train", "holdout", "val", "test"):
        run.define_metric(f"{kind}/step")
        run.define_metric(f"{kind}/*", step_metric=f"{kind}/step")
    return run


def provenance(process: Process) -> dict[str, str]:
    """Return the origin of a measurement: date, command, commit, versions, hardware."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(Path(__file__).parent), *arguments]
        try:
            return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
        except (OSError, subprocess.CalledProcessError):
            return "unknown"

    # A new row in a results file is not a change of the code.
    code = (":(top)", ":(top,exclude)results")
    status = git("status", "--porcelain", "--untracked-files=no", "--", *code)
    changed = "+changes" if status not in ("", "unknown") else ""
    device = torch.cuda.get_device_name(process.device) if process.device.type == "cuda" else _cpu_name()
    spec = getattr(sys.modules["__main__"], "__spec__", None)  # of a module that python -m ran
    program = ["-m", spec.name] if spec else [Path(sys.argv[0]).name]
    return {
        "date": time.strftime("%Y-%m-%d"),
        "commit": git("rev-parse", "--short", "HEAD") + changed,
        "command": shlex.join(["python", *program, *sys.argv[1:]]),
        "versions": f"python {platform.python_version()}, torch {torch.__version__}",
        "hardware": f"{process.world_size} x {device}",
    }


def _cpu_name() -> str:
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def check_columns(path: Path, columns: Iterable[str]) -> None:
    """Raise ValueError if a results csv has other columns than these; a new or empty file takes any."""
    if not path.is_file() or not path.stat().st_size:
        return
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            there = next(csv.reader(file), [])
    except (csv.Error, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: is not a results csv ({shorten(str(error))}); pass another --results_csv") from error
    columns = list(columns)
    if sorted(there) != sorted(columns):
        lacks = [f"lacks {name!r}" for name in columns if name not in there]
        more = [f"also has {shorten(name, 40)!r}" for name in there if name not in columns]
        faults = lacks + more or ["has one twice"]
        raise ValueError(
            f"{path}: has other columns than this run's row (it {', '.join(faults[:3])}); pass another --results_csv"
        )


def append_row(path: Path, row: Mapping[str, Any]) -> None:
    """Append a row to a csv file; creates it with a header. Raises ValueError if the file has other columns."""
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    check_columns(path, row)
    columns, line_ends = list(row), True
    if path.is_file() and path.stat().st_size:
        content = path.read_bytes()
        columns = next(csv.reader([content.decode("utf-8-sig").splitlines()[0]]))
        line_ends = content.endswith(b"\n")  # an editor may have removed the last one
    with writing(path), open(path, "a", newline="", encoding="utf-8") as file:
        if not line_ends:
            file.write("\r\n")
        writer = csv.DictWriter(file, columns)
        if file.tell() == 0:
            writer.writeheader()
        writer.writerow(row)
