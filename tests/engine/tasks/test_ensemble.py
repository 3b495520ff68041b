"""Evaluations with a share of CLIP's scores, and on all videos of a data set."""

import csv

import numpy as np
import pytest

from engine.tasks.predictions import read_predictions
from main_task_recognition import main

FLAGS = ["--method", "stdd", "--lr", "1e-2", "--coef_lr", "1", "--epochs", "1", "--batch_size", "12"]


@pytest.fixture(scope="module")
def trained(small_actions, tmp_path_factory):
    out = tmp_path_factory.mktemp("trained")
    assert main(["--do_train", *small_actions.flags(), *FLAGS, "--output_dir", str(out)]) == 0
    return out / "last.safetensors"


def scores(small_actions, out, *flags: str) -> np.ndarray:
    results = ["--results_csv", str(out.parent / "results.csv"), "--row_name", out.name]
    argv = ["--do_eval", *small_actions.flags(), "--output_dir", str(out), "--test_views", "3x1", *results, *flags]
    assert main(argv) == 0
    return read_predictions(out / "predictions.npz").views


def test_scores_are_shares_of_both(small_actions, trained, tmp_path):
    """Compare with the frozen CLIP of the same frames, evaluated by itself, at the temperature of the checkpoint."""
    start = ["--init_model", str(trained)]
    own = scores(small_actions, tmp_path / "own", *start)
    clip = scores(small_actions, tmp_path / "clip", *start, "--ensemble_clip", "1")
    both = scores(small_actions, tmp_path / "both", *start, "--ensemble_clip", "0.3")
    np.testing.assert_allclose(both, 0.3 * clip + 0.7 * own, atol=1e-4)
    assert np.abs(own - clip).max() > 1e-2
    untrained = scores(small_actions, tmp_path / "zero", "--method", "clip4clip")
    # CLIP4Clip divides by the length of the mean frame, at another temperature: one factor for all classes of a clip.
    factor = np.linalg.norm(clip, axis=-1, keepdims=True) / np.linalg.norm(untrained, axis=-1, keepdims=True)
    np.testing.assert_allclose(clip, factor * untrained, rtol=1e-4, atol=1e-4)
    with open(tmp_path / "results.csv", newline="") as file:
        assert [row["classifier"] for row in csv.DictReader(file)] == [
            "text",
            "text + 1 CLIP",
            "text + 0.3 CLIP",
            "text",
        ]


def test_all_videos_are_those_of_both_lists(small_actions, trained, tmp_path, capsys):
    plain = ["--method", "clip4clip", "--test_videos", "all"]
    assert len(scores(small_actions, tmp_path / "all", *plain)) == 32 + 12
    with open(tmp_path / "results.csv", newline="") as file:
        assert [row["list"] for row in csv.DictReader(file)] == ["all videos of both lists"]
    capsys.readouterr()
    argv = ["--do_eval", *small_actions.flags(), "--output_dir", str(tmp_path / "x"), "--test_videos", "all"]
    assert main([*argv, "--init_model", str(trained)]) == 2
    assert "was trained on videos of ucf101, which --test_videos all tests too" in capsys.readouterr().err
    assert main(["--do_train", *small_actions.flags(), *FLAGS, "--test_videos", "all"]) == 2
    assert "--test_videos all tests on training videos: pass --do_eval" in capsys.readouterr().err


@pytest.mark.parametrize("other", [("--classifier", "linear"), ("--view_fusion", "features", "--test_views", "3x1")])
def test_only_scores_of_texts_are_mixed(small_actions, tmp_path, capsys, other):
    argv = ["--do_eval", *small_actions.flags(), "--method", "clip4clip", "--output_dir", str(tmp_path / "x")]
    assert main([*argv, "--ensemble_clip", "0.2", *other]) == 2
    assert f"so it cannot do {' '.join(other[:2])}; leave one" in capsys.readouterr().err
