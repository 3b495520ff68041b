"""STDD from the command line: its random masks in both tasks, and its released checkpoints."""

from pathlib import Path

import torch

from engine.distributed import process_group
from engine.run import EXIT_INTERRUPTED
from main_task_recognition import main as recognition
from main_task_retrieval import main as retrieval
from modules.clip_weights import load_clip
from modules.methods import build_method
from tests.engine.one_training import one_training
from tests.processes import run_as_group
from tests.training_runs import assert_same_weights, interrupt_after, lines_of, training

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


def draw_on_a_process(folder: Path) -> None:
    with process_group() as process:
        method = one_training("stdd", process.device, folder / str(process.rank), process=process).task_step.method
        kept = method._kept(torch.ones(3, 8, dtype=torch.bool))
        torch.save((kept, method.state_dict()), folder / f"{process.rank}.pt")


def test_processes_draw_different_masks_from_the_same_weights(tmp_path):
    run_as_group(2, draw_on_a_process, tmp_path)
    (first, ours), (second, theirs) = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))
    assert not torch.equal(first, second)
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())
