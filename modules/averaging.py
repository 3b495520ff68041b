"""Averages of a network's weights over epochs of its training, and between them and CLIP's.

With θ_i the weights after epoch i, and θ_0 those of CLIP, an average is Σ_i w_i θ_i with Σ_i w_i = 1:

- swa: all w_i are equal (Izmailov et al., UAI 2018, arXiv 1803.05407);
- gwa: w_i ~ exp(-(i - 15)² / (2 · 10²)), which prefers the later epochs of about twenty (PromptSRC, Khattak et al.,
  ICCV 2023, arXiv 2307.06948, for prompts);
- bwa: w ~ density of Beta(1/2, 1/2) at (k + 1/2) / n for member k = 0..n-1, which prefers the first and the last ones
  (CLIPood, Shu et al., ICML 2023, arXiv 2302.00864);
- ewa: exponential, a ← 0.9 a + 0.1 θ_i, where a starts as the first member.

The constants are those of STDD's released code (github.com/Mia-YatingYu/STDD). Patching (Ilharco et al., NeurIPS 2022,
arXiv 2208.05592) then moves the average towards CLIP: ρ θ_CLIP + (1 - ρ) θ.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor

Average = Literal["swa", "gwa", "bwa", "ewa"]
State = Mapping[str, Tensor]

GAUSSIAN_MEAN, GAUSSIAN_DEVIATION = 15.0, 10.0  # epochs
KEPT = 0.9  # share of the exponential average that stays in each step


def average_weights(how: Average, epochs: Sequence[int]) -> list[float]:
    """Return the weight w_i of each member, positive or 0, with the sum 1.

    Args:
        how: the kind of average, see the module's docstring.
        epochs: the members' epochs in ascending order, at least one; 0 stands for CLIP.
    """
    n = len(epochs)
    if how == "swa":
        shares = [1.0] * n
    elif how == "gwa":
        logs = [-0.5 * ((epoch - GAUSSIAN_MEAN) / GAUSSIAN_DEVIATION) ** 2 for epoch in epochs]
        shares = [math.exp(log - max(logs)) for log in logs]  # far from the mean all densities alone would be 0
    elif how == "bwa":
        places = [(k + 0.5) / n for k in range(n)]
        shares = [1 / math.sqrt(place * (1 - place)) for place in places]
    else:
        shares = [(1 - KEPT if k else 1.0) * KEPT ** (n - 1 - k) for k in range(n)]
    total = math.fsum(shares)
    return [share / total for share in shares]


def weighted_mean(members: Iterable[tuple[str, State]], weights: Sequence[float]) -> dict[str, Tensor]:
    """Return Σ_i w_i θ_i of each tensor, summed in fp64, in the tensor's own dtype.

    Only one member and the sum are in memory if `members` is an iterator. Tensors that are not of floating point, such
    as counters and masks, have no mean: they must be the same in all members, and are kept.

    Args:
        members: pairs of a name, for messages, and a state dict; at least one.
        weights: one for each member.

    Raises:
        ValueError: a member lacks a tensor of the first one or has another, a tensor's shape or dtype differs, or one
            that is not of floating point does; the message names member and tensor.
    """
    of_first, first, sums = "", {}, {}
    for (name, state), weight in zip(members, weights, strict=True):
        if not of_first:
            of_first, first = name, dict(state)
            sums = {key: torch.zeros_like(t, dtype=torch.float64) for key, t in state.items() if t.is_floating_point()}
        check_alike(of_first, first, name, state)
        for key, tensor in state.items():
            if key in sums:
                sums[key].add_(tensor.to(torch.float64), alpha=weight)
            elif not torch.equal(tensor, first[key]):
                raise ValueError(
                    f"{name}: the tensor {key} ({_kind(tensor)}) is another one than in {of_first}, and has no average "
                    "because it is not of floating point"
                )
    return {key: sums[key].to(tensor.dtype) if key in sums else tensor for key, tensor in first.items()}


def patched(state: State, clip: State, ratio: float) -> dict[str, Tensor]:
    """Return ρ θ_CLIP + (1 - ρ) θ for the tensors that CLIP has, computed in fp64; the others stay as they are.

    `clip` has CLIP's tensors by the names of `state`, `ratio` is ρ, 0 to 1. Raises ValueError like `weighted_mean`.
    """
    own = {key: tensor for key, tensor in state.items() if key in clip}
    return {**state, **weighted_mean([("CLIP", {key: clip[key] for key in own}), ("average", own)], [ratio, 1 - ratio])}


def check_alike(of_one: str, one: State, of_other: str, other: State) -> None:
    """Raise ValueError if two state dicts differ in names, shapes or dtypes; `of_one` and `of_other` name them."""
    for key in sorted(one.keys() | other.keys()):
        if (key in one) != (key in other):
            here, there = (of_one, of_other) if key in one else (of_other, of_one)
            raise ValueError(f"{there}: has no tensor {key}, which {here} has")
        if _kind(one[key]) != _kind(other[key]):
            raise ValueError(f"{of_other}: the tensor {key} is {_kind(other[key])}, in {of_one} {_kind(one[key])}")


def _kind(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"
