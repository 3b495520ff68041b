"""From settings to the samples of a data set and the reader of its frames."""

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from dataloaders import DATASETS
from dataloaders.cache import FrameCache
from dataloaders.frames import FrameReader
from dataloaders.samples import Sample
from dataloaders.transforms import normalise
from engine.config import DataConfig, RunConfig
from modules.backbones import Backbone
from modules.clip import CLIP

MOST_READERS = 8  # of each process: every one holds --prefetch_factor batches in memory


def list_split(data: DataConfig, split: str) -> list[Sample]:
    """The samples of a split as its files list them, whether or not their videos are there."""
    return DATASETS[data.datatype](
        split,
        data_path=Path(data.data_path),
        features_path=Path(data.features_path),
        train_csv=Path(data.train_csv),
        val_csv=Path(data.val_csv),
    )


def frame_reader(data: DataConfig, backbone: Backbone, training: bool, cache: FrameCache | None = None) -> FrameReader:
    """What reads the videos, as the CLIP with this `backbone` saw pictures."""
    return FrameReader(
        data.max_frames,
        backbone.architecture.image_size,
        data.frame_sampling,
        data.feature_framerate,
        data.slice_framepos,
        training,
        data.frame_transform,
        cache,
        backbone.preprocessing.resize_mode,
        backbone.preprocessing.interpolation,
    )


def normalise_for(clip: CLIP, video: torch.Tensor) -> torch.Tensor:
    """Pixels uint8 `[...,3,H,W]` -> float32, normalised as `clip` was trained with."""
    return normalise(video, clip.backbone.preprocessing.mean, clip.backbone.preprocessing.std)


def frame_cache(data: DataConfig, run: RunConfig) -> FrameCache | None:
    """The cache that a run's settings name, if they name one."""
    if not run.frame_cache:
        return None
    return FrameCache(Path(run.frame_cache), run.frame_cache_format, Path(data.features_path))


def reader_processes(num_thread_reader: int) -> int:
    """How many worker processes decode for this process: the flag's value, or for -1 what the cores allow."""
    if num_thread_reader >= 0:
        return num_thread_reader
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    own = cores // int(os.environ.get("LOCAL_WORLD_SIZE", 1))  # torchrun's: the processes of this machine
    return min(MOST_READERS, max(1, own - 1))


def hold_out(samples: list[Sample], count: int, seed: int) -> tuple[list[Sample], list[Sample]]:
    """Split training samples into those to train on and `count` others, each of these with its first caption."""
    if count >= len(samples):
        raise ValueError(f"--holdout_videos {count} leaves none of the {len(samples)} training videos to train on")
    held = set(np.random.default_rng(seed).permutation(len(samples))[:count].tolist())
    return (
        [sample for row, sample in enumerate(samples) if row not in held],
        [replace(s, captions=s.captions[:1]) for row, s in enumerate(samples) if row in held],
    )


def draw_captions(samples: list[Sample], count: int, seed: int) -> list[Sample]:
    """At most `count` captions of all samples, drawn without repetition, each as a sample of its own."""
    pairs = [replace(s, captions=(caption,)) for s in samples for caption in s.captions]
    return [pairs[item] for item in np.random.default_rng(seed).permutation(len(pairs))[:count]]
