"""Measures a device's highest rates of matrix products and copies within a time budget.

The speed of a precision without hardware units is unknown beforehand: fp16 on a CPU may be a hundred times slower than
fp32. So a measurement begins with small matrices, and doubles them only while the next size is sure to fit the budget.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from benchmarks.common import timed
from engine.precision import AUTOCAST

SMALLEST = 128  # n of the first product: 4 million operations
LARGEST = {"cuda": 8192, "cpu": 4096}  # n of products that are too large for caches
COPIED_BYTES = {"cuda": 2**30, "cpu": 2**28}
BUDGET = 2.0  # seconds per precision


@dataclass(frozen=True)
class Ceilings:
    """Matrix products `[n,n]` in 10^12 operations per second and their n, by precision; copies in GB per second."""

    matrix: dict[str, float]
    sizes: dict[str, int]
    copy: float


def measure_ceilings(device: torch.device, precisions: Sequence[str], repeats: int, budget: float = BUDGET) -> Ceilings:
    """Return the best of up to `repeats` matrix products in each precision, and of as many copies.

    Each precision takes about `budget` seconds at most, and so do the copies. Slow hardware gets smaller matrices, and
    fewer repeats if those are slow too; one product is always measured.
    """
    matrix, sizes = {}, {}
    for precision in precisions:
        matrix[precision], sizes[precision] = _best_product(device, precision, repeats, budget)
    source = torch.zeros(COPIED_BYTES[device.type], dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    best = _best_time(lambda: target.copy_(source), device, repeats, 1e3 * budget)
    return Ceilings(matrix, sizes, source.numel() / best / 1e6)


def _best_product(device: torch.device, precision: str, repeats: int, budget: float) -> tuple[float, int]:
    """Return 10^12 operations per second, and the n they were measured with."""
    n, left = SMALLEST, 1e3 * budget
    while True:
        product = _product(n, device, AUTOCAST.get(precision, torch.float32))
        # Two runs, because the first run of a size may choose a kernel.
        trials = [timed(product, device)[1] for _ in range(2)]
        left -= sum(trials)
        # A product of twice the size has 8 times the operations. It runs twice here, then up to 1 + repeats times.
        if n == LARGEST[device.type] or 8 * min(trials) * (repeats + 3) > left:
            break
        n *= 2
    best = min(*trials, _best_time(product, device, repeats, left))
    return 2 * n**3 / best / 1e9, n


def _product(n: int, device: torch.device, dtype: torch.dtype) -> Callable[[], Any]:
    a, b = (torch.randn(n, n, device=device).to(dtype) for _ in range(2))
    return partial(torch.matmul, a, b)


def _best_time(run: Callable[[], Any], device: torch.device, repeats: int, budget: float) -> float:
    """Return the least milliseconds of up to 1 + `repeats` runs: at least one, then as many as fit `budget`
    milliseconds."""
    times = [timed(run, device)[1]]
    while len(times) <= repeats and sum(times) + min(times) <= budget:
        times.append(timed(run, device)[1])
    return min(times)
