"""Additions to the linear layers of CLIP's blocks, for LoRA and adapters.

    y = W x + b   becomes   y = (W + ΔW) x + b      for a `WeightDelta`
                       or   y = W x + b + f(x)      for an `InputDelta`

A delta is a module that a method registers beside its CLIP. The layer only refers to it, so the names of CLIP's tensors
and the hash of its weights stay the same. `Block.layers` returns the layers: q, k, v, out, c_fc and c_proj.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import chain

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from modules.precision import FrozenWeightCache, without_autocast


class WeightDelta(nn.Module):
    """A delta that is a matrix. W + ΔW replaces W; in evaluation the sum is cached until a tensor changes."""

    def weight(self) -> Tensor:
        """Return ΔW, [outputs, inputs]."""
        raise NotImplementedError


class InputDelta(nn.Module):
    """A delta that is a function of the layer's input: `forward` maps [..., inputs] to [..., outputs].

    A class may inherit from both. Then `forward` is used in training: it may have dropout, and at a low rank it is
    cheaper, since it needs no gradient of a whole weight. In evaluation `weight` is added to the layer's weight. Code
    that reads a weight itself (`Attention.projection`) does not see the function; `Attention.key_weight` sees it.
    """


class Deltas:
    """The deltas of one weight. Without any, W and y are returned as they are."""

    def __init__(self) -> None:
        self._added: list[tuple[int, int, nn.Module]] = []  # first row, end of the rows, module
        self._cache = FrozenWeightCache(self._sum)

    def add(self, delta: WeightDelta | InputDelta, first: int, end: int) -> None:
        """Add a delta to the rows `first` to `end` of the weight, which are outputs of the layer."""
        self._added.append((first, end, delta))

    def merged(self, weight: Tensor) -> Tensor:
        """Return W + ΔW, in the precision of W."""
        deltas = [delta for _, _, delta in self._added if _in_weight(delta)]
        if not deltas:
            return weight
        sources = [weight, *chain.from_iterable(chain(delta.parameters(), delta.buffers()) for delta in deltas)]
        if not torch.is_grad_enabled() and not any(delta.training for delta in deltas):
            sources = [source.detach() for source in sources]  # the cache keeps frozen tensors only
        with without_autocast(weight.device.type):
            return self._cache(*sources)

    def _sum(self, weight: Tensor, *_: Tensor) -> Tensor:
        for first, end, delta in self._added:
            if _in_weight(delta):
                assert isinstance(delta, WeightDelta)
                weight = weight + F.pad(delta.weight(), (0, 0, first, len(weight) - end))
        return weight

    def left_out(self, weight: Tensor) -> Tensor | None:
        """Return the ΔW that `merged` leaves to `add_to` although they are matrices, or None if there are none."""
        left = [
            F.pad(delta.weight(), (0, 0, first, len(weight) - end))
            for first, end, delta in self._added
            if isinstance(delta, WeightDelta) and not _in_weight(delta)
        ]
        return sum(left[1:], start=left[0]) if left else None

    def add_to(
        self,
        y: Tensor,
        x: Tensor,
        *,
        row: int = 0,
        times: float = 1.0,
        read: Callable[[Tensor], Tensor] | None = None,
    ) -> Tensor:
        """Return y + f(x), where y has the outputs of the layer from `row` on.

        If a factor or a norm was folded into weights, so that x or y is not exactly what the layer reads or writes in
        CLIP, the sum is y + `times` f(`read`(x)).
        """
        for first, end, delta in self._added:
            low, high = max(first, row), min(end, row + y.shape[-1])
            if low < high and not _in_weight(delta):
                added = delta(x if read is None else read(x))[..., low - first : high - first].to(y.dtype)
                # Products with one and pads of nothing are whole passes over the tokens, forward and backward.
                if times != 1:
                    added = times * added
                if high - low < y.shape[-1]:
                    added = F.pad(added, (low - row, row + y.shape[-1] - high))
                y = y + added
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
