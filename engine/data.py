"""Builds the reader of frames from the settings, with its cache and its worker processes."""

import os
from pathlib import Path

import torch

from dataloaders.cache import FrameCache
from dataloaders.frames import FrameReader
from dataloaders.transforms import normalise
from engine.config import DataConfig, RunConfig
from modules.backbones import Backbone
from modules.clip import CLIP

MOST_READERS = 8  # per process, because each reader holds --prefetch_factor batches in memory


def frame_reader(data: DataConfig, backbone: Backbone, training: bool, cache: FrameCache | None = None) -> FrameReader:
    """Return a reader that prepares frames as in the training of the CLIP with this `backbone`."""
    pixels = backbone.preprocessing
    return FrameReader(
        data.max_frames, backbone.architecture.image_size, data.frame_sampling, data.feature_framerate,
        data.slice_framepos, training, data.frame_transform, cache, pixels.resize_mode, pixels.interpolation,
        data.frame_stride,
    )  # fmt: skip


def normalise_for(clip: CLIP, video: torch.Tensor) -> torch.Tensor:
    """Convert pixels uint8 `[...,3,H,W]` to float32 and normalise them as in the training of `clip`."""
    return normalise(video, clip.backbone.preprocessing.mean, clip.backbone.preprocessing.std)


def frame_cache(data: DataConfig, run: RunConfig) -> FrameCache | None:
    """Return the frame cache that a run's settings name, or None if they name none."""
    if not run.frame_cache:
        return None
    return FrameCache(Path(run.frame_cache), run.frame_cache_format, Path(data.features_path))


def reader_processes(num_thread_reader: int) -> int:
    """Return the number of decoding worker processes: the flag's value, or for -1 the number that the cores allow."""
    if num_thread_reader >= 0:
        return num_thread_reader
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    own = cores // int(os.environ.get("LOCAL_WORLD_SIZE", 1))  # torchrun's: the processes of this machine
    return min(MOST_READERS, max(1, own - 1))
