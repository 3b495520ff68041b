"""The files of a run, its reports to Weights & Biases (a stand-in), and the origin of a measurement."""

import csv
import json
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

from engine import logger
from engine.distributed import Process
from engine.logger import RunLogger, provenance
from engine.tasks.retrieval import Retrieval
from main_task_retrieval import main
from tests.small_data import write_small_data

MAIN, OTHER = (Process(rank, 2, torch.device("cpu")) for rank in (0, 1))


class FakeWandb:
    """A stand-in for the parts of the module `wandb` that a run uses; it records the calls."""

    class Error(Exception):
        pass

    def __init__(self):
        self.started, self.settings, self.lines, self.axes, self.exit_codes = [], {}, [], {}, []
        self.config = SimpleNamespace(update=self.settings.update)

    def init(self, **arguments):
        self.started.append(arguments)
        return self

    def define_metric(self, name, step_metric=None):
        self.axes[name] = step_metric

    def log(self, values):
        self.lines.append(values)

    def finish(self, exit_code):
        self.exit_codes.append(exit_code)


@pytest.fixture
def wandb(monkeypatch):
    fake = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    return fake


@pytest.fixture
def tensorboard(monkeypatch):
    """Return a list that receives the scalars added to TensorBoard: (tag, value, step)."""
    added = []
    writer = SimpleNamespace(add_scalar=lambda *scalar: added.append(scalar), close=lambda: None)
    monkeypatch.setattr("torch.utils.tensorboard.SummaryWriter", lambda folder: writer)
    return added


def test_weights_and_biases_gets_what_tensorboard_gets(tmp_path, wandb, tensorboard):
    run = RunLogger(tmp_path / "mine", MAIN, "videos")
    run.config({"lr": 0.1})
    run.metrics(50, "train", {"epoch": 0.5, "loss": 2.0})
    run.metrics(1, "test", {"t2v R@1": 40.0, "selection": "last epoch"})
    run.close()
    assert wandb.started == [{"project": "videos", "name": "mine", "dir": str(tmp_path / "mine")}]
    assert wandb.settings == json.loads((tmp_path / "mine/config.json").read_text()) == {"lr": 0.1}
    assert wandb.lines == [
        {"train/step": 50, "train/epoch": 0.5, "train/loss": 2.0},
        {"test/step": 1, "test/t2v_R1": 40.0},
    ]
    assert tensorboard == [("train/epoch", 0.5, 50), ("train/loss", 2.0, 50), ("test/t2v_R1", 40.0, 1)]
    for split in ("test", "holdout", "val"):  # these count epochs, so they cannot share an axis with training steps
        assert wandb.axes[f"{split}/*"] == f"{split}/step"
    assert wandb.exit_codes == [0]


def test_a_run_that_fails_is_reported_with_name_and_settings_and_marked_as_failed(tmp_path, wandb):
    data = write_small_data(tmp_path / "data", n_train=1, n_test=2)
    (data.videos / "video2.mp4").write_bytes(b"this is no video")
    flags = ["--do_eval", *data.flags(), "--output_dir", str(tmp_path / "run")]
    flags += ["--wandb_project", "videos", "--row_name", "STOP, 12"]
    assert main(flags) == 2
    assert wandb.started[0]["name"] == wandb.settings["row_name"] == "STOP, 12"
    assert wandb.exit_codes == [1]


def test_a_refused_run_is_not_reported_and_leaves_no_file(tmp_path, wandb):
    flags = ["--do_eval", "--val_csv", "v.csv", "--features_path", "videos", "--output_dir", str(tmp_path / "run")]
    flags += ["--pretrained_clip_name", str(tmp_path / "none.pt"), "--wandb_project", "videos"]
    assert main(flags) == 2
    assert not wandb.started
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("process", "project"), [(OTHER, "videos"), (MAIN, "")])
def test_only_the_main_process_reports_and_only_if_asked(tmp_path, wandb, process, project):
    run = RunLogger(tmp_path, process, project)
    run.metrics(1, "train", {"loss": 1.0})
    run.close()
    assert not wandb.started
    assert (tmp_path / "metrics.jsonl").exists() == process.is_main


def test_wandb_is_imported_only_if_asked(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)  # an import raises ImportError
    RunLogger(tmp_path, MAIN).close()


def test_a_missing_wandb_is_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ValueError, match=r"^--wandb_project needs Weights & Biases: pip install wandb$"):
        RunLogger(tmp_path, MAIN, "videos")


def test_a_wandb_that_does_not_start_is_one_sentence(tmp_path, wandb, monkeypatch):
    def init(**_):
        raise wandb.Error("no API key")

    monkeypatch.setattr(wandb, "init", init)
    with pytest.raises(ValueError, match=r"--wandb_project videos: .* did not start: no API key"):
        RunLogger(tmp_path, MAIN, "videos")


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """Make a git repository with one commit, where `provenance` looks."""
    for name in ("engine/logger.py", "results/runs.csv"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_text("1\n")
    git = ["git", "-c", "user.name=A", "-c", "user.email=a@b.c", "-c", "commit.gpgsign=false"]
    for command in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "first"]):
        subprocess.run([*git, *command], cwd=tmp_path, check=True)
    monkeypatch.setattr(logger, "__file__", str(tmp_path / "engine/logger.py"))
    return tmp_path


@pytest.mark.parametrize(
    ("changed", "mark"),
    [
        ([], ""),
        (["results/runs.csv"], ""),
        (["engine/logger.py"], "+changes"),
        (["engine/logger.py", "results/runs.csv"], "+changes"),
        (["engine/untracked.py"], ""),
    ],
)
def test_changed_code_is_marked_and_changed_results_are_not(repository, changed, mark):
    for name in changed:
        (repository / name).write_text("2\n")
    head = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=repository, capture_output=True, text=True, check=True
    )
    assert provenance(MAIN)["commit"] == head.stdout.strip() + mark


@pytest.mark.parametrize(
    ("spec", "command"),
    [
        (None, "python program.py --lr 1"),
        (SimpleNamespace(name="benchmarks.methods"), "python -m benchmarks.methods --lr 1"),
    ],
)
def test_the_command_can_be_typed_again(monkeypatch, spec, command):
    monkeypatch.setattr(sys.modules["__main__"], "__spec__", spec)
    monkeypatch.setattr(sys, "argv", ["/somewhere/program.py", "--lr", "1"])
    assert provenance(MAIN)["command"] == command


def test_a_row_names_the_commit_at_the_start_of_the_run(small_data, tmp_path, monkeypatch):
    state, evaluate = {"commit": "begun"}, Retrieval.evaluate

    def evaluate_for_hours(*arguments, **more):
        state["commit"] = "later"
        return evaluate(*arguments, **more)

    monkeypatch.setattr(Retrieval, "evaluate", evaluate_for_hours)
    monkeypatch.setattr("engine.run.provenance", lambda process: dict(state))
    results = tmp_path / "results.csv"
    flags = [*small_data.flags(), "--output_dir", str(tmp_path / "run"), "--results_csv", str(results)]
    assert main(["--do_eval", *flags]) == 0
    assert [row["commit"] for row in csv.DictReader(results.open())] == ["begun"]


def test_resuming_deletes_the_lines_that_are_written_again_and_keeps_evaluations(tmp_path):
    kept = [
        {"step": 4, "kind": "train"},
        {"step": 1, "kind": "holdout"},
        *({"step": 2, "kind": "test", "selection": name} for name in ("checkpoint as given", "untrained", "zero-shot")),
    ]
    gone = [
        {"step": 5, "kind": "train"},
        {"step": 2, "kind": "holdout"},
        {"step": 1, "kind": "test", "selection": "last epoch"},
    ]
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in (*gone, *kept)) + '{"step": 3, "ki')
    RunLogger(tmp_path, MAIN, begin=False).rewind(4, 1.0)
    assert [json.loads(line) for line in path.read_text().splitlines()] == kept
