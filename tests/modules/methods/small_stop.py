"""Small STOPs with random parameters, and clips for them, that STOP's tests share."""

import dataclasses

import pytest
from torch import Tensor

from modules.clip import CLIPArchitecture
from modules.methods import build_method
from modules.methods.stop import STOP
from tests.modules.stop import stop_reference as slow
from tests.tiny import TINY, tiny_clip

SMALL = dataclasses.replace(TINY, image_size=12, patch_size=4, vision_width=16)  # grid 3
LAYOUTS = pytest.mark.parametrize("attention", ["joint", "frame"])


def make_stop(architecture: CLIPArchitecture = SMALL, seed: int | None = 0, **options) -> STOP:
    """Return STOP in evaluation mode, all its own parameters random (`seed=None`: as training starts)."""
    defaults = {"n_regions": 3, "intra_width": 8, "inter_width": 8}
    method = build_method("stop", tiny_clip(architecture=architecture), **{**defaults, **options}).eval()
    if seed is not None:
        slow.randomise(method, seed)
    return method


def like(method: STOP, **options) -> STOP:
    """Return a STOP with other options that shares all parameters of the same name and shape with `method`."""
    other = make_stop(method.clip.architecture, **options)
    theirs = other.state_dict()
    for name, tensor in method.state_dict().items():
        if name in theirs and theirs[name].shape == tensor.shape:
            theirs[name].copy_(tensor)
    return other


def clips_that_move(frames_of_clip: list[int], seed: int = 0, image_size: int = 12) -> tuple[Tensor, Tensor]:
    """Return (video `[B,T,3,H,W]`, frame mask); between frames anything from nothing to everything changes."""
    pixels, frame_mask = slow.padded_clips(seed, frames_of_clip, 3 * image_size, image_size)
    return pixels.float().unflatten(2, (3, image_size)), frame_mask


def trained_names(method: STOP) -> set[str]:
    return {name for name, _ in method.trainable_parameters()}
