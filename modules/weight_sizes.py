"""Sizes of a CLIP from its weights, and complaints about weights that are not those of one.

Shapes: P patches, L text positions, D width of a tower, E joint embedding, V vocabulary.
"""

import math
import re
from collections.abc import Mapping

from torch import Tensor

from modules.backbones import HEAD_WIDTH, CLIPArchitecture, TextParts, VisionParts
from modules.clip import CLIP
from modules.quoting import some
from modules.undrawn import undrawn
from modules.weight_names import to_openai_keys


def infer_architecture(
    state: Mapping[str, Tensor],
    activation: str = "quick_gelu",
    vision_heads: int | None = None,
    text_heads: int | None = None,
) -> CLIPArchitecture:
    """Infer all sizes from weights with OpenAI's names; the number of heads is not in them and defaults to width / 64.

    Raises ValueError if keys are missing or surplus (the first 10 of each are listed), if it is not a CLIP or has a
    ResNet, and if the tensors that give the sizes have a wrong number of dimensions.
    """
    vision_layers = _count_blocks(state, "visual.transformer.resblocks.")
    text_layers = _count_blocks(state, "transformer.resblocks.")
    _check_names(state, vision_layers, text_layers)
    sizing = {
        "visual.conv1.weight": "[D, 3, patch, patch]",
        "visual.positional_embedding": "[1 + P, D]",
        "token_embedding.weight": "[V, D]",
        "positional_embedding": "[L, D]",
        "text_projection": "[D, E]",
    }
    for key, layout in sizing.items():
        if state[key].dim() != len(layout.split(",")):
            raise ValueError(f"its {key} has shape {list(state[key].shape)} instead of {layout}.")
    vision_width, _, patch_size, _ = state["visual.conv1.weight"].shape
    patches = len(state["visual.positional_embedding"]) - 1
    grid = math.isqrt(max(patches, 0))
    if grid < 1 or grid**2 != patches:
        raise ValueError(f"its visual.positional_embedding is for {patches} patches, which make no square.")
    vocab_size, text_width = state["token_embedding.weight"].shape
    return CLIPArchitecture(
        embed_dim=state["text_projection"].shape[1],
        image_size=grid * patch_size,
        patch_size=patch_size,
        vision_width=vision_width,
        vision_layers=vision_layers,
        vision_heads=vision_heads or max(1, vision_width // HEAD_WIDTH),
        context_length=len(state["positional_embedding"]),
        vocab_size=vocab_size,
        text_width=text_width,
        text_layers=text_layers,
        text_heads=text_heads or max(1, text_width // HEAD_WIDTH),
        activation=activation,
        vision=VisionParts(hidden=_hidden(state, "visual.", vision_width)),
        text=TextParts(hidden=_hidden(state, "", text_width)),
    )


def _hidden(state: Mapping[str, Tensor], start: str, width: int) -> int:
    """Return the width inside a tower's MLPs; 0 for four times that of the tower."""
    weight = state.get(f"{start}transformer.resblocks.0.mlp.c_fc.weight")
    return 0 if weight is None or len(weight) == 4 * width else len(weight)


def _count_blocks(state: Mapping[str, Tensor], start: str) -> int:
    """Return one more than the highest block number, so that a gap below it counts as missing."""
    numbers = [re.match(r"\d+", key[len(start) :]) for key in state if key.startswith(start)]
    return 1 + max((int(number[0]) for number in numbers if number), default=-1)


def _check_names(state: Mapping[str, Tensor], vision_layers: int, text_layers: int) -> None:
    if any(key.startswith("visual.layer1.") for key in state):
        raise ValueError("its vision tower is a ResNet, and only CLIPs with a vision transformer are supported.")
    if any(key.startswith("text.transformer.") for key in state):
        raise ValueError("its text tower is one of open_clip's custom ones, and only CLIP's own is supported.")
    with undrawn():
        smallest = CLIP(CLIPArchitecture(1, 1, 1, 1, vision_layers, 1, 1, 1, 1, text_layers, 1))
    expected = to_openai_keys(smallest.state_dict())
    missing = [key for key in expected if key not in state]
    surplus = [key for key in state if key not in expected]
    if not expected.keys() & state.keys():
        raise ValueError(f"none of its keys is one of CLIP's (it has {some(surplus, 3) or 'none'}).")
    complain(missing, surplus, "OpenAI's names")


def complain(missing: list[str], surplus: list[str], names: str) -> None:
    """Raise ValueError for keys that are missing or surplus; `names` says whose names they are."""
    complaints = []
    if missing:
        complaints.append(f"missing keys ({len(missing)}): {some(missing)}")
    if surplus:
        complaints.append(f"surplus keys ({len(surplus)}): {some(surplus)}")
    if complaints:
        raise ValueError(f"in {names}, {'; '.join(complaints)}.")
