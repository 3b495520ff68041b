"""STAN on real small mp4 files: action recognition with frozen texts and several views, retrieval in two processes."""

import numpy as np
import pytest
from safetensors.torch import load_file

from engine.tasks.predictions import read_predictions
from main_task_recognition import main
from main_task_retrieval import main as retrieval
from modules.methods.stan import STAN
from tests.processes import run_as_group
from tests.training_runs import assert_same_weights, lines_of, training


def test_recognition(small_actions, tmp_path, monkeypatch):
    """The texts of the four classes are encoded once for a training and its evaluation."""
    encoded, encode = [], STAN.encode_text

    def counted(self, token_ids):
        if len(token_ids) > 1:  # not the single one that tells whether texts learn
            encoded.append(len(token_ids))
        return encode(self, token_ids)

    monkeypatch.setattr(STAN, "encode_text", counted)
    stan = ["--method", "stan", "--stan_layers", "2", "--no-train_text", "--lr", "3e-4", "--coef_lr", "0.1"]
    few = ["--epochs", "1", "--batch_size", "8", "--activation_checkpointing", "--test_views", "1x3"]
    views = ["--view_fusion", "features"]
    run = tmp_path / "run"
    assert main(["--do_train", *small_actions.flags(), *stan, *few, *views, "--output_dir", str(run)]) == 0
    curve = [line["loss"] for line in lines_of(run, "train")]
    assert len(curve) == 4
    assert all(np.isfinite(curve))
    trained = load_file(run / "last.safetensors")
    assert not any("text" in name for name in trained)
    assert "branch.levels.1.temporal.fc.weight" in trained
    assert encoded == [4]

    weights = ["--init_model", str(run / "last.safetensors"), "--output_dir", str(tmp_path / "again")]
    assert main(["--do_eval", *small_actions.flags(), *weights, "--test_views", "1x3", *views]) == 0
    (first,), (again,) = lines_of(run, "test"), lines_of(tmp_path / "again", "test")
    assert again["top1"] == pytest.approx(first["top1"])
    predictions = [read_predictions(folder / "predictions.npz").views for folder in (run, tmp_path / "again")]
    np.testing.assert_allclose(*predictions, atol=1e-5)


def test_two_processes_train_what_one_does(small_data, tmp_path):
    """In fp32 and without dropped paths; the two recompute all blocks, those of the branch included."""
    stan = ["--method", "stan", "--stan_layers", "2", "--drop_path", "0", "--lr", "1e-4", "--epochs", "1"]

    def train(*more: str) -> None:
        assert retrieval(training(small_data, tmp_path / f"of {len(more)}", *stan, *more)) == 0

    train()
    run_as_group(2, train, "--activation_checkpointing")
    curves = [[line["loss"] for line in lines_of(tmp_path / run, "train")] for run in ("of 0", "of 1")]
    assert curves[1] == pytest.approx(curves[0], rel=1e-4)
    assert_same_weights(tmp_path / "of 0", tmp_path / "of 1", atol=2e-4, rtol=1e-3)
