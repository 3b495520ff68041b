"""The schedules of the learning rate have the right values at the points that define them."""

import json
import math

import pytest
import torch

from engine.config import OptimConfig
from engine.optim import (
    RATES,
    Schedule,
    build_optimizer,
    leave_eps_uncorrected,
    one_percent,
    periodic_cosine,
    released,
    warmup_cosine,
)
from tests.reference_numbers import recipe_of


def test_warmup_cosine_at_its_turning_points():
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
    assert all(1e-8 <= released(step, total, proportion, 1e-3) <= 1e-3 for step in range(total))
    assert all(1e-5 <= one_percent(step, total, proportion, 1e-3) <= 1e-3 for step in range(total))
    assert all(0 <= periodic_cosine(step, total, proportion, 1e-3, 0.3) <= 1e-3 for step in range(total))


def test_every_group_keeps_its_own_rate():
    groups = [{"params": [torch.nn.Parameter(torch.ones(1))], "lr": lr, "weight_decay": 0.0} for lr in (1.0, 1e-3)]
    optimizer = build_optimizer(groups)
    schedule = Schedule(optimizer, 10, 0.5)
    for step in range(10):
        rates = [group["lr"] for group in optimizer.param_groups]
        assert rates == pytest.approx([warmup_cosine(step, 10, 0.5), 1e-3 * warmup_cosine(step, 10, 0.5)])
        optimizer.step()
        schedule.step()


def rates_of_released_code(lr: float, total: int, warmup: int) -> list[float]:
    rates = []
    for step in range(total):
        if step <= warmup:
            rates.append(1e-8 + (lr - 1e-8) * step / warmup)
        else:
            rates.append(max(1e-8, 0.5 * lr * (1 + math.cos(math.pi * (step - warmup) / (total - warmup)))))
    return rates


def test_released_schedule_of_every_group():
    """Check the authors' run on MSR-VTT: 7030 steps, 703 of them warm-up, and CLIP's tensors at coef_lr 5e-4."""
    groups = [{"params": [torch.nn.Parameter(torch.ones(1))], "lr": lr, "weight_decay": 0.0} for lr in (1e-3, 5e-7)]
    optimizer = build_optimizer(groups)
    schedule = Schedule(optimizer, 7030, 0.1, "released")
    rates = []
    for _ in range(7030):
        rates.append([group["lr"] for group in optimizer.param_groups])
        optimizer.step()
        schedule.step()
    new, clip = (list(column) for column in zip(*rates, strict=True))
    assert new == pytest.approx(rates_of_released_code(1e-3, 7030, 703), rel=1e-12)
    assert clip == pytest.approx(rates_of_released_code(5e-7, 7030, 703), rel=1e-12)
    assert (new[0], new[703], new[-1]) == (1e-8, 1e-3, 1e-8)


def test_the_schedule_of_stdd_s_release():
    """Check its run: 22 epochs, 2 of them warm-up, and the numbers of its settings, as a function of the epoch."""
    steps, warmup = 22 * 7, 2 / 22
    for step in range(steps):
        epoch = step / 7
        if epoch < 2:
            expected = 3.33e-8 + (3.33e-6 - 3.33e-8) * epoch / 2
        else:
            expected = 3.33e-8 + (3.33e-6 - 3.33e-8) * (math.cos(math.pi * (epoch - 2) / 20) + 1) / 2
        assert one_percent(step, steps, warmup, 3.33e-6) == pytest.approx(expected, rel=1e-9)


# Epochs of the rise, of a fall to 0, and of the run, in the configurations of STAN's release.
STAN_RUNS = {
    "stan_msrvtt": (10, 4.5, 10),
    "mugstan_msrvtt_first30": (10, 4.5, 100),
    "mugstan_lsmdc_first30": (5, 4.5, 100),
    "stan_lsmdc_first30": (10, 4.5, 100),
    "didemo": (4, 17, 20),
    "webvid": (0.5, 4.5, 4),
}


def test_the_schedules_of_stan_s_release(reference):
    """Check each multiplier that its code computed, with 100 steps an epoch, through the settings of a run."""
    curves = torch.load(reference / "oracles/stan.pt", weights_only=True)["lr_curves"]
    assert set(curves) == {"E", *STAN_RUNS}
    for name, (warm, fall, epochs) in STAN_RUNS.items():
        settings = OptimConfig(
            epochs=epochs, warmup_proportion=warm / epochs, schedule="periodic_cosine", cosine_epochs=fall
        )
        rate, total, share = RATES[settings.schedule], epochs * curves["E"], settings.cosine_epochs / settings.epochs
        rates = [rate(step, total, settings.warmup_proportion, 2e-6, share) for step in range(len(curves[name]))]
        assert rates == pytest.approx([2e-6 * factor for factor in curves[name]], rel=1e-9, abs=1e-18), name


def test_a_schedule_knows_its_period():
    group = {"params": [torch.nn.Parameter(torch.ones(1))], "lr": 0.1, "weight_decay": 0.0}
    optimizer = build_optimizer([group])
    schedule = Schedule(optimizer, 40, 0.25, "periodic_cosine", fall=0.2)
    for step in range(40):
        assert optimizer.param_groups[0]["lr"] == periodic_cosine(step, 40, 0.25, 0.1, fall=0.2)
        optimizer.step()
        schedule.step()


def test_the_period_does_not_depend_on_the_length_of_the_run():
    long, short = ([periodic_cosine(step, n, 20 / n, 1.0, 45 / n) for step in range(n)] for n in (400, 200))
    assert short == pytest.approx(long[:200])
    assert long[20 + 45] == pytest.approx(0)
    assert long[20 + 90] == pytest.approx(1)


@pytest.mark.parametrize("name", RATES)
def test_a_schedule_goes_on_where_it_was_saved(name):
    def begin() -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
        groups = [{"params": [torch.nn.Parameter(torch.ones(1))], "lr": lr, "weight_decay": 0.0} for lr in (1.0, 0.0)]
        optimizer = build_optimizer(groups)
        return optimizer, Schedule(optimizer, 10, 0.3, name)

    whole, first, second = begin(), begin(), begin()
    for step in range(10):
        if step == 4:
            second[0].load_state_dict(first[0].state_dict())
            second[1].load_state_dict(first[1].state_dict())
        here = first if step < 4 else second
        for optimizer, schedule in (whole, here):
            assert [group["lr"] for group in optimizer.param_groups] == [
                RATES[name](step, 10, 0.3, lr) for lr in (1, 0)
            ]
            optimizer.step()
            schedule.step()


def test_the_constants_of_adam():
    parameter = torch.nn.Parameter(torch.ones(1))
    usual, own = (
        build_optimizer([{"params": [parameter], "lr": 1e-3, "weight_decay": 0.0}], *constants).param_groups[0]
        for constants in ((), (0.999, 1e-8))
    )
    assert (usual["betas"], usual["eps"]) == ((0.9, 0.98), 1e-6)
    assert (own["betas"], own["eps"]) == ((0.9, 0.999), 1e-8)


def test_tempmes_own_adamw(reference):
    """Twenty steps of the original optimiser. It decays after the update and we before it, which changes a weight by
    lr * decay of the update: 0.012 % of it."""
    recipe = recipe_of(reference / "oracles")
    case = json.loads((reference / "oracles" / "peers_training.json").read_text())
    seed, steps = case["seed"], case["tempme_adamw"]["steps"]
    p, q = (
        torch.nn.Parameter(torch.from_numpy(recipe.tensor(seed, name, shape)))
        for name, shape in (("opt.p", (3, 4)), ("opt.q", (4, 2)))
    )
    optimizer = build_optimizer([{"params": [p, q], "lr": 6e-4, "weight_decay": 0.2}], beta2=0.999)
    schedule = Schedule(optimizer, len(steps), 0.1, "released")
    leave_eps_uncorrected(optimizer, schedule, 1e-6)
    for k, expected in enumerate(steps):
        assert optimizer.param_groups[0]["lr"] == pytest.approx(expected["lr"], abs=2e-8)
        p.grad = (k + 1) * torch.from_numpy(recipe.tensor(seed, f"opt.gp{k}", (3, 4)))
        q.grad = torch.from_numpy(recipe.tensor(seed, f"opt.gq{k}", (4, 2)))
        torch.nn.utils.clip_grad_norm_([p, q], 1.0)
        optimizer.step()
        schedule.step()
        assert p.detach().flatten()[:4].tolist() == pytest.approx(expected["p_first4"], abs=2e-6)
        assert q.detach().flatten()[:4].tolist() == pytest.approx(expected["q_first4"], abs=2e-6)
        assert p.detach().norm().item() == pytest.approx(expected["p_norm"], abs=2e-6)


def test_an_uncorrected_eps_is_felt_where_gradients_are_small():
    """In the first step AdamW moves a weight by lr g / (|g| + eps), and by lr g / (|g| + eps / √(1 - β2)) without the
    correction."""
    moved = []
    for uncorrected in (False, True):
        p = torch.nn.Parameter(torch.zeros(1))
        optimizer = build_optimizer([{"params": [p], "lr": 1.0, "weight_decay": 0.0}], beta2=0.99, eps=1e-3)
        schedule = Schedule(optimizer, 10, 0.0)
        if uncorrected:
            leave_eps_uncorrected(optimizer, schedule, 1e-3)
        p.grad = torch.tensor([1e-3])
        optimizer.step()
        moved.append(-p.item())
    assert moved == pytest.approx([0.5, 1 / 11], rel=1e-4)
