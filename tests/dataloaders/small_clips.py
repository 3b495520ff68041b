"""Small clips for tests of reading.

Shapes: T frames.
"""

from pathlib import Path

import numpy as np
import torch

from dataloaders.samples import Sample
from tests.videos import frame_numbers, grey_ramp, write_video


def write_ramps(folder: Path) -> list[Sample]:
    """Write five videos of 20 frames at 5 fps with 3, 1, 2, 3 and 1 captions, all of them different."""
    listed, caption = [], 0
    for row, n_captions in enumerate((3, 1, 2, 3, 1)):
        path = write_video(folder / f"video{row}.mp4", grey_ramp(20), fps=5)
        listed.append(Sample(path.stem, path, tuple(f"caption {caption + k}" for k in range(n_captions))))
        caption += n_captions
    return listed


def numbers(video: torch.Tensor) -> list[int]:
    """Return the frame numbers of decoded frames, uint8 [T, 3, S, S]."""
    return frame_numbers(video.numpy())


def waves(n_frames: int, seed: int = 0, side: int = 64) -> np.ndarray:
    """Draw smooth frames, uint8 [T, side, side + 16, 3], that differ from each other and between seeds."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:side, : side + 16] / side
    phases = rng.uniform(0, 6, (n_frames, 3))
    drawn = [[np.sin(4 * (x * np.cos(p) + y * np.sin(p)) + p) for p in frame] for frame in phases]
    return (127 + 100 * np.array(drawn)).astype(np.uint8).transpose(0, 2, 3, 1)
