"""Checks before a run: first those that need only the settings, then those that need the model.

No check writes anything. Each raises ValueError or OSError with one sentence.
"""

from pathlib import Path
from typing import Any

import torch
from torch import nn

from engine.config import Config
from engine.distributed import Process
from engine.evaluate import evaluating
from engine.flags import check_file, check_folder
from engine.gradients import unreached
from engine.logger import UNTRAINED, ZERO_SHOT, check_columns, log, provenance
from engine.tasks.base import Task, TaskStep, flat_metrics
from modules.clip import CLIP
from modules.methods import Method
from modules.similarity import cosine_similarity, masked_mean

SAME_COSINE = 1e-4  # far above rounding errors in fp32, far below the effect of any prompt


def result_row(
    config: Config,
    *,
    clip: str,
    videos: str,
    n_trainable: int,
    selection: str,
    epoch: int,
    metrics: dict[str, Any],
) -> dict[str, Any]:
    """Return the row for --results_csv, without its provenance; `metrics` start with the columns of the task."""
    row = {
        "name": config.run.row_name or config.model.method,
        "method": config.model.method,
        "clip": clip,
        "data": config.task.datatype,
        "videos": videos,
        "trainable_parameters": n_trainable,
        "seed": config.run.seed,
        "selection": selection,
        "epoch": epoch,
    }
    return row | metrics


def columns_to_come(config: Config, task: type[Task], process: Process) -> list[str]:
    """Return the columns of the row that a run will write."""
    metrics = task.columns(config) | flat_metrics(task.metrics_to_come(config), task.short_names)
    row = result_row(config, clip="", videos="", n_trainable=0, selection="", epoch=0, metrics=metrics)
    return list(row | provenance(process))


def check_places(config: Config, task: type[Task], process: Process) -> None:
    """Check that the run's folder and the results csv can be written, and that the row fits the csv."""

    def check() -> None:
        if not config.run.output_dir:  # from an unset shell variable; files would land in the working directory
            raise ValueError("--output_dir is empty: name a folder, or leave it out for runs/default")
        check_folder("--output_dir", Path(config.run.output_dir))
        if config.run.results_csv:
            results_csv = Path(config.run.results_csv)
            check_file("--results_csv", results_csv)
            check_columns(results_csv, columns_to_come(config, task, process))

    process.on_main(check)


def check_context(max_words: int, clip: CLIP) -> None:
    """Check that this CLIP can read texts of `max_words` tokens."""
    if max_words > (limit := clip.text.context_length):
        raise ValueError(
            f"--max_words {max_words} exceeds the {limit} tokens that this CLIP reads: pass --max_words {limit}"
        )


@torch.no_grad()
def check_finite(module: nn.Module, source: str) -> None:
    """Check that all weights are finite; the message names the tensor and `source`, the file with the weights."""
    for name, tensor in module.state_dict().items():
        if tensor.is_floating_point() and not (finite := tensor.isfinite()).all():
            raise ValueError(
                f"{source}: {int((~finite).sum())} of the {tensor.numel()} values of the tensor {name} are NaN or "
                "infinite; the file is damaged, or was saved after training diverged: use another one"
            )


def check_trainable(step: TaskStep, name: str) -> None:
    """Check that the method, or a head of the loss, has parameters to train."""
    if not any(True for _ in (step if step.scored_by_loss else step.method).trainable_parameters()):
        raise ValueError(
            f"nothing to train: with these options --method {name} adds nothing to the frozen CLIP; switch on one of "
            "its parts, or evaluate it with --do_eval"
        )


class ZeroShotProbe:
    """Tells whether an untrained method scores like CLIP with the mean of the frame embeddings.

    It compares scores: a method may add parameters that change nothing, or change the result without any parameter.
    """

    def __init__(self, clip: CLIP, max_frames: int, max_words: int) -> None:
        generator = torch.Generator().manual_seed(0)
        visual, text = clip.visual, clip.text
        device = clip.logit_scale.device
        # Two clips, because `stop_released` compares the frames of a batch.
        shape = (2, max_frames, 3, visual.image_size, visual.image_size)
        self.video = torch.randn(shape, generator=generator).to(device)
        self.frame_mask = torch.ones(shape[:2], dtype=torch.bool, device=device)
        vocabulary = text.token_embedding.num_embeddings
        token_ids = torch.randint(vocabulary - 2, (4, max_words), generator=generator)
        if text.end_id is not None:  # END stands last alone
            token_ids[token_ids == text.end_id] = vocabulary - 2
        token_ids[:, 0] = vocabulary - 2  # START
        token_ids[:, -1] = vocabulary - 1 if text.end_id is None else text.end_id
        self.token_ids = token_ids.to(device)
        with torch.no_grad():
            frames = visual(self.video.flatten(0, 1)).unflatten(0, shape[:2])
            video = masked_mean(frames, self.frame_mask)
            self.logits = cosine_similarity(text(self.token_ids), video, clip.logit_scale)

    def same(self, method: Method) -> bool:
        """Return whether the method gives the same scores of captions and clips as CLIP."""
        with evaluating(method):
            text, video = method.encode_text(self.token_ids), method.encode_video(self.video, self.frame_mask)
            logits = method.similarity(text, video)
        return bool((logits - self.logits).abs().max() < SAME_COSINE * method.clip.logit_scale.exp())

    def name_of(self, step: TaskStep, name: str, process: Process) -> str:
        """Return the label of --method `name` in results: "zero-shot" if it scores like CLIP, else "untrained"."""
        if not step.scored_by_loss and self.same(step.method):
            return ZERO_SHOT
        if process.is_main:
            log.warning(
                "--method %s is evaluated untrained: %s random, drawn with --seed; pass --init_model, or evaluate "
                "zero-shot CLIP (--method clip4clip, no trained head)", name,
                "the head is" if step.scored_by_loss else "the parts that it adds to CLIP are",
            )  # fmt: skip
        return UNTRAINED


def check_reached(method: Method, max_frames: int, max_words: int) -> None:
    """Check that all trained tensors take part in the loss for clips of one frame; some need two frames.

    The first training step would find this too, but only after the run has written to its folder.
    """
    if max_frames > 1 or method.reads_frame_captions or not any(True for _ in method.trainable_parameters()):
        return
    with torch.random.fork_rng():  # so that dropout here does not change the random numbers of the run
        probe = ZeroShotProbe(method.clip, max_frames, max_words)
        training = method.training
        method.train()
        text, video = method(probe.video, probe.frame_mask, probe.token_ids)
        loss, extra = method.similarity(text, video).square().sum(), method.regulariser(probe.video, video)
        (loss if extra is None else loss + extra).backward()
    error = unreached(dict(method.trainable_parameters()), one_frame=True)
    method.zero_grad(set_to_none=True)
    method.train(training)
    if error is not None:
        raise error
