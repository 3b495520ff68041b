"""Folders in open_clip's layout on the Hugging Face Hub, written by open_clip itself with random weights, and the
measure of how closely this project follows it."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
from open_clip.push_to_hf_hub import save_for_hf
from torch import Tensor

from dataloaders.transforms import normalise, resize_and_crop, squash
from modules.clip import CLIP

CONFIG: dict[str, Any] = {
    "embed_dim": 24,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 64, "head_width": 32, "patch_size": 8},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2},
}


class NoFiles:
    """A tokenizer with nothing to save, like CLIP's; `save_for_hf` needs one."""

    def save_pretrained(self, folder: Path) -> None:
        pass


def changed(**changes: Any) -> dict[str, Any]:
    """Return CONFIG with these fields changed; fields of the towers are merged."""
    return {
        name: {**CONFIG[name], **value} if isinstance(value, dict) and name in CONFIG else value
        for name, value in {**CONFIG, **changes}.items()
    }


def write_hub_folder(
    folder: Path,
    config: dict[str, Any],
    pixels: dict[str, Any] | None = None,
    safe: bool | str = True,
    noise: float = 0.1,
) -> Any:
    """Build open_clip's model of `config`, save it and return it; `noise` makes its biases and norms random too."""
    blank = folder / "blank"
    blank.mkdir(parents=True)
    (blank / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": pixels or {}}))
    torch.manual_seed(0)
    model = open_clip.create_model(f"local-dir:{blank}", load_weights=False)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name != "logit_scale":
                parameter.add_(noise * torch.randn_like(parameter))
    save_for_hf(model, NoFiles(), config, str(folder), safe)
    return model.eval()


def relative(found: Tensor, expected: Tensor) -> float:
    return ((found - expected).norm() / expected.norm()).item()


def picture(width: int, height: int) -> np.ndarray:
    """Return a picture with edges, slopes and fine grain, uint8 [H, W, 3]."""
    x, y = np.meshgrid(np.linspace(0, 9, width), np.linspace(0, 7, height))
    waves = np.stack([np.sin(x * y), np.cos(x - y), np.sign(np.sin(3 * x))], axis=-1)
    grain = np.random.default_rng(0).normal(0, 0.05, waves.shape)
    return np.clip(127.5 + 120 * (waves + grain), 0, 255).astype(np.uint8)


def as_our_pixels(frame: np.ndarray, clip: CLIP) -> Tensor:
    how = clip.backbone.preprocessing
    resize = squash if how.resize_mode == "squash" else resize_and_crop
    square = resize(frame[None], clip.architecture.image_size, how.interpolation)
    return normalise(square, how.mean, how.std)[0]
