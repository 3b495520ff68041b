"""The learning rate's curve, at the points that define it."""

import pytest
import torch

from engine.optim import build_optimizer, build_schedule, warmup_cosine


def test_curve():
    factors = [warmup_cosine(step, 100, 0.1) for step in range(100)]
    assert factors[0] == pytest.approx(1 / 11)
    assert factors[:11] == sorted(factors[:11])
    assert factors[10] == 1
    assert factors[10:] == sorted(factors[10:], reverse=True)
    assert factors[55] == pytest.approx(0.5)
    assert 0 < factors[-1] < 0.001


@pytest.mark.parametrize("total", [1, 2, 7])
@pytest.mark.parametrize("proportion", [0.0, 0.1, 1.0])
def test_short_runs_stay_in_range(total, proportion):
    assert all(0 < warmup_cosine(step, total, proportion) <= 1 for step in range(total))


def test_every_group_keeps_its_own_rate():
    groups = [{"params": [torch.nn.Parameter(torch.ones(1))], "lr": lr, "weight_decay": 0.0} for lr in (1.0, 1e-3)]
    optimizer = build_optimizer(groups, torch.device("cpu"))
    schedule = build_schedule(optimizer, 10, 0.5)
    for step in range(10):
        rates = [group["lr"] for group in optimizer.param_groups]
        assert rates == pytest.approx([warmup_cosine(step, 10, 0.5), 1e-3 * warmup_cosine(step, 10, 0.5)])
        optimizer.step()
        schedule.step()
