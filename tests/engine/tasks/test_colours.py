"""The unchanged engine trains, selects and resumes a second task, with several processes and in parts."""

import json

import pytest
import torch
from safetensors.torch import load_file

from engine import run
from engine.checkpoint import read_header
from engine.config import SECTIONS, Config, sections_with
from engine.tasks.base import flat_metrics
from engine.tasks.registry import TASKS, Retrieval
from main_task_retrieval import main as retrieval
from modules.options import options_of
from tests.engine.tasks.colours import Colours, ColourSettings
from tests.processes import run_as_group
from tests.training_runs import interrupt_after, lines_of


def flags(small_data, output, *more: str) -> list[str]:
    without = [flag for flag in small_data.flags() if flag != "--expand_msrvtt_sentences"]
    few = ["--epochs", "3", "--batch_size", "4", "--n_display", "1", "--method", "clip4clip", "--coef_lr", "1"]
    return ["--do_train", *without, *few, "--lr", "1e-3", "--output_dir", str(output), *more]


def succeed(argv: list[str]) -> None:
    assert run.main(Colours, argv) == 0


def test_the_task_learns_and_writes_its_row(small_data, tmp_path):
    results = tmp_path / "results.csv"
    more = ["--select_on", "holdout", "--holdout_videos", "2", "--results_csv", str(results)]
    assert run.main(Colours, flags(small_data, tmp_path / "run", *more)) == 0
    losses = [line["loss"] for line in lines_of(tmp_path / "run", "train")]
    assert losses[-1] < losses[0]
    assert results.read_text().splitlines()[0].split(",")[9] == "top-1"
    assert read_header(tmp_path / "run" / "last.safetensors").task == "colours"
    assert "training clips 8, steps 6 in 3 epochs" in (tmp_path / "run" / "log.txt").read_text()
    assert {"top-1", "selection"} <= lines_of(tmp_path / "run", "test")[-1].keys()


def test_parts_and_processes_change_nothing(small_data, tmp_path):
    assert run.main(Colours, flags(small_data, tmp_path / "one")) == 0
    assert run.main(Colours, flags(small_data, tmp_path / "parts", "--gradient_accumulation_steps", "2")) == 0
    run_as_group(2, succeed, flags(small_data, tmp_path / "two"))
    curve = [line["loss"] for line in lines_of(tmp_path / "one", "train")]
    assert len(set(curve)) == len(curve) == 6
    for other in ("parts", "two"):
        assert [line["loss"] for line in lines_of(tmp_path / other, "train")] == pytest.approx(curve, abs=1e-5)


def test_the_task_resumes_to_the_bit(small_data, tmp_path, monkeypatch):
    assert run.main(Colours, flags(small_data, tmp_path / "whole")) == 0
    with monkeypatch.context() as patched:
        interrupt_after(patched, 3)
        assert run.main(Colours, flags(small_data, tmp_path / "cut")) == run.EXIT_INTERRUPTED
    assert run.main(Colours, flags(small_data, tmp_path / "cut", "--resume", "auto")) == 0
    first, second = (load_file(tmp_path / name / "last.safetensors") for name in ("whole", "cut"))
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())


def test_a_checkpoint_of_one_task_is_evaluated_on_the_other(small_data, tmp_path):
    """Check that the method comes from the checkpoint, but neither the data set nor the task's settings."""
    assert run.main(Colours, flags(small_data, tmp_path / "colours")) == 0
    train = flags(small_data, tmp_path / "retrieval", "--expand_msrvtt_sentences", "--same_video", "positives")
    assert retrieval(train) == 0
    files = [flag for flag in small_data.flags() if flag != "--expand_msrvtt_sentences"]
    for program, other, column in (
        (retrieval, "colours", "t2v R@1"),
        (lambda argv: run.main(Colours, argv), "retrieval", "top-1"),
    ):
        weights = str(tmp_path / other / "last.safetensors")
        output = tmp_path / f"of {other}"
        assert program(["--do_eval", *files, "--init_model", weights, "--output_dir", str(output)]) == 0
        assert column in lines_of(output, "test")[-1]
        assert json.loads((output / "config.json").read_text())["method"] == "clip4clip"


def test_help_lists_only_the_tasks_own_flags(capsys):
    for task, its, others in ((Retrieval, "--dsl", "--classes"), (Colours, "--classes", "--dsl")):
        with pytest.raises(SystemExit):
            run.main(task, ["--help"])
        printed = capsys.readouterr().out
        assert its in printed
        assert others not in printed
    assert run.main(Colours, ["--describe", "--dsl"]) == 2
    assert "unknown argument --dsl" in capsys.readouterr().err


@pytest.mark.parametrize("task", [*TASKS.values(), Colours])
def test_every_task_keeps_the_contract(task, small_actions):
    shared = {option.name for section in SECTIONS.values() for option in options_of(section)}
    settings = task.settings()
    own = [option.name for option in options_of(task.settings)]
    assert not shared & set(own)
    assert "datatype" in own
    assert set(settings.readers) == set(settings.needed_flags)
    for names in (settings.of_the_run, settings.places, settings.newer):
        assert set(names) <= set(own)
    measured, metric = task.selects_by
    config = Config.from_flat({"describe": True, "data_path": str(small_actions.lists)}, task.settings)
    assert metric in task.metrics_to_come(config)[measured]
    assert not set(task.columns(config)) & set(flat_metrics(task.metrics_to_come(config), task.short_names))
    assert sections_with(task.settings)["task"] is task.settings


def test_the_registry_names_each_task_as_its_settings_do():
    assert all(task.settings.task == name for name, task in TASKS.items())
    assert ColourSettings.task not in TASKS
