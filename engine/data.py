"""From settings to the reader of frames, its cache and its worker processes."""

import os
from pathlib import Path

import torch

from dataloaders.cache import FrameCache
from dataloaders.frames import FrameReader
from dataloaders.transforms import normalise
from engine.config import DataConfig, RunConfig
from modules.backbones import Backbone
from modules.clip import CLIP

MOST_READERS = 8  # of each process: every one holds --prefetch_factor batches in memory


def frame_reader(data: DataConfig, backbone: Backbone, training: bool, cache: FrameCache | None = None) -> FrameReader:
    """Return the reader of videos that gives frames as the CLIP with this `backbone` was trained to see them."""
    pixels = backbone.preprocessing
    return FrameReader(
        data.max_frames, backbone.architecture.image_size, data.frame_sampling, data.feature_framerate,
        data.slice_framepos, training, data.frame_transform, cache, pixels.resize_mode, pixels.interpolation,
    )  # fmt: skip


def normalise_for(clip: CLIP, video: torch.Tensor) -> torch.Tensor:
    """Turn pixels uint8 `[...,3,H,W]` into float32, normalised as `clip` was trained."""
    return normalise(video, clip.backbone.preprocessing.mean, clip.backbone.preprocessing.std)


def frame_cache(data: DataConfig, run: RunConfig) -> FrameCache | None:
    """Return the frame cache that a run's settings name, or None."""
    if not run.frame_cache:
        return None
    return FrameCache(Path(run.frame_cache), run.frame_cache_format, Path(data.features_path))


def reader_processes(num_thread_reader: int) -> int:
    """Return the number of processes that decode for this one: the flag's value, or for -1 what the cores allow."""
    if num_thread_reader >= 0:
        return num_thread_reader
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    own = cores // int(os.environ.get("LOCAL_WORLD_SIZE", 1))  # torchrun's: the processes of this machine
    return min(MOST_READERS, max(1, own - 1))
