"""Collects what a run and a resume point must have in common, so that the run may continue from the point.

A video file counts as the same if its path below --features_path and its size are the same. So a run may continue on a
copied or moved data set, but not on re-encoded videos. Modification times do not count. File contents are not read,
because that would take hours. Settings that change only the cost do not count either.
"""

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from dataloaders.samples import Sample
from engine.config import Config
from modules.methods import Method, without_newer
from modules.seal import content_sha256

# Settings that do not change what is learned. Every other setting counts, including any that is added later.
SOURCE = (  # `of_the_weights` covers their content
    "pretrained_clip_name", "pretrained_dir", "init_model", "clip_activation", "clip_vision_heads", "clip_text_heads",
    "clip_statistics", "clip_resize", "clip_interpolation",
)  # fmt: skip
PLACES = ("data_path", "features_path", "train_csv", "val_csv")  # `of_the_samples` covers their content
# Left out at their defaults, because earlier versions lack them.
NEWER = ("adam_beta2", "adam_eps", "adam_eps_uncorrected", "cosine_epochs")
COST = ("num_thread_reader", "prefetch_factor", "gradient_accumulation_steps", "activation_checkpointing", "compile")
FEW = 10  # ids that a message lists; for more ids it gives a digest
DIGITS = 16  # hex digits of a digest: 64 bits


def of_the_settings(config: Config, precision: str) -> dict[str, Any]:
    """Return the settings that change what is learned or selected, by name; `precision` is --precision without "auto".

    A setting that NEWER or `newer` of task or method names is left out at its default: earlier versions lack it.
    """
    model, optim, run, task = config.model, config.optim, config.run, config.task
    left_out = {*SOURCE, *PLACES, *COST, *task.of_the_run, *task.places, "options", "precision_val"}
    newer = [(task, name) for name in task.newer] + [(optim, name) for name in NEWER]
    left_out |= {name for owner, name in newer if getattr(owner, name) == getattr(type(owner), name)}
    left_out |= {"frame_stride"} if config.data.frame_sampling not in ("dense", "slowfast") else set()
    kept = {
        name: value
        for section in (model, config.data, optim, task)
        for name, value in asdict(section).items()
        if name not in left_out
    }
    selection = {"precision_val": optim.precision_val} if run.select_on != "last" else {}
    pixels = "jpeg frame cache" if run.frame_cache and run.frame_cache_format == "jpeg" else "as decoded"
    return {
        **kept,
        **without_newer(model.method, model.options),
        **selection,
        "precision": precision,
        "frames": pixels,
        **{name: getattr(run, name) for name in ("seed", "select_on", "holdout_videos")},
    }


def of_the_weights(method: Method, backbone_sha256: str) -> dict[str, str]:
    """Return the CLIP's hash, its facts that no tensor shows, and a hash of all tensors that are not trained."""
    trained = {name for name, _ in method.trainable_parameters()}
    tensors = method.state_dict() | method.unsaved_tensors()
    frozen = {name: tensor for name, tensor in tensors.items() if name not in trained}
    return {
        "CLIP (sha256)": backbone_sha256,
        "CLIP": str(method.clip.backbone),
        "frozen tensors": f"{len(frozen)}, sha256 {content_sha256(frozen, {})[:DIGITS]}",
    }


def of_the_samples(
    samples: Sequence[Sample], selected_on: Sequence[Sample], features_path: Path, left_out: Sequence[str]
) -> dict[str, Any]:
    """Return digests of the training samples and of those that select the weights, and the ids left out."""
    return {
        **_of_a_split(samples, features_path, "training"),
        **_of_a_split(selected_on, features_path, "selection"),
        "left out": ", ".join(left_out) if len(left_out) <= FEW else digest(left_out),
    }


def _of_a_split(samples: Sequence[Sample], features_path: Path, split: str) -> dict[str, str]:
    """Return digests of a split's videos in their order, their files and their texts; `split` starts each name."""
    texts = "labels" if samples and samples[0].label else "captions"
    return {
        f"{split} videos": digest([sample.video_id, sample.start, sample.end] for sample in samples),
        f"{split} files": digest([_place(s.path, features_path), s.path.stat().st_size] for s in samples),
        f"{split} {texts}": digest([*s.captions, *([s.label] if s.label else [])] for s in samples),
    }


def _place(path: Path, features_path: Path) -> str:
    return path.relative_to(features_path).as_posix() if path.is_relative_to(features_path) else path.name


def digest(rows: Iterable[Any]) -> str:
    """Return the number of rows and a hash of all rows in their order."""
    lines = [json.dumps(row) for row in rows]
    digest = hashlib.sha256("\n".join(lines).encode()).hexdigest()
    return f"{len(lines)}, sha256 {digest[:DIGITS]}"
