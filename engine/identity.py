"""What a run must have in common with a resume point to go on from it.

A file counts as the same if its place below --features_path and its size are the same. So a data set may be copied or
moved and a run goes on, but not from raw videos to re-encoded ones. Modification times do not count, and bytes are not
read, which would take hours. Settings that change cost alone do not count either.
"""

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from dataloaders.samples import Sample
from engine.config import Config
from modules.methods import Method
from modules.seal import content_sha256

# Settings that do not change what is learned. Every other setting counts, also one that is added later.
SOURCE = (  # told by content: `of_the_weights`
    "pretrained_clip_name", "pretrained_dir", "init_model", "clip_activation", "clip_vision_heads", "clip_text_heads",
    "clip_statistics", "clip_resize", "clip_interpolation",
)  # fmt: skip
PLACES = ("data_path", "features_path", "train_csv", "val_csv")  # `of_the_data`
COST = ("num_thread_reader", "prefetch_factor", "gradient_accumulation_steps", "activation_checkpointing", "compile")
FEW = 10  # ids that a message names; of more it says how many
DIGITS = 16  # of a digest in hex: 64 bits


def of_the_settings(config: Config, precision: str) -> dict[str, Any]:
    """Return the settings that change what is learned or selected, by name; `precision` is what --precision stands for.

    A setting of the task with its default is left out if `TaskSettings.newer` names it: earlier versions lack it.
    """
    model, optim, run, task = config.model, config.optim, config.run, config.task
    left_out = {*SOURCE, *PLACES, *COST, *task.of_the_run, *task.places, "options", "precision_val"}
    left_out |= {name for name in task.newer if getattr(task, name) == getattr(type(task), name)}
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
        **model.options,
        **selection,
        "precision": precision,
        "frames": pixels,
        **{name: getattr(run, name) for name in ("seed", "select_on", "holdout_videos")},
    }


def of_the_weights(method: Method, backbone_sha256: str) -> dict[str, str]:
    """Return the CLIP, with the facts that its tensors do not show, and all else that training does not change."""
    trained = {name for name, _ in method.trainable_parameters()}
    frozen = {name: tensor for name, tensor in method.state_dict().items() if name not in trained}
    return {
        "CLIP (sha256)": backbone_sha256,
        "CLIP": str(method.clip.backbone),
        "frozen tensors": f"{len(frozen)}, sha256 {content_sha256(frozen, {})[:DIGITS]}",
    }


def of_the_samples(
    samples: Sequence[Sample], selected_on: Sequence[Sample], features_path: Path, left_out: Sequence[str]
) -> dict[str, Any]:
    """Return the training videos and their texts, the ids left out, and the videos that select the weights."""
    return {
        **_of_a_split(samples, features_path, "training"),
        **_of_a_split(selected_on, features_path, "selection"),
        "left out": ", ".join(left_out) if len(left_out) <= FEW else digest(left_out),
    }


def _of_a_split(samples: Sequence[Sample], features_path: Path, split: str) -> dict[str, str]:
    """Return the videos of a split in their order, their files and their texts; `split` is for the names."""
    return {
        f"{split} videos": digest([sample.video_id, sample.start, sample.end] for sample in samples),
        f"{split} files": digest([_place(s.path, features_path), s.path.stat().st_size] for s in samples),
        f"{split} captions": digest(list(sample.captions) for sample in samples),
    }


def _place(path: Path, features_path: Path) -> str:
    return path.relative_to(features_path).as_posix() if path.is_relative_to(features_path) else path.name


def digest(rows: Iterable[Any]) -> str:
    """Return the number of rows and a hash of them in their order."""
    lines = [json.dumps(row) for row in rows]
    digest = hashlib.sha256("\n".join(lines).encode()).hexdigest()
    return f"{len(lines)}, sha256 {digest[:DIGITS]}"
