"""Files of text features for small tests."""

from pathlib import Path

import torch
from torch import Tensor

from modules.clip import CLIP
from modules.text_features import TextFeatures, text_sha256, write_text_features

WIDTH = 24  # of the joint embedding of `tests.tiny.TINY`


def some_features(classes: int, prompts: int = 3, seed: int = 0) -> Tensor:
    """Return random features `[K,M,E]`."""
    return torch.randn(classes, prompts, WIDTH, generator=torch.Generator().manual_seed(seed))


def write_bag(path: Path, clip: CLIP, names: tuple[str, ...], seed: int = 0) -> TextFeatures:
    """Write features of 3 prompts for each class, of which the last repeats the first in all classes but one."""
    features = some_features(len(names), seed=seed)
    mask = torch.ones(len(names), 3, dtype=torch.bool)
    features[1:, 2], mask[1:, 2] = features[1:, 0], False
    about = {"mode": "xmix", "templates": ["a video of {}."], "clip_name": "tiny", "clip": text_sha256(clip)}
    texts = TextFeatures(features, mask, names, about)
    write_text_features(path, texts)
    return texts
