"""The highest rates of devices of any speed, within the time budget."""

import pytest
import torch

from benchmarks import ceilings
from benchmarks.ceilings import LARGEST, SMALLEST, measure_ceilings

CPU = torch.device("cpu")


class MadeDevice:
    """Replaces the clock: products run at `rate` operations per second, copies take `copy` ms."""

    def __init__(self, monkeypatch, rate: float, copy: float = 10.0) -> None:
        self.rate, self.copy = rate, copy
        self.products: list[int] = []
        self.spent = {"product": 0.0, "copy": 0.0}  # ms
        monkeypatch.setattr(ceilings, "_product", lambda n, device, dtype: n)
        monkeypatch.setattr(ceilings, "timed", self.timed)

    def timed(self, run, device) -> tuple[None, float]:
        if isinstance(run, int):
            self.products.append(run)
            kind, took = "product", 2e3 * run**3 / self.rate
        else:
            kind, took = "copy", self.copy
        self.spent[kind] += took
        return None, took


@pytest.mark.parametrize("repeats", [1, 5, 50])
@pytest.mark.parametrize("rate", [2e8, 2.7e9, 33e9, 218e9, 8e14])
def test_a_precision_stays_within_its_budget_on_hardware_of_any_speed(rate, repeats, monkeypatch):
    device = MadeDevice(monkeypatch, rate)
    found = measure_ceilings(CPU, ("fp16",), repeats, budget=2.0)
    assert found.matrix["fp16"] == pytest.approx(rate / 1e12)
    assert device.spent["product"] <= 2000
    assert found.sizes["fp16"] == device.products[-1]


def test_fast_hardware_gets_matrices_too_large_for_caches_and_slow_hardware_small_ones(monkeypatch):
    MadeDevice(monkeypatch, 8e14)
    assert measure_ceilings(CPU, ("bf16",), 5).sizes == {"bf16": LARGEST["cpu"]}
    device = MadeDevice(monkeypatch, 2.7e9)
    assert measure_ceilings(CPU, ("bf16",), 5).sizes == {"bf16": 512}
    assert sorted(set(device.products)) == [128, 256, 512]
    MadeDevice(monkeypatch, 1e6)  # one product takes four seconds
    assert measure_ceilings(CPU, ("bf16",), 5).sizes == {"bf16": SMALLEST}


def test_copies_stay_within_the_budget_too(monkeypatch):
    device = MadeDevice(monkeypatch, 8e14, copy=700.0)
    assert measure_ceilings(CPU, (), 5, budget=2.0).copy == pytest.approx(2**28 / 0.7 / 1e9)
    assert device.spent["copy"] == 1400
    device = MadeDevice(monkeypatch, 8e14, copy=7000.0)
    measure_ceilings(CPU, (), 5, budget=2.0)
    assert device.spent["copy"] == 7000  # one is always measured


def test_ceilings_are_given_in_teraflops_and_gigabytes(monkeypatch):
    monkeypatch.setattr(ceilings, "timed", lambda run, device: (run(), 1000.0))
    found = measure_ceilings(CPU, ("fp32",), 1)
    assert found.matrix == {"fp32": 2 * SMALLEST**3 / 1e12}
    assert found.copy == 2**28 / 1e9


def test_real_products_in_each_precision():
    found = measure_ceilings(CPU, ("fp32", "bf16", "fp16"), 1, budget=0.05)
    assert found.matrix.keys() == found.sizes.keys() == {"fp32", "bf16", "fp16"}
    assert min(*found.matrix.values(), found.copy) > 0
    assert all(SMALLEST <= n <= LARGEST["cpu"] for n in found.sizes.values())
