"""Loads the weights that a method starts from (--init_model) and tells whether they replace its CLIP."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from engine.checkpoint import load_checkpoint
from engine.file_formats import refuse_other_kind
from modules.clip_weights import backbone_sha256, read_state_dict
from modules.methods import Method
from modules.released_weights import load_released_state_dict


@dataclass(frozen=True)
class InitialWeights:
    """Facts about a method after `load_weights`.

    `backbone_sha256` is the hash of its CLIP, which the file may have replaced. `replaced` says whether the file
    changed tensors that are not trained, so that a checkpoint with only the trained tensors would not be enough.
    `epoch` is the file's epoch, 0 if unknown. `trained_on` is its kind of training files, as in `CheckpointHeader`.
    """

    backbone_sha256: str
    epoch: int = 0
    replaced: bool = False
    trained_on: dict[str, Any] = field(default_factory=dict)


def load_weights(
    path: Path, method: Method, clip_sha256: str, training: bool, loss: nn.Module | None = None
) -> InitialWeights:
    """Load a checkpoint of this project or of released code into `method`, whose CLIP has this hash.

    The tensors of the loss go into `loss`, see `load_checkpoint`. A full checkpoint may contain another CLIP. A CLIP
    counts as another one if a frozen tensor differs, because the trained tensors differ in every checkpoint.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: `load_checkpoint` or `load_released_state_dict` refuses the file, another flag takes it, or, for
            `training`, it is a released checkpoint of another CLIP.
    """
    before = {name: tensor.to("cpu", copy=True) for name, tensor in _frozen(method).items()}
    epoch, trained_on = 0, {}
    if path.suffix == ".safetensors":
        header = load_checkpoint(path, method, clip_sha256, loss)
        epoch, trained_on = header.epoch, header.trained_on
    else:
        refuse_other_kind(path, "--init_model")
        state = read_state_dict(path)
        try:
            load_released_state_dict(method, state)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error
    replaced = [name for name, tensor in _frozen(method).items() if not torch.equal(tensor.cpu(), before[name])]
    if replaced and training and path.suffix != ".safetensors":
        raise ValueError(
            f"{path}: was trained on another CLIP than --pretrained_clip_name ({len(replaced)} of its frozen "
            f"tensors differ, the first is {replaced[0]}); pass the CLIP it was trained on, or only evaluate it"
        )
    brought = any(name.startswith("clip.") for name in replaced)
    return InitialWeights(backbone_sha256(method.clip) if brought else clip_sha256, epoch, bool(replaced), trained_on)


@torch.no_grad()
def put_trained(parameters: Mapping[str, nn.Parameter], tensors: Mapping[str, Tensor]) -> None:
    """Copy into each parameter the tensor of the same name."""
    for name, parameter in parameters.items():
        parameter.copy_(tensors[name])


def _frozen(method: Method) -> dict[str, Tensor]:
    """Return the tensors that training does not change, by name."""
    trained = {name for name, _ in method.trainable_parameters()}
    return {name: tensor for name, tensor in method.state_dict().items() if name not in trained}
