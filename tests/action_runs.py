"""Short runs of action recognition on the small actions."""

from main_task_recognition import main
from tests.training_runs import lines_of

STOP_FLAGS = ["--method", "stop", "--n_regions", "2", "--prompt_dropout", "0", "--lr", "2e-3"]


def training(small_actions, output, *more: str) -> list[str]:
    """Return the flags of a training with 32 clips and 2 steps an epoch."""
    few = ["--epochs", "1", "--batch_size", "12", *STOP_FLAGS]
    return ["--do_train", *small_actions.flags(), *few, "--output_dir", str(output), *more]


def evaluation(small_actions, output, *more: str) -> list[str]:
    return ["--do_eval", *small_actions.flags(), "--output_dir", str(output), *more]


def succeed(argv: list[str]) -> None:
    assert main(argv) == 0


def losses(output) -> list[float]:
    return [line["loss"] for line in lines_of(output, "train")]


def class_text_training(small_actions, folder):
    """Return the folder of a training with class texts."""
    out = folder / "run"
    succeed(training(small_actions, out))
    return out
