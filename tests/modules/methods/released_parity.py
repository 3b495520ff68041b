"""Comparing a method with the reference run of its original: features, scores, loss and gradients."""

from collections.abc import Callable

import pytest
import torch

from modules.clip import CLIP, CLIPArchitecture
from modules.losses import symmetric_info_nce
from modules.methods import Method, build_method
from modules.released_weights import load_released_state_dict
from tests.reference_numbers import Oracle, largest_relative_difference


def clip_of(oracle: Oracle) -> CLIP:
    """Return a CLIP of the reference run's size; its heads are 64 wide."""
    size, vocabulary = oracle.setting["clip"], oracle.setting["shapes"]["clip.token_embedding.weight"][0]
    return CLIP(
        CLIPArchitecture(
            embed_dim=size["embed"],
            image_size=size["image"],
            patch_size=size["patch"],
            vision_width=size["width"],
            vision_layers=size["layers"],
            vision_heads=size["width"] // 64,
            context_length=77,
            vocab_size=vocabulary,
            text_width=size["twidth"],
            text_layers=size["tlayers"],
            text_heads=size["twidth"] // 64,
        )
    )


def method_of(oracle: Oracle, name: str, **options: object) -> Method:
    """Return the method with the weights of the reference run, loaded by the original's names."""
    method = build_method(name, clip_of(oracle), **options)
    load_released_state_dict(method, oracle.weights)
    trained = {method.released_name(key): list(tensor.shape) for key, tensor in method.trainable_parameters()}
    assert trained == oracle.setting["trained"]
    assert sum(tensor.numel() for _, tensor in method.trainable_parameters()) == oracle.setting["trainable"]
    return method


def frame_mask_of(oracle: Oracle) -> torch.Tensor:
    """Return the mask of valid frames, bool `[B,T]`."""
    return torch.arange(oracle.setting["frames"]) < torch.tensor(oracle.setting["frames_of_clip"])[:, None]


def check_outputs(method: Method, oracle: Oracle, loss: Callable[[], torch.Tensor] | None = None) -> None:
    """Check features and scores in evaluation, then the loss and every gradient in training.

    `loss` computes the loss in training; by default it is the symmetric InfoNCE of the scores.
    """
    frame_mask = frame_mask_of(oracle)

    def scores() -> tuple[torch.Tensor, ...]:
        text, clips = method(oracle.video, frame_mask, oracle.token_ids)
        return text, clips, method.similarity(text, clips)

    with torch.no_grad():
        method.eval()
        text, clips, similarity = scores()
    for name, ours in {"text_output": text, "video_output": clips, "similarity": similarity}.items():
        assert largest_relative_difference(ours, oracle.outputs[name]) < 1e-5, name
    method.train()
    value = loss() if loss else symmetric_info_nce(scores()[2])
    assert float(value.detach()) == pytest.approx(oracle.setting["loss"], rel=1e-5)
    value.backward()
    check_gradients(method, oracle)


def check_gradients(method: Method, oracle: Oracle, relative: float = 1e-4) -> None:
    """Check norm, sum and first values of every gradient against the original's."""
    expected = oracle.setting["gradients_norm_sum_first4"]
    for name, parameter in method.trainable_parameters():
        norm, total, first = expected[method.released_name(name)]
        gradient = parameter.grad
        assert gradient is not None, name
        assert float(gradient.norm()) == pytest.approx(norm, rel=relative), name
        scale = relative * norm
        assert float(gradient.double().sum()) == pytest.approx(total, rel=relative, abs=10 * scale), name
        assert gradient.flatten()[: len(first)].tolist() == pytest.approx(first, rel=relative, abs=scale), name
