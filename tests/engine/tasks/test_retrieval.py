"""What retrieval adds to a run: its losses, and the split that selects the weights."""

import csv
import json

import pytest
import torch
from safetensors.torch import load_file

from engine.checkpoint import read_header
from main_task_retrieval import main
from tests.processes import run_as_group
from tests.training_runs import METHODS, interrupt_after, lines_of, run, training

SIGMOID = {"loss.logit_scale", "loss.logit_bias"}


@pytest.mark.parametrize("method", METHODS)
def test_the_sigmoid_loss_learns_its_own_scale_and_bias(small_data, tmp_path, method):
    flags = training(small_data, tmp_path / "one", *METHODS[method], "--loss", "sigmoid")
    assert main(flags) == 0
    lines = lines_of(tmp_path / "one", "train")
    assert lines[-1]["loss"] < lines[0]["loss"]
    assert lines[0]["loss_logit_bias"] != lines[-1]["loss_logit_bias"]
    weights = load_file(tmp_path / "one" / "last.safetensors")
    assert weights.keys() >= SIGMOID
    assert "clip.logit_scale" not in weights  # it has no part in this loss
    assert float(weights["loss.logit_bias"]) == pytest.approx(lines[-1]["loss_logit_bias"])
    log = (tmp_path / "one" / "log.txt").read_text()
    assert "group loss             2 tensors" in log
    run_as_group(2, run, [*flags[:-1], *flags[-1:], "--output_dir", str(tmp_path / "two")])
    parts = ["--gradient_accumulation_steps", "2", "--output_dir", str(tmp_path / "parts")]
    assert main([*flags, *parts]) == 0
    for other in ("two", "parts"):
        curve = [line["loss"] for line in lines_of(tmp_path / other, "train")]
        assert curve == pytest.approx([line["loss"] for line in lines], abs=1e-5), other


def test_the_sigmoid_loss_goes_on_to_the_bit(small_data, tmp_path, monkeypatch, capsys):
    flags = [*METHODS["stop"], "--loss", "sigmoid", "--select_on", "test"]
    assert main(training(small_data, tmp_path / "whole", *flags)) == 0
    with monkeypatch.context() as patched:
        interrupt_after(patched, 7)
        run(training(small_data, tmp_path / "cut", *flags), 75)
    cut = training(small_data, tmp_path / "cut", *METHODS["stop"], "--select_on", "test", "--resume", "auto")
    assert main(cut) == 2
    assert "loss is 'sigmoid' there and None here" in capsys.readouterr().err
    assert main([*cut, "--loss", "sigmoid"]) == 0
    for name in ("last", "best"):
        first, second = (load_file(tmp_path / folder / f"{name}.safetensors") for folder in ("whole", "cut"))
        assert first.keys() == second.keys()
        assert all(torch.equal(tensor, second[key]) for key, tensor in first.items())


def test_a_checkpoint_brings_its_loss_and_another_loss_starts_anew(small_data, tmp_path):
    assert main(training(small_data, tmp_path / "one", *METHODS["stop"], "--loss", "sigmoid")) == 0
    weights, result = str(tmp_path / "one" / "last.safetensors"), lines_of(tmp_path / "one", "test")[-1]
    evaluation = [*small_data.flags(), "--init_model", weights, "--output_dir", str(tmp_path / "eval")]
    assert main(["--do_eval", *evaluation]) == 0
    assert lines_of(tmp_path / "eval", "test")[-1]["t2v R@1"] == result["t2v R@1"]
    more = ["--init_model", weights, "--lr", "0"]
    assert main(training(small_data, tmp_path / "on", *METHODS["stop"], *more, "--loss", "sigmoid")) == 0
    assert all(torch.equal(tensor, load_file(tmp_path / "on" / "last.safetensors")[name])
               for name, tensor in load_file(weights).items())  # fmt: skip
    assert main(training(small_data, tmp_path / "other", *METHODS["stop"], *more)) == 0
    assert "was trained with another loss: the parameters of this loss start fresh" in (
        (tmp_path / "other" / "log.txt").read_text()
    )


def test_describe_counts_the_losss_parameters(capsys):
    for loss, expected in (("sigmoid", {"logit_scale": 1, "logit_bias": 1}), ("symmetric_info_nce", None)):
        assert main(["--describe", "--method", "vpt", "--loss", loss]) == 0
        assert json.loads(capsys.readouterr().out).get("loss_parameters") == expected


@pytest.fixture
def three_splits(small_data, tmp_path) -> list[str]:
    """Flags of a custom list with a split column, over the videos of the small data."""
    path = tmp_path / "list.csv"
    rows = [(f"video{n}.mp4", f"film {n}", "train" if n < 8 else "val" if n < 12 else "test") for n in range(17)]
    with open(path, "w", newline="") as file:
        csv.writer(file).writerows([("path", "caption", "split"), *rows])
    flags = small_data.flags()
    for name in ("--train_csv", "--val_csv"):
        flags[flags.index(name) + 1] = str(path)
    without = flags.index("--data_path")
    return ["--datatype", "custom", *flags[:without], *flags[without + 2 :]]


def test_the_validation_split_selects_the_weights(three_splits, tmp_path):
    few = ["--epochs", "3", "--batch_size", "4", "--n_display", "1", "--output_dir", str(tmp_path / "run")]
    flags = ["--do_train", *three_splits, *METHODS["clip4clip"], *few, "--select_on", "val"]
    assert main(flags) == 0
    scores = [line["t2v R@1"] for line in lines_of(tmp_path / "run", "val")]
    assert len(scores) == 3
    best = max(epoch for epoch, score in enumerate(scores, 1) if score == max(scores))
    assert read_header(tmp_path / "run" / "best.safetensors").epoch == best
    result = lines_of(tmp_path / "run", "test")[-1]
    assert (result["step"], result["selection"]) == (best, "best epoch on the validation split")
    assert "val split: 4 videos, 4 captions" in (tmp_path / "run" / "log.txt").read_text()


def test_a_data_set_without_a_validation_split_says_so_first(small_data, tmp_path, capsys):
    assert main(training(small_data, tmp_path / "run", "--select_on", "val")) == 2
    message = "--select_on val: msrvtt has no validation split; pass --select_on holdout"
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
