"""Builds trainings of any method on batches that need no video."""

from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import torch
import torch._dynamo

from dataloaders.datasets import Batch, TrainingPairs
from dataloaders.frames import FrameReader
from dataloaders.sampler import EpochSampler
from dataloaders.samples import Sample
from engine.config import OptimConfig
from engine.distributed import Process
from engine.logger import RunLogger
from engine.precision import autocast_for
from engine.tasks.contrastive import ContrastiveStep
from engine.train import Training
from modules.methods import METHODS as ALL_METHODS
from modules.methods import build_method, method_options
from tests.tiny import TINY, fitting_options, tiny_batch, tiny_clip


def one_training(name: str, device: torch.device, folder: Path, **settings: Any) -> Training:
    """Return a training of a method. Its own pairs cannot be read; use the batches of `one_batch`."""
    options, process = (
        fitting_options(name) | settings.pop("options", {}),
        settings.pop("process", Process(0, 1, device)),
    )
    method = build_method(name, tiny_clip(architecture=replace(TINY, text_width=TINY.embed_dim)), **options)
    samples = [Sample(f"video{number}", folder / "none.mp4", ("a caption",)) for number in range(4)]
    pairs = TrainingPairs(samples, lambda caption: torch.zeros(1, 8), FrameReader(4, 32), False, 0)
    positives = settings.pop("same_video", "negatives") == "positives"
    autocast = autocast_for(settings.get("precision", "auto"), device)
    return Training(
        ContrastiveStep(method.to(device).train(), autocast, positives=positives),
        pairs,
        EpochSampler(len(pairs), 4, 0, 1, 0),
        OptimConfig(batch_size=4, epochs=8, **settings),
        process,
        RunLogger(folder, process),
        seed=0,
        num_workers=0,
        prefetch_factor=2,
    )


def one_batch(seed: int, frame_captions: bool = False) -> Batch:
    video, frame_mask, token_ids = tiny_batch(seed, batch=4)
    if frame_captions:
        token_ids = torch.stack([token_ids, *(token_ids.roll(1 + t, 0) for t in range(video.shape[1]))], dim=1)
    return {
        "video": video.clamp(0, 1).mul(255).to(torch.uint8),
        "frame_mask": frame_mask,
        "token_ids": token_ids,
        "index": torch.arange(4),
        "video_index": torch.tensor([0, 1, 1, 2]),
    }


def every_switch() -> list[Any]:
    """Return test parameters: every method with its defaults, and with every other value of a non-number option."""
    found = []
    for name, method in ALL_METHODS.items():
        found.append((name, {}))
        for option in method_options(method):
            others = [not option.default] if option.type is bool else []
            if get_origin(option.type) is Literal:
                others = [choice for choice in get_args(option.type) if choice != option.default]
            found += [(name, {"options": {option.name: other}}) for other in others]
    return found


IN_OTHER_WAYS: list[Any] = [
    ("stop", {"gradient_accumulation_steps": 2}),
    ("stop", {"activation_checkpointing": True}),
    ("stop", {"same_video": "positives"}),
    ("stop", {"precision": "bf16"}),
    ("stop", {"precision": "fp16"}),
    ("stop", {"schedule": "released"}),
]


def named(value: Any) -> str:
    return str(value).replace("'", "")
