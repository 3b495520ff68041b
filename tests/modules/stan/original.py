"""The reference numbers of STAN's original modules, `stan.pt`, and our STAN with their weights."""

from functools import cache
from pathlib import Path
from typing import Any

import torch

from modules.clip import CLIP, MLP, CLIPArchitecture
from modules.methods import build_method
from modules.methods.stan import STAN
from modules.released_weights import load_released_state_dict

SMALL = CLIPArchitecture(32, 32, 8, 64, 6, 4, context_length=16, vocab_size=120, text_width=48, text_layers=2, text_heads=4)  # fmt: skip  # noqa: E501


@cache
def numbers(reference: Path) -> dict[str, Any]:
    """Return all of `stan.pt`."""
    return torch.load(reference / "oracles/stan.pt", weights_only=True)


def small_stan(**options: Any) -> STAN:
    """Return a STAN of the sizes of the small cases, whose MLPs are twice as wide as their tower."""
    clip = CLIP(SMALL)
    for tower in (clip.visual, clip.text):
        for block in tower.blocks:
            block.mlp = MLP(tower.width, "quick_gelu", hidden=2 * tower.width)
    method = build_method("stan", clip, **options)
    assert isinstance(method, STAN)
    return method


def stan_of(reference: Path, case: str, **options: Any) -> STAN:
    """Return a STAN with the weights of a case, in evaluation; the text tower is that of "tiny_text" if it has none."""
    state = numbers(reference)[case]["state_dict"]
    method = small_stan(**options)
    load_released_state_dict(method, numbers(reference)["tiny_text"]["state_dict"] | state)
    return method.eval()
