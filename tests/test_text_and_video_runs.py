"""T-MASS and TC-CLIP from the command line. Their scores do not depend on how many clips are encoded at once."""

import numpy as np
import pytest

from main_task_recognition import main as recognition
from main_task_retrieval import main as retrieval
from tests.training_runs import lines_of, training

T_MASS = ["--method", "t_mass", "--trials", "3", "--lr", "1e-3", "--coef_lr", "0.1"]
TC_CLIP = ["--method", "tc_clip", "--context_tokens", "6", "--tome_r", "3", "--lr", "1e-3", "--coef_lr", "0.1"]


def metrics_of(folder):
    (line,) = lines_of(folder, "test")
    return {name: value for name, value in line.items() if name.startswith(("t2v", "v2t", "top1", "top5"))}


def test_retrieval_by_t_mass(small_data, tmp_path):
    flags = [*T_MASS, "--epochs", "1", "--gradient_accumulation_steps", "2"]
    assert retrieval(training(small_data, tmp_path / "run", *flags)) == 0
    assert all(np.isfinite([line["loss"] for line in lines_of(tmp_path / "run", "train")]))
    weights = ["--init_model", str(tmp_path / "run/last.safetensors"), "--batch_size_val", "3"]
    again = ["--do_eval", *small_data.flags(), *T_MASS[:4], *weights, "--output_dir", str(tmp_path / "again")]
    assert retrieval(again) == 0
    assert metrics_of(tmp_path / "run") == metrics_of(tmp_path / "again")


@pytest.mark.parametrize("flags", [TC_CLIP, pytest.param(T_MASS, marks=pytest.mark.slow)], ids=["tc_clip", "t_mass"])
def test_recognition(small_actions, tmp_path, flags):
    few = ["--do_train", "--epochs", "1", "--batch_size", "8"]
    assert recognition([*few, *small_actions.flags(), *flags, "--output_dir", str(tmp_path / "run")]) == 0
    assert all(np.isfinite([line["loss"] for line in lines_of(tmp_path / "run", "train")]))
    weights = ["--init_model", str(tmp_path / "run/last.safetensors"), "--batch_size_val", "5"]
    again = ["--do_eval", *small_actions.flags(), *flags[:-4], *weights, "--output_dir", str(tmp_path / "again")]
    assert recognition(again) == 0
    scores = [np.load(tmp_path / name / "predictions.npz")["views"] for name in ("run", "again")]
    np.testing.assert_allclose(*scores, atol=1e-4)
