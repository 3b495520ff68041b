"""Weights on disk: what training changed, as safetensors, with the run's settings inside.

A checkpoint holds the trainable tensors only (megabytes for a prompt method) and, in its header, the settings and the
hash of the CLIP they belong to; loading refuses another CLIP.
"""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from modules.methods import Method

FORMAT = "stop-video checkpoint 1"


@dataclass(frozen=True)
class CheckpointHeader:
    """What a checkpoint says about itself: its settings by flag name, its epoch, and the hash of its CLIP."""

    settings: dict[str, Any]
    epoch: int
    backbone_sha256: str


def save_checkpoint(path: Path, method: Method, header: CheckpointHeader) -> None:
    """Write the trainable tensors of `method`; a reader sees the old file or the whole new one, never a part."""
    tensors = {name: parameter.detach().cpu().contiguous() for name, parameter in method.trainable_parameters()}
    metadata = {
        "format": FORMAT,
        "settings": json.dumps(header.settings),
        "epoch": str(header.epoch),
        "backbone_sha256": header.backbone_sha256,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    save_file(tensors, partial, metadata)
    with open(partial, "rb") as file:
        os.fsync(file.fileno())
    os.replace(partial, path)


def read_header(path: Path) -> CheckpointHeader:
    """What a checkpoint says about itself; raises as `load_checkpoint` does for a file that is none."""
    return _read(path)[0]


def load_checkpoint(path: Path, method: Method, backbone_sha256: str) -> CheckpointHeader:
    """Put a checkpoint's tensors into `method` and give its header.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a checkpoint of ours, made on another CLIP, or with other tensors than the method trains.
    """
    header, tensors = _read(path)
    if header.backbone_sha256 != backbone_sha256:
        raise ValueError(
            f"{path}: was trained on another CLIP ({header.settings.get('pretrained_clip_name')}, sha256 "
            f"{header.backbone_sha256[:12]}) than the one given (sha256 {backbone_sha256[:12]}); pass its "
            "--pretrained_clip_name"
        )
    _load_exactly(path, method, tensors, header)
    return header


def _read(path: Path) -> tuple[CheckpointHeader, dict[str, torch.Tensor]]:
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such checkpoint; give a .safetensors file that training wrote")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except SafetensorError as error:
        raise ValueError(f"{path}: not a readable safetensors file ({error}); was it cut short?") from error
    if metadata.get("format") != FORMAT:
        raise ValueError(f"{path}: not a checkpoint of this project (its header says {metadata.get('format')!r})")
    header = CheckpointHeader(json.loads(metadata["settings"]), int(metadata["epoch"]), metadata["backbone_sha256"])
    return header, tensors


@torch.no_grad()
def _load_exactly(path: Path, method: Method, tensors: dict[str, torch.Tensor], header: CheckpointHeader) -> None:
    parameters = dict(method.trainable_parameters())
    wrong = [f"{name} is missing" for name in parameters if name not in tensors]
    wrong += [f"{name} is not a trained tensor of this method" for name in tensors if name not in parameters]
    wrong += [
        f"{name} has shape {tuple(tensors[name].shape)} and not {tuple(parameter.shape)}"
        for name, parameter in parameters.items()
        if name in tensors and tensors[name].shape != parameter.shape
    ]
    if wrong:
        more = f" and {len(wrong) - 5} more" if len(wrong) > 5 else ""
        raise ValueError(
            f"{path}: does not fit the method {type(method).__name__}: {'; '.join(wrong[:5])}{more}; it was "
            f"trained with --method {header.settings.get('method')}"
        )
    for name, parameter in parameters.items():
        parameter.copy_(tensors[name])
