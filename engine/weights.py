"""Loads the weights that a method starts from (--init_model) and tells whether they replace its CLIP."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from engine.checkpoint import CheckpointHeader, load_checkpoint
from engine.file_formats import refuse_other_kind
from modules.clip_weights import backbone_sha256, read_state_dict
from modules.methods import Method
from modules.released_weights import load_released_state_dict


@dataclass(frozen=True)
class InitialWeights:
    """Facts about a method after `load_weights`.

    `backbone_sha256` is the hash of its CLIP, which the file may have replaced. `replaced` says whether the file
    changed tensors that are not trained, so that a checkpoint with only the trained tensors would not be enough.
    `header` is the file's; a file of released code has none, and so epoch 0 and no other facts.
    """

    backbone_sha256: str
    replaced: bool
    header: CheckpointHeader


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
    header = CheckpointHeader({}, 0, clip_sha256)
    if path.suffix == ".safetensors":
        header = load_checkpoint(path, method, clip_sha256, loss)
        method.check_start(header.settings)
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
    return InitialWeights(backbone_sha256(method.clip) if brought else clip_sha256, bool(replaced), header)


@torch.no_grad()
def put_trained(parameters: Mapping[str, nn.Parameter], tensors: Mapping[str, Tensor]) -> None:
    """Copy into each parameter the tensor of the same name."""
    for name, parameter in parameters.items():
        parameter.copy_(tensors[name])


def _frozen(method: Method) -> dict[str, Tensor]:
    """Return the tensors that training does not change, by name."""
    trained = {name for name, _ in method.trainable_parameters()}
    return {name: tensor for name, tensor in method.state_dict().items() if name not in trained}
