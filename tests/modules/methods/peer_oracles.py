"""Building a method for a reference run of a peer system, and comparing gradients with it."""

from typing import Any

import torch

from modules.clip import ARCHITECTURES, CLIP, CLIPArchitecture
from modules.methods import Method, build_method
from modules.released_weights import load_released_state_dict
from modules.undrawn import undrawn
from tests.reference_numbers import Oracle


def method_of(oracle: Oracle, name: str, **options: Any) -> Method:
    """Return the method with the weights of the reference run."""
    sizes = oracle.setting["clip"]
    architecture = CLIPArchitecture(
        embed_dim=sizes["embed"],
        image_size=sizes["image"],
        patch_size=sizes["patch"],
        vision_width=sizes["width"],
        vision_layers=sizes["layers"],
        vision_heads=sizes["width"] // 64,
        context_length=77,
        vocab_size=49408,
        text_width=sizes["twidth"],
        text_layers=sizes["tlayers"],
        text_heads=sizes["twidth"] // 64,
    )
    method = build_method(name, CLIP(architecture), **options)
    load_released_state_dict(method, oracle.weights)
    assert sum(parameter.numel() for _, parameter in method.trainable_parameters()) == oracle.setting["trainable"]
    return method


def trained_at_b32(name: str, **options: Any) -> dict[str, int]:
    """Return the number of trained values at ViT-B/32, by parameter."""
    with undrawn():
        method = build_method(name, CLIP(ARCHITECTURES["ViT-B/32"]), **options)
    return {own: parameter.numel() for own, parameter in method.trainable_parameters()}


def check_gradient(got: torch.Tensor, expected: list[Any]) -> None:
    """Compare a gradient with `[norm, sum, first four values]` of the original's, to 1e-4 of its norm."""
    norm, total, first = expected
    assert abs(float(got.norm()) - norm) < 1e-4 * norm
    assert abs(float(got.sum()) - total) < 1e-4 * norm * max(1.0, abs(total) / norm)
    torch.testing.assert_close(got.flatten()[:4], torch.tensor(first), atol=1e-4 * norm, rtol=0)
