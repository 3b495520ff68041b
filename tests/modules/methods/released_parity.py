"""Comparing a method with the reference run of its original: features, scores, loss and gradients."""

from collections.abc import Callable

import pytest
import torch

from modules.losses import symmetric_info_nce
from modules.methods import Method
from tests.modules.methods.peer_oracles import check_gradient
from tests.reference_numbers import Oracle, largest_relative_difference


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
    expected = oracle.setting["gradients_norm_sum_first4"]
    for name, parameter in method.trainable_parameters():
        assert parameter.grad is not None, name
        check_gradient(parameter.grad, expected[method.released_name(name)])
