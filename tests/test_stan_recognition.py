"""STAN on action recognition, on real small mp4 files: frozen texts, several views, recomputed blocks."""

import numpy as np
import pytest
from safetensors.torch import load_file

from engine.tasks.predictions import read_predictions
from main_task_recognition import main
from modules.methods.stan import STAN
from tests.training_runs import lines_of


def test_it_trains_and_evaluates(small_actions, tmp_path, monkeypatch):
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
