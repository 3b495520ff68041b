"""The weights that a method starts from, `--init_model`, and what they make of the CLIP it was built on."""

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
    """What a method holds after `load_weights`.

    `backbone_sha256` is the hash of its CLIP: that which it was built on, unless the file brought another one.
    `replaced` says whether the file changed what is not trained, so that a checkpoint of trained tensors alone would
    not be enough. `epoch` is the file's, 0 where unknown, and `trained_on` its kind of training files, as in
    `CheckpointHeader`.
    """

    backbone_sha256: str
    epoch: int = 0
    replaced: bool = False
    trained_on: dict[str, Any] = field(default_factory=dict)


def load_weights(
    path: Path, method: Method, clip_sha256: str, training: bool, loss: nn.Module | None = None
) -> InitialWeights:
    """Read a checkpoint of ours, or one of another system's released code, into `method`, whose CLIP has this hash.

    The tensors of the loss go into `loss`, see `load_checkpoint`.

    A full one may bring another CLIP. It counts as another if a tensor differs that is not trained: the trained ones
    differ in every checkpoint.

    Raises:
        FileNotFoundError: no such file.
        ValueError: what `load_checkpoint` and `load_released_state_dict` refuse, a file that another flag takes, and
            for `training`, a released checkpoint of another CLIP.
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
            f"tensors differ, the first is {replaced[0]}); pass the one it was trained on, or evaluate it only"
        )
    brought = any(name.startswith("clip.") for name in replaced)
    return InitialWeights(backbone_sha256(method.clip) if brought else clip_sha256, epoch, bool(replaced), trained_on)


@torch.no_grad()
def put_trained(parameters: Mapping[str, nn.Parameter], tensors: Mapping[str, Tensor]) -> None:
    """Copy `tensors` into the parameters of the same names; there is one for each."""
    for name, parameter in parameters.items():
        parameter.copy_(tensors[name])


def _frozen(method: Method) -> dict[str, Tensor]:
    """What training does not change, by name."""
    trained = {name for name, _ in method.trainable_parameters()}
    return {name: tensor for name, tensor in method.state_dict().items() if name not in trained}
