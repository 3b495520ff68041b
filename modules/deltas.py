"""Additions to the linear layers of CLIP's blocks, for LoRA, adapters and their kin.

    y = W x + b   becomes   y = (W + ΔW) x + b      for a `WeightDelta`
                       or   y = W x + b + f(x)      for an `InputDelta`

A delta is a module that a method registers beside its CLIP. The layer only refers to it, so the names of CLIP's tensors
and the hash of its weights stay as they are. `Block.layers` gives the layers: q, k, v, out, c_fc and c_proj.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import chain

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from modules.precision import FrozenWeightCache


class WeightDelta(nn.Module):
    """A delta that is a matrix. It is added to the weight, in evaluation once until a tensor changes."""

    def weight(self) -> Tensor:
        """Return ΔW, [outputs, inputs]."""
        raise NotImplementedError


class InputDelta(nn.Module):
    """A delta that is a function of the layer's input: `forward` maps [..., inputs] to [..., outputs].

    One that is a `WeightDelta` too is this in training, where a low rank is cheaper so (no gradient of a whole weight)
    and may have dropout, and is added to the weight in evaluation.
    """


class Deltas:
    """What is added to one weight; empty where no method adds anything, and then free of cost."""

    def __init__(self) -> None:
        self._added: list[tuple[int, int, nn.Module]] = []  # rows from and to, module
        self._cache = FrozenWeightCache(self._sum)

    def add(self, delta: WeightDelta | InputDelta, first: int, end: int) -> None:
        """Add a delta for the rows `first` to `end` of the weight, which are its outputs."""
        self._added.append((first, end, delta))

    def merged(self, weight: Tensor) -> Tensor:
        """Return W + ΔW, in the precision of W; W itself where nothing is to be added to it."""
        deltas = [delta for _, _, delta in self._added if _in_weight(delta)]
        if not deltas:
            return weight
        sources = [weight, *chain.from_iterable(chain(delta.parameters(), delta.buffers()) for delta in deltas)]
        if not torch.is_grad_enabled():
            sources = [source.detach() for source in sources]  # to the cache they are frozen
        with torch.autocast(weight.device.type, enabled=False):
            return self._cache(*sources)

    def _sum(self, weight: Tensor, *_: Tensor) -> Tensor:
        for first, end, delta in self._added:
            if _in_weight(delta):
                assert isinstance(delta, WeightDelta)
                weight = weight + F.pad(delta.weight(), (0, 0, first, len(weight) - end))
        return weight

    def add_to(
        self,
        y: Tensor,
        x: Tensor,
        *,
        row: int = 0,
        times: float = 1.0,
        read: Callable[[Tensor], Tensor] | None = None,
    ) -> Tensor:
        """Return y, the outputs `row` and after of the layer, plus f(x).

        Where x and y are not exactly what the layer reads and writes in CLIP, `times` f(`read`(x)) is added.
        """
        for first, end, delta in self._added:
            low, high = max(first, row), min(end, row + y.shape[-1])
            if low < high and not _in_weight(delta):
                added = times * delta(x if read is None else read(x))[..., low - first : high - first]
                y = y + F.pad(added.to(y.dtype), (low - row, row + y.shape[-1] - high))
        return y


def _in_weight(delta: nn.Module) -> bool:
    return isinstance(delta, WeightDelta) and not (delta.training and isinstance(delta, InputDelta))


@dataclass(frozen=True)
class Layer:
    """A linear layer of a block that takes deltas: rows of one of its weights."""

    deltas: Deltas
    first: int
    outputs: int
    inputs: int

    def add(self, delta: WeightDelta | InputDelta) -> None:
        """Add a delta; the caller keeps the module and registers it in the method."""
        self.deltas.add(delta, self.first, self.first + self.outputs)
