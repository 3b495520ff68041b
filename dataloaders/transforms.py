"""CLIP's image preprocessing of whole clips: resize and crop in uint8 on the CPU, then normalise on the video's device.

The split lets frames travel to the device as bytes, a quarter of their size as floats. CLIPs differ in how they resize
and in the statistics they normalise with; the defaults are those of OpenAI's.

Shapes: T frames, H x W pixels, S = `size` the side of CLIP's square input.
"""

from functools import cache
from typing import Literal, get_args

import numpy as np
import torch
import torch.nn.functional as F

# Per-channel (RGB) statistics of CLIP's training images, on the scale 0..1; from CLIP's published preprocessing.
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)

FrameTransform = Literal["resize", "crop", "bilinear"]  # --frame_transform
FRAME_TRANSFORM: tuple[str, ...] = get_args(FrameTransform)
RESIZE_MODES = ("shortest", "squash")
INTERPOLATIONS = ("bicubic", "bilinear")

Triple = tuple[float, float, float]


def resize_and_crop(
    frames: np.ndarray, size: int, interpolation: str = "bicubic", antialias: bool = True, short_side: int = 0
) -> torch.Tensor:
    """Resize the short side to `short_side`, 0 for S, and cut out the middle square: uint8 [T, H, W, 3] -> uint8 [T, 3,
    S, S], contiguous.

    Resizing is skipped if the short side has that size already. The long side keeps its proportion, its fraction
    dropped. The result equals torchvision's v2 Resize and CenterCrop on uint8 bit for bit; CLIP's own Pillow pipeline
    differs from these by single grey levels.
    """
    return _middle_square(resize_short_side(frames, short_side or size, interpolation, antialias=antialias), size)


def resize_short_side(
    frames: np.ndarray, size: int, interpolation: str = "bicubic", enlarge: bool = True, antialias: bool = True
) -> torch.Tensor:
    """Resize whole frames to a short side of `size`, as `resize_and_crop` does: uint8 [T, H, W, 3] -> uint8 [T, 3, h,
    w], not contiguous. Without `enlarge`, smaller frames stay as they are."""
    video = _channels_first(frames)
    height, width = video.shape[-2:]
    short = min(height, width)
    if short == size or (short < size and not enlarge):
        return video
    return _resized(video, size * height // short, size * width // short, interpolation, antialias)


def squash(frames: np.ndarray, size: int, interpolation: str = "bicubic") -> torch.Tensor:
    """Resize both sides to `size`, whatever the frame's shape: uint8 [T, H, W, 3] -> uint8 [T, 3, S, S], contiguous.

    The result equals torchvision's v2 Resize to a square on uint8 bit for bit.
    """
    video = _channels_first(frames)
    if video.shape[-2:] != (size, size):
        video = _resized(video, size, size, interpolation)
    return video.contiguous()


def _resized(video: torch.Tensor, height: int, width: int, interpolation: str, antialias: bool = True) -> torch.Tensor:
    return F.interpolate(video, size=(height, width), mode=interpolation, antialias=antialias)


def centre_crop(frames: np.ndarray, size: int) -> torch.Tensor:
    """Cut out the middle square of frames with H, W >= S, without resizing: uint8 [T, H, W, 3] -> uint8 [T, 3, S, S],
    contiguous."""
    assert min(frames.shape[1:3]) >= size, (frames.shape, size)
    return _middle_square(_channels_first(frames), size)


def _channels_first(frames: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(frames).permute(0, 3, 1, 2)  # memory stays channels last, the fast layout for uint8


def _middle_square(video: torch.Tensor, size: int) -> torch.Tensor:
    height, width = video.shape[-2:]
    top, left = round((height - size) / 2), round((width - size) / 2)
    return video[..., top : top + size, left : left + size].contiguous()


def normalise(video: torch.Tensor, mean: Triple = CLIP_MEAN, std: Triple = CLIP_STD) -> torch.Tensor:
    """Scale pixels to 0..1, subtract the CLIP's `mean` and divide by its `std`: uint8 [..., 3, H, W] -> float32 of the
    same shape, on the same device."""
    scale, shift = _statistics(video.device, mean, std)
    return torch.addcmul(shift, video, scale)  # one pass over by far the largest input of a step


@cache  # copying numbers to a GPU makes the host wait, so we do it once
def _statistics(device: torch.device, mean: Triple, std: Triple) -> tuple[torch.Tensor, torch.Tensor]:
    """Return 1 / (255 std) and -mean / std, float32 [3, 1, 1]."""
    means, stds = torch.tensor([mean, std], dtype=torch.float64)
    scale, shift = torch.stack([1 / (255 * stds), -means / stds]).float().to(device).view(2, 3, 1, 1)
    return scale, shift
