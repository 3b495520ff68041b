"""CLIP's image preprocessing for whole clips: resize and crop on the CPU in uint8, normalise wherever the video then
lives. How it is resized and what it is normalised with differs between CLIPs; the defaults are those of OpenAI's.

Splitting it there lets frames travel to the device as bytes, a quarter of their size as floats.

Shapes: T frames, H x W pixels, S = `size` the side of CLIP's square input.
"""

from functools import cache

import numpy as np
import torch
import torch.nn.functional as F

# Per-channel (RGB) statistics of CLIP's training images, on the scale 0..1; from CLIP's published preprocessing.
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)

RESIZE_MODES = ("shortest", "squash")
INTERPOLATIONS = ("bicubic", "bilinear")

Triple = tuple[float, float, float]


def resize_and_crop(frames: np.ndarray, size: int, interpolation: str = "bicubic") -> torch.Tensor:
    """Frames uint8 [T, H, W, 3] -> uint8 [T, 3, S, S], contiguous.

    The short side is resized to `size` (antialiased; untouched if it has that size already), the long side in
    proportion with its fraction dropped, then the middle square is cut out. Bit for bit torchvision's v2 Resize and
    CenterCrop on uint8; CLIP's own Pillow pipeline differs from these by single grey levels.
    """
    video = _channels_first(frames)
    height, width = video.shape[-2:]
    short = min(height, width)
    if short != size:
        video = _resized(video, size * height // short, size * width // short, interpolation)
    return _middle_square(video, size)


def squash(frames: np.ndarray, size: int, interpolation: str = "bicubic") -> torch.Tensor:
    """All of each frame, its two sides resized to `size` whatever its shape: uint8 [T, H, W, 3] -> uint8 [T, 3, S, S],
    contiguous. Bit for bit torchvision's v2 Resize to a square on uint8."""
    video = _channels_first(frames)
    if video.shape[-2:] != (size, size):
        video = _resized(video, size, size, interpolation)
    return video.contiguous()


def _resized(video: torch.Tensor, height: int, width: int, interpolation: str) -> torch.Tensor:
    return F.interpolate(video, size=(height, width), mode=interpolation, antialias=True)


def centre_crop(frames: np.ndarray, size: int) -> torch.Tensor:
    """The middle square of frames uint8 [T, H, W, 3] with H, W >= S, nothing resized -> uint8 [T, 3, S, S],
    contiguous."""
    assert min(frames.shape[1:3]) >= size, (frames.shape, size)
    return _middle_square(_channels_first(frames), size)


def _channels_first(frames: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(frames).permute(0, 3, 1, 2)  # in memory still channels last, the fast layout for uint8


def _middle_square(video: torch.Tensor, size: int) -> torch.Tensor:
    height, width = video.shape[-2:]
    top, left = round((height - size) / 2), round((width - size) / 2)
    return video[..., top : top + size, left : left + size].contiguous()


def normalise(video: torch.Tensor, mean: Triple = CLIP_MEAN, std: Triple = CLIP_STD) -> torch.Tensor:
    """Pixels uint8 [..., 3, H, W] -> float32 of the same shape and on the same device: scaled to 0..1, minus `mean`,
    over `std`, which are those of the CLIP that sees them."""
    scale, shift = _statistics(video.device, mean, std)
    return torch.addcmul(shift, video, scale)  # one pass over what is by far a step's largest input


@cache  # to copy numbers to a GPU makes the host wait for it, so once is enough
def _statistics(device: torch.device, mean: Triple, std: Triple) -> tuple[torch.Tensor, torch.Tensor]:
    """1 / (255 std) and -mean / std, float32 [3, 1, 1]."""
    means, stds = torch.tensor([mean, std], dtype=torch.float64)
    scale, shift = torch.stack([1 / (255 * stds), -means / stds]).float().to(device).view(2, 3, 1, 1)
    return scale, shift
