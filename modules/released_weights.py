"""Loading checkpoints that other systems released into our methods.

A method with a released counterpart knows the released name of each of its tensors (`Method.released_name`). This
module maps the released names back, and lists everything that does not fit.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from torch import Tensor

from modules.backbones import Preprocessing
from modules.quoting import some
from modules.stan.released import flags_of

if TYPE_CHECKING:  # the methods import this module
    from modules.methods.base import Method


def load_released_state_dict(method: "Method", state_dict: Mapping[str, Tensor]) -> None:
    """Load all weights of a released model, its frozen CLIP included, into `method`.

    Args:
        state_dict: by the released code's key names, with or without DDP's prefix `module.`; any float dtype. Tensors
            that are not the method's, such as a second model that helped in training, may be left out: see
            `Method.released_tensors`.

    Raises:
        ValueError: if the method has no released counterpart, if its CLIP does not run as OpenAI's (the released codes
            support no other), or if keys are missing, unknown or have a wrong shape; the first of each are listed, and
            the flags that a checkpoint of STAN's needs. Nothing is loaded then.
    """
    backbone = method.clip.backbone
    if backbone.architecture.activation != "quick_gelu" or backbone.preprocessing != Preprocessing():
        raise ValueError(
            f"the released weights are for OpenAI's CLIP, and the one given runs differently ({backbone}); pass "
            "--pretrained_clip_name of OpenAI's"
        )
    named = {name: (method.released_name(name), tensor) for name, tensor in method.state_dict().items()}
    ours = {key: (name, tensor) for name, (key, tensor) in named.items() if key is not None}
    theirs = method.released_tensors(state_dict)
    missing = [key for key in ours if key not in theirs]
    unknown = [key for key in theirs if key not in ours]
    unlike = [
        f"{key} is {list(theirs[key].shape)} instead of {list(tensor.shape)}"
        for key, (name, tensor) in ours.items()
        if key in theirs and not _same_shape(name, theirs[key], tensor)
    ]
    faults = [
        f"{len(found)} {'key' if len(found) == 1 else 'keys'} {what} ({some(found, 5)})"
        for what, found in (("missing", missing), ("unknown", unknown), ("of another shape", unlike))
        if found
    ]
    if faults:
        flags = flags_of(state_dict)
        raise ValueError(
            f"the released weights do not fit {type(method).__name__} with these options: {'; '.join(faults)}; pass "
            f"--method and options of their training{f', by their keys {flags}' * bool(flags)}, or another file"
        )
    kept = {name: tensor for name, (key, tensor) in named.items() if key is None}
    loaded = {name: theirs[key].reshape(tensor.shape).to(tensor.dtype) for key, (name, tensor) in ours.items()}
    method.load_state_dict(kept | loaded)


def _same_shape(name: str, theirs: Tensor, ours: Tensor) -> bool:
    if name.endswith("prompts"):  # the prompts of all blocks are one axis there and two here
        return theirs.numel() == ours.numel()
    return _significant(theirs) == _significant(ours)


def _significant(tensor: Tensor) -> tuple[int, ...]:
    """Return the shape without the ones at its end: a convolution over single pixels is a linear layer."""
    shape = tuple(tensor.shape)
    while len(shape) > 2 and shape[-1] == 1:
        shape = shape[:-1]
    return shape
