"""STDD from the command line: its random masks in both tasks, and its released checkpoints."""

import subprocess

import pytest
import torch

from engine.run import EXIT_INTERRUPTED
from main_task_recognition import main as recognition
from main_task_retrieval import main as retrieval
from modules.clip_weights import load_clip
from modules.methods import build_method
from tests.training_runs import assert_same_weights, interrupt_after, launch, lines_of, training

STDD = ["--method", "stdd", "--lr", "1e-4", "--coef_lr", "1"]


def actions(small_actions, output, *more: str) -> list[str]:
    return [*small_actions.flags(), *STDD, "--epochs", "1", "--batch_size", "8", "--output_dir", str(output), *more]


def last_losses(output) -> list[float]:
    return [line["loss"] for line in lines_of(output, "train")]


def test_a_resumed_retrieval_run_draws_the_masks_of_a_whole_one(small_data, tmp_path, monkeypatch):
    """The gradient is accumulated from parts, whose second pass draws the masks of the first."""
    flags = [*STDD, "--epochs", "1", "--gradient_accumulation_steps", "2", "--frame_sampling", "segment"]
    assert retrieval(training(small_data, tmp_path / "whole", *flags)) == 0
    with monkeypatch.context() as patched:
        interrupt_after(patched, 3)
        assert retrieval(training(small_data, tmp_path / "cut", *flags)) == EXIT_INTERRUPTED
    assert retrieval(training(small_data, tmp_path / "cut", *flags, "--resume", "auto")) == 0
    assert_same_weights(tmp_path / "cut", tmp_path / "whole")
    assert last_losses(tmp_path / "cut") == last_losses(tmp_path / "whole")


def test_a_shuffled_evaluation_scores_the_same_whatever_ran_before(small_actions, tmp_path):
    out = tmp_path / "run"
    assert recognition(["--do_train", *actions(small_actions, out, "--shuffle_eval")]) == 0
    again = actions(small_actions, out, "--shuffle_eval", "--batch_size_val", "5")
    assert recognition(["--do_eval", *again, "--init_model", str(out / "last.safetensors")]) == 0
    trained, evaluated = lines_of(out, "test")
    assert (trained["top1"], trained["mean_class"]) == (evaluated["top1"], evaluated["mean_class"])


def test_a_released_checkpoint_is_evaluated(small_actions, tmp_path):
    """Its keys begin with `model.`, and it also holds the raw model."""
    torch.manual_seed(5)
    source = build_method("stdd", load_clip(small_actions.clip))
    with torch.no_grad():
        for _, parameter in source.trainable_parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    state = {f"model.{source.released_name(name)}": tensor for name, tensor in source.state_dict().items()}
    state |= {key.replace("model.", "raw_model.", 1): torch.zeros_like(tensor) for key, tensor in state.items()}
    path = tmp_path / "checkpoint_epoch_00022.pyth"
    torch.save({"epoch": 21, "model_state": state, "optimizer_state": {}, "cfg": "a text"}, path)
    assert recognition(["--do_eval", *actions(small_actions, tmp_path / "run"), "--init_model", str(path)]) == 0
    assert "tensors that served its training alone (raw_model." in (tmp_path / "run" / "log.txt").read_text()


def test_an_odd_grid_is_one_sentence_before_anything_is_read(capsys):
    assert retrieval(["--describe", "--method", "stdd", "--pretrained_clip_name", "ViT-B/32"]) == 2
    error = capsys.readouterr().err
    assert "--temporal stcross_attend needs an even grid of patches, and this CLIP's is 7 x 7" in error


@pytest.mark.slow
def test_two_processes_draw_different_masks(small_data, tmp_path):
    """Both train, on the rows of all frames of the other process too; with the same masks twice the loss would be that
    of another run."""
    flags = training(small_data, tmp_path / "two", *STDD, "--epochs", "1", "--frame_sampling", "segment")
    assert subprocess.run(launch(2, flags), check=False).returncode == 0
    assert retrieval(training(small_data, tmp_path / "one", *STDD, "--epochs", "1", "--frame_sampling", "segment")) == 0
    both, alone = last_losses(tmp_path / "two"), last_losses(tmp_path / "one")
    assert len(both) == len(alone)
    assert both[0] != alone[0]
