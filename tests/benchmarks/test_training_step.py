"""The timed step trains every method; the floor trains nothing; the search finds the largest batch."""

from types import SimpleNamespace

import pytest
import torch

from benchmarks import training_step
from benchmarks.common import random_batch
from benchmarks.training_step import MOST_CLIPS, TrainingStep, largest_batch, make_floor, time_in_a_row
from modules.clip import CLIP
from modules.methods import METHODS, build_method
from tests.tiny import TINY, fitting_options, tiny_clip

CPU = torch.device("cpu")


@pytest.mark.parametrize("name", METHODS)
def test_a_step_trains_in_every_method(name):
    method = build_method(name, CLIP(TINY), **fitting_options(name, max_frames=3)).train()
    step = TrainingStep(method, random_batch(TINY, 2, 3, 8, CPU, method.reads_frame_captions), "fp32")
    step.take()
    parts = step.phases()
    assert len(parts) == 3
    assert min(parts) > 0
    assert all(parameter.grad is not None for parameter in step.parameters)


def test_a_row_is_divided_by_its_runs(monkeypatch):
    runs = []
    monkeypatch.setattr("benchmarks.training_step.timed", lambda run, device: (run(), 100.0))
    assert time_in_a_row(lambda: runs.append(1), CPU) == 100.0 / len(runs)


def test_the_floor_goes_back_to_the_tokens_and_trains_nothing(monkeypatch):
    clip = tiny_clip()
    monkeypatch.setattr("benchmarks.training_step.CLIP", lambda architecture: clip)
    video = random_batch(TINY, 2, 3, 8, CPU)[0]
    reached = []
    clip.visual.blocks[0].register_full_backward_hook(lambda module, into, out: reached.append(into[0].shape))
    make_floor(TINY, video, "fp32")()
    assert reached == [(6, 1 + TINY.grid**2, TINY.vision_width)]
    assert all(parameter.grad is None for parameter in clip.visual.parameters())


@pytest.mark.parametrize(("fits", "found"), [(0, 0), (1, 1), (5, 5), (7, 7), (64, 64), (100, 96), (10**6, MOST_CLIPS)])
def test_the_largest_batch_is_found_to_an_eighth(fits, found, monkeypatch):
    class MadeStep:
        def __init__(self, method, clips: int, precision: str) -> None:
            self.clips = clips

        def take(self) -> None:
            if self.clips > fits:
                raise torch.OutOfMemoryError

    monkeypatch.setattr(training_step, "TrainingStep", MadeStep)
    monkeypatch.setattr(training_step, "random_batch", lambda architecture, clips, *sizes: clips)
    method = SimpleNamespace(zero_grad=lambda set_to_none: None, reads_frame_captions=False)
    assert largest_batch(method, TINY, 4, 2, 8, "fp32") == found
    assert fits - found <= found // 8 or found == MOST_CLIPS
