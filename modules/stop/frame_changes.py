"""What a prompting stage of STOP sees of tokens and of how they change from frame to frame, in one function.

Shapes: B clips, T frames, P = G*G patches, D width, C sequences of L tokens a clip (`modules.stop.dynamics`), c
channels of
a bottleneck.
"""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from modules.kernels import changes as change_kernels
from modules.kernels import usable
from modules.precision import compute_dtype
from modules.stop import changes as torch_changes
from modules.stop.dynamics import DynamicsNet, FrameTiming


class Look(NamedTuple):
    """What a stage sees of the tokens and of their changes from frame to frame."""

    energy: Tensor | None  # of N_s `[B,T,P]`, of N_t `[B,T-1,P]`: 1/D sum_k h~_k^2, at least fp32
    changes: Tensor | None  # a Linear of the changes, `[B,T+1,P,c]`: at place i of frame i less frame i-1
    tokens: Tensor | None  # a Linear of the tokens, `[B,C,L,c]`


def look(
    normal: Tensor,
    timeline: FrameTiming,
    *,
    dynamics: DynamicsNet | None = None,
    of_changes: Tensor | None = None,
    of_tokens: Tensor | None = None,
) -> Look:
    """Apply up to three linear maps to tokens or to what every frame differs by from the one before it.

    The changes are zero at the places before the first frame, behind the last, and of padding frames: as if the ends of
    a clip were repeated for ever. [D] With frames of zeros beyond the ends, those of a still clip would look as if
    something changed.

    Args:
        normal: LayerNormed sequences `[B,C,L,D]`.
        dynamics: N_s or N_t, of which only the energy is given out, all that either stage asks of it.
        of_changes: the weight of a Linear, `[c,D]`.
        of_tokens: the weight of another.
    """
    gap_mask = timeline.gap_mask if timeline.padded else None
    weight, centred = (None, False) if dynamics is None else (dynamics.conv.weight, dynamics.sees == "tokens")
    normal = normal.to(compute_dtype(normal))
    return Look(*_Look.apply(normal, timeline.frames, gap_mask, centred, weight, of_changes, of_tokens))


class _Look(torch.autograd.Function):
    """`look`. As one function, the three gradients of the widest tensors of a stage are added up where the first one
    lies, and the changes are written where they are read: torch's own way takes twice the passes over memory."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any,
        tokens: Tensor,
        frames: int,
        gap_mask: Tensor | None,
        centred: bool,
        weight: Tensor | None,
        of_changes: Tensor | None,
        of_tokens: Tensor | None,
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        of_changes, of_tokens = (
            None if linear is None else linear.to(tokens.dtype) for linear in (of_changes, of_tokens)
        )
        by_kernels = usable(tokens)
        operators = change_kernels if by_kernels else torch_changes  # each lays changes its own way
        changes = energy = kernel = features = seen_changes = seen_tokens = None
        if weight is not None or of_changes is not None:
            changes = operators.take_changes(tokens, gap_mask, frames)
        patches = (tokens.shape[2] - 1) * tokens.shape[1] // frames
        if weight is not None:
            kernel = (_on_changes(weight) if centred else weight).to(tokens.dtype)
            energy, features = operators.change_energy(changes, kernel, patches)
        if of_changes is not None:
            seen_changes = operators.linear_of_changes(changes, of_changes, patches)
        if of_tokens is not None:
            seen_tokens = F.linear(tokens, of_tokens)
        ctx.set_materialize_grads(False)
        ctx.centred, ctx.shape, ctx.by_kernels = centred, tokens.shape, by_kernels
        kept = None if of_tokens is None else tokens
        ctx.save_for_backward(gap_mask, kernel, of_changes, of_tokens, kept, changes, features)
        return energy, seen_changes, seen_tokens

    @staticmethod
    def backward(ctx, by_energy, by_changes, by_tokens):  # type: ignore[no-untyped-def, override]
        back = _look_back_by_kernels if ctx.by_kernels else _look_back
        of_normal, of_weight, of_of_changes, of_of_tokens = back(ctx, by_energy, by_changes, by_tokens)
        if ctx.centred and of_weight is not None:
            of_weight = _on_changes_backward(of_weight)
        return of_normal, None, None, None, of_weight, of_of_changes, of_of_tokens


def _look_back(
    ctx: Any, by_energy: Tensor | None, by_changes: Tensor | None, by_tokens: Tensor | None
) -> tuple[Tensor | None, ...]:
    """Gradients of the sequences, of the net's kernels, and of both Linears' weights."""
    gap_mask, kernel, of_changes, of_tokens, tokens, changes, features = ctx.saved_tensors
    wanted = ctx.needs_input_grad[0]
    of_normal = through_changes = of_weight = of_of_changes = of_of_tokens = None
    if by_energy is not None:
        of_weight, through_changes = torch_changes.change_energy_backward(by_energy, features, changes, kernel, wanted)
    if by_changes is not None:
        through_changes, of_of_changes = _linear_backward(by_changes, changes, of_changes, wanted, through_changes)
    if wanted and through_changes is not None:
        of_normal = torch_changes.take_changes_backward(through_changes, gap_mask, ctx.shape)
    if by_tokens is not None:
        of_normal, of_of_tokens = _linear_backward(by_tokens, tokens, of_tokens, wanted, of_normal)
    return of_normal, of_weight, of_of_changes, of_of_tokens


def _look_back_by_kernels(
    ctx: Any, by_energy: Tensor | None, by_changes: Tensor | None, by_tokens: Tensor | None
) -> tuple[Tensor | None, ...]:
    """The same; products come first, as our kernels add to what is there without a pass of its own."""
    gap_mask, kernel, of_changes, of_tokens, tokens, changes, features = ctx.saved_tensors
    wanted = ctx.needs_input_grad[0]
    of_normal = through_changes = of_weight = of_of_changes = of_of_tokens = None
    if by_tokens is not None:
        of_normal, of_of_tokens = _linear_backward(by_tokens, tokens, of_tokens, wanted, None)
    if by_changes is not None:
        through_changes, of_of_changes = change_kernels.linear_of_changes_backward(
            by_changes, changes, of_changes, wanted
        )
    if by_energy is not None:
        of_weight, through_changes = change_kernels.change_energy_backward(
            by_energy, features, changes, kernel, wanted, through_changes
        )
    if wanted and through_changes is not None:
        of_normal = change_kernels.take_changes_backward(through_changes, gap_mask, list(ctx.shape), of_normal)
    return of_normal, of_weight, of_of_changes, of_of_tokens


def _on_changes(weight: Tensor) -> Tensor:
    """N_s's kernels on tokens, less their mean over time, `[D,1,3,3,3]` -> on changes, `[D,1,2,3,3]`: taps a, b, c that
    sum to zero are -a and c on the changes before and after, zero without rounding where there are none."""
    mean = weight.mean(dim=2)
    return torch.stack([mean - weight[:, :, 0], weight[:, :, 2] - mean], dim=2)


def _on_changes_backward(gradient: Tensor) -> Tensor:
    """From the gradient of these, that of N_s's kernels."""
    of_before, of_after = gradient.unbind(dim=2)
    of_mean = (of_before - of_after) / 3
    return torch.stack([of_mean - of_before, of_mean, of_mean + of_after], dim=2)


def _linear_backward(
    gradient: Tensor, x: Tensor, weight: Tensor, wanted: bool, others: Tensor | None
) -> tuple[Tensor | None, Tensor]:
    """Of `x [...,D]`, if wanted, added to what `others` have given it and in their place, and of the weight."""
    flat = gradient.flatten(0, -2)
    of_weight = flat.t() @ x.flatten(0, -2)
    if not wanted:
        return None, of_weight
    if others is None:
        return gradient @ weight, of_weight
    others.view(-1, weight.shape[1]).addmm_(flat, weight)
    return others, of_weight
