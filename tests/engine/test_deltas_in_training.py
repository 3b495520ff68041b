"""Weight deltas in training: what evaluation merges follows every step of the optimiser."""

import copy

import pytest
import torch

from engine.optim import build_optimizer
from engine.precision import autocast_for
from engine.tasks.base import Part
from engine.tasks.contrastive import ContrastiveStep
from modules.clip import CLIP
from modules.operations import count_operations
from tests.modules.lora import LoRAMethod
from tests.modules.test_deltas import lora
from tests.tiny import TINY, tiny_batch


@pytest.mark.parametrize("kind", ["weight", "input"])
def test_a_step_of_the_optimiser_changes_the_merged_sum(kind):
    """Evaluate, step, evaluate: a fused AdamW leaves no trace in the tensors' own versions."""
    method, batch = lora(kind), tiny_batch()
    optimizer = build_optimizer(method.parameter_groups(1e-2, 1.0, 0.0))
    for _ in range(3):
        with torch.no_grad():
            method.eval()
            found, expected = method(*batch), copy.deepcopy(method)(*batch)
        for one, other in zip(found, expected, strict=True):
            assert torch.equal(one, other)
        method.train().similarity(*method(*batch)).square().sum().backward()
        optimizer.step()


@pytest.mark.parametrize("kind", ["weight", "input"])
def test_a_step_in_parts_has_the_whole_gradient_after_a_step(kind):
    """The first pass of a step in parts runs without gradient, and must not find the sum of an earlier step."""
    video, frame_mask, token_ids = tiny_batch(batch=4)
    inputs = ((video.clamp(0, 1) * 255).to(torch.uint8), frame_mask, token_ids)
    losses = []
    for parts in (1, 2):
        method = lora(kind).train()
        step = ContrastiveStep(method, autocast_for("fp32", torch.device("cpu")))
        optimizer = torch.optim.AdamW(method.parameter_groups(1e-2, 1.0, 0.0), fused=True)  # of somebody else
        losses.append([])
        for _ in range(3):
            optimizer.zero_grad()
            for part in [Part(inputs)] if parts == 1 else step.in_parts(inputs, parts)[1]:
                step(*part.inputs).backward()
            losses[-1].append(step(*inputs).item())
            optimizer.step()
    assert losses[1] == pytest.approx(losses[0], abs=1e-5)
    assert losses[0][0] != losses[0][2]


def test_operations_are_counted_without_data():
    """On the meta device, which has no autocast."""
    with torch.device("meta"):
        method = LoRAMethod(CLIP(TINY), kind="weight")
    assert count_operations(method.eval().requires_grad_(False), 2, 8) > 0
