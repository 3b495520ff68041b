"""The dynamics nets N_s and N_t of STOP, light 3-D convolutions that look for change, and what both stages share.

Shapes: B clips, T frames, P = G*G patches, D width, c channels of a bottleneck. Through both stages the tokens of a
clip stay in the C sequences that the blocks see, `[B,C,L,D]`: C = 1 of the whole clip, or C = T of a frame each. A
sequence is a class token and the patches of its frames, L = 1 + P*T/C. To take the patches out and put them back would
cost more than what is done to them.

Source: Liu et al., CVPR 2025 (arXiv 2503.15973), the 3-D convolution of each prompting stage. [D] marks a decision of
ours where the paper is silent.
"""

import math
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.grad import conv2d_weight

from modules.kernels import changes as change_kernels
from modules.kernels import usable
from modules.precision import compute_dtype

WAVES = 4  # frequencies that say where in the clip something lies


def layer_norm(tokens: Tensor) -> Tensor:
    """LayerNorm without parameters over the last axis, in the precision of matrix products: each token gets mean 0 and
    mean square 1.

    [D] Both dynamics nets see normalised tokens, so that a change means the same in every layer of every CLIP. A
    difference is taken after normalising: to normalise the difference itself would erase how large it is.
    """
    width = tokens.shape[-1]
    # A gain of ones, since on CPUs torch takes three times as long without one.
    return F.layer_norm(tokens, (width,), tokens.new_ones(width)).to(compute_dtype(tokens))


def at_least_fp32(x: Tensor) -> Tensor:
    """Half precision becomes fp32, for sums of squares and for shares; wider types stay."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def sequences(class_tokens: Tensor, patches: Tensor) -> Tensor:
    """Class tokens `[B,C,D]` and patches `[B,T,P,D]` -> `[B,C,L,D]`."""
    count = class_tokens.shape[1]
    by_sequence = patches.unflatten(1, (count, -1)).flatten(2, 3)
    return torch.cat([class_tokens.unsqueeze(2), by_sequence], dim=2)


def patches_of(x: Tensor, frames: int) -> Tensor:
    """Sequences `[B,C,L,D]` of T frames -> their patches `[B,T,P,D]`, a view."""
    return x[:, :, 1:].unflatten(2, (frames // x.shape[1], -1)).flatten(1, 2)


def hold_last_frame(tokens: Tensor, frame_mask: Tensor) -> Tensor:
    """Put the last real frame in the place of the padding frames: `[B,T,P,D]`, bool `[B,T]` -> `[B,T,P,D]`."""
    last = frame_mask.sum(dim=1) - 1
    held = tokens[torch.arange(len(tokens), device=tokens.device), last]
    return torch.where(frame_mask[:, :, None, None], tokens, held.unsqueeze(1))


@dataclass(frozen=True)
class Timeline:
    """Which frames of a batch's clips are real, and where in its clip each lies: the same for all layers."""

    frame_mask: Tensor  # bool [B,T], padding last
    gap_mask: Tensor  # bool [B,T-1], gaps between two real frames
    frame_place: Tensor  # [B,T,2*WAVES], see `waves`
    gap_place: Tensor  # [B,T-1,2*WAVES]
    padded: bool  # false where there is surely no padding, and masks need not be applied

    @staticmethod
    def of(frame_mask: Tensor, dtype: torch.dtype) -> "Timeline":
        """From a bool `[B,T]`, padding last; places come in `dtype`."""
        gap_mask = frame_mask[:, 1:]
        places = waves(frame_mask, dtype), waves(gap_mask, dtype)
        return Timeline(frame_mask, gap_mask, *places, padded=not surely_whole(frame_mask))

    @property
    def frames(self) -> int:
        """T."""
        return self.frame_mask.shape[1]


def surely_whole(frame_mask: Tensor) -> bool:
    """Whether no frame is padding, where that can be told: on a GPU the host would have to wait for the answer, and a
    traced graph cannot depend on it."""
    if frame_mask.device.type != "cpu" or torch.compiler.is_compiling():
        return False
    return bool(frame_mask.all())


def waves(real: Tensor, dtype: torch.dtype) -> Tensor:
    """Where frames or gaps lie in their clip, bool `[B,T]` -> `[B,T,2*WAVES]`: sines and cosines of k pi (i+1)/(n+1),
    k = 1..WAVES, for the clip's i-th of n real ones."""
    count = real.to(dtype)
    place = count.cumsum(dim=1) / (count.sum(dim=1, keepdim=True) + 1)
    angles = math.pi * place.unsqueeze(-1) * torch.arange(1, WAVES + 1, device=real.device)
    return torch.cat([angles.sin(), angles.cos()], dim=-1)


class PlaceGain(nn.Module):
    """Scales channels by where in its clip a frame, or a gap between frames, lies; for P_s and P_t, before their ReLU.

    [D] A channel can so let something pass early and not late. The frozen blocks' attention knows no order of frames;
    without this no prompt could say that one event came before another. It scales and adds nothing, so that nothing
    stays nothing. At first the gains are about 1 +- 0.35: larger ones turn a channel's sign round within a clip, and
    with it the direction of a motion that it tells.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(channels, 2 * WAVES))
        nn.init.normal_(self.weight, std=0.5 * (2 * WAVES) ** -0.5)

    def forward(self, x: Tensor, place: Tensor) -> Tensor:
        """`[B,T,P,c]` and the places of its frames or gaps, `[B,T,2*WAVES]` -> `[B,T,P,c]`."""
        return x * (1 + F.linear(place, self.weight)).unsqueeze(2)


class DynamicsNet(nn.Module):
    """A depth-wise 3x3x3 convolution over (T, G, G) without bias that keeps the D channels apart: N_s and N_t.

    `look` applies it. [D] The paper says "a light 3-D convolution"; depth-wise is the lightest. Both nets give exactly
    zero where nothing changes, however they are trained. N_t sees changes and needs no more than to have no bias. N_s
    sees tokens (`sees="tokens"`): its kernels' means over the three taps in time are taken out, else whatever stands
    still soon outweighs what moves (measured: a fifth instead of four fifths of M on moving patches after training).
    Both start from what they are there to find: N_s from the difference of the two neighbour frames, N_t from the
    identity.
    """

    def __init__(self, width: int, *, sees: Literal["tokens", "changes"]) -> None:
        super().__init__()
        self.sees = sees
        self.conv = nn.Conv3d(width, width, kernel_size=3, padding=(0, 1, 1), groups=width, bias=False)
        with torch.no_grad():
            self.conv.weight.zero_()
            if sees == "tokens":
                self.conv.weight[:, 0, 0, 1, 1] = -0.5
                self.conv.weight[:, 0, 2, 1, 1] = 0.5
            else:
                self.conv.weight[:, 0, 1, 1, 1] = 1.0


class Look(NamedTuple):
    """What a stage sees of the tokens and of their changes from frame to frame."""

    energy: Tensor | None  # of N_s `[B,T,P]`, of N_t `[B,T-1,P]`: 1/D sum_k h~_k^2, at least fp32
    changes: Tensor | None  # a Linear of the changes, `[B,T+1,P,c]`: at place i of frame i less frame i-1
    tokens: Tensor | None  # a Linear of the tokens, `[B,C,L,c]`


def look(
    normal: Tensor,
    timeline: Timeline,
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
        changes = energy = kernel = features = seen_changes = seen_tokens = None
        if weight is not None or of_changes is not None:
            changes = _changes(tokens, frames, gap_mask)
        patches = (tokens.shape[2] - 1) * tokens.shape[1] // frames
        if weight is not None:
            assert changes is not None
            kernel = (_on_changes(weight) if centred else weight).to(tokens.dtype)
            energy, features = _energy(changes, kernel, patches)
        if of_changes is not None:
            assert changes is not None
            seen_changes = _linear_of_changes(changes, of_changes, patches)
        if of_tokens is not None:
            seen_tokens = F.linear(tokens, of_tokens)
        ctx.set_materialize_grads(False)
        ctx.frames, ctx.centred, ctx.shape, ctx.by_kernels = frames, centred, tokens.shape, usable(tokens)
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
        through_changes, of_weight = _energy_backward(by_energy, changes, features, kernel, wanted)
    if by_changes is not None:
        through_changes, of_of_changes = _linear_backward(by_changes, changes, of_changes, wanted, through_changes)
    if wanted and through_changes is not None:
        of_normal = _changes_backward(through_changes, gap_mask, ctx.shape, ctx.frames)
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


def _volume(changes: Tensor) -> Tensor:
    """`[B,N,P,D]` -> `[1,D,B*N,G,G]`, a view with the channels last in memory; all clips as one long one."""
    grid = math.isqrt(changes.shape[2])
    # In this order, or the stride of the first axis would not be the one that tells torch of channels last.
    return changes.reshape(1, -1, grid, grid, changes.shape[-1]).permute(0, 4, 1, 2, 3)


def _energy(changes: Tensor, kernel: Tensor, patches: int) -> tuple[Tensor, Tensor]:
    """What `_changes` gives of N places, kernels `[D,1,k,3,3]` -> the energy `[B,N-k+1,P]`, at least fp32, and what it
    is of."""
    if usable(changes):
        energy, features = change_kernels.change_energy(changes, kernel, patches)
        return energy, features
    taps, places = kernel.shape[2], changes.shape[1]
    features = F.conv3d(_volume(changes), kernel, padding=(0, 1, 1), groups=len(kernel))
    dtype = torch.promote_types(features.dtype, torch.float32)
    energy = torch.linalg.vector_norm(features[0], dim=0, dtype=dtype).square() / len(kernel)
    # Of the one long clip, what lies across the border of two is cut off.
    energy = F.pad(energy.flatten(1), (0, 0, 0, taps - 1)).unflatten(0, changes.shape[:2])
    return energy[:, : places - taps + 1], features


def _energy_backward(
    gradient: Tensor, changes: Tensor, features: Tensor, kernel: Tensor, wanted: bool
) -> tuple[Tensor | None, Tensor]:
    """Of the changes, if wanted, and of the kernels.

    That of a kernel is the one of a 2-D convolution for each tap in time: on a CPU torch's own way back for
    depth-wise 3-D kernels takes several times as long (docs/performance.md).
    """
    width, _, taps, *size = kernel.shape
    padded = F.pad(gradient, (0, 0, 0, taps - 1)).flatten(0, 1)[: features.shape[2]].view_as(features[0, 0])
    of_features = (features * (2 / width * padded)).to(features.dtype)  # in this order, or fp16 loses small ones
    of_changes = None
    if wanted:
        of_volume = F.conv3d(of_features, kernel.flip(2, 3, 4), padding=(taps - 1, 1, 1), groups=width)
        of_changes = of_volume[0].permute(1, 2, 3, 0).contiguous().view_as(changes)
    images, of_images = _volume(changes)[0].transpose(0, 1), of_features[0].transpose(0, 1)
    of_taps = [
        conv2d_weight(images[tap:][: len(of_images)], (width, 1, *size), of_images, padding=1, groups=width)
        for tap in range(taps)
    ]
    return of_changes, torch.stack(of_taps, dim=2)


def _linear_of_changes(changes: Tensor, weight: Tensor, patches: int) -> Tensor:
    """What `_changes` gives, `[c,D]` -> `[B,T+1,P,c]`."""
    if usable(changes):
        return change_kernels.linear_of_changes(changes, weight, patches)
    return F.linear(changes, weight)


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


def _changes(tokens: Tensor, frames: int, gap_mask: Tensor | None) -> Tensor:
    """`[B,C,L,D]`, bool `[B,T-1]` or None -> what `look` says of changes, `[B,T+1,P,D]`, or as the kernels take them,
    `[D,B,T+1,Q]`."""
    if usable(tokens):
        return change_kernels.take_changes(tokens, gap_mask, frames)
    patches = patches_of(tokens, frames)
    if torch.compiler.is_compiling():  # which joins the passes itself, and writes into no slices
        between = patches[:, 1:] - patches[:, :-1]
        if gap_mask is not None:
            between = between * gap_mask[:, :, None, None]
        return F.pad(between, (0, 0, 0, 0, 1, 1))
    batch, _, count, width = patches.shape
    changes = patches.new_empty(batch, frames + 1, count, width)
    changes[:, ::frames].zero_()
    between = changes[:, 1:-1]
    torch.sub(patches[:, 1:], patches[:, :-1], out=between)
    if gap_mask is not None:
        between *= gap_mask[:, :, None, None]
    return changes


def _changes_backward(gradient: Tensor, gap_mask: Tensor | None, shape: torch.Size, frames: int) -> Tensor:
    """From the gradient of changes `[B,T+1,P,D]`, which is overwritten, that of the sequences of this shape."""
    gradient[:, ::frames].zero_()
    if gap_mask is not None:
        gradient[:, 1:-1] *= gap_mask[:, :, None, None]
    if torch.compiler.is_compiling():
        of_patches = (gradient[:, :-1] - gradient[:, 1:]).unflatten(1, (shape[1], -1)).flatten(2, 3)
        return F.pad(of_patches, (0, 0, 1, 0))
    of_normal = gradient.new_empty(shape)
    of_normal[:, :, 0].zero_()
    torch.sub(gradient[:, :-1], gradient[:, 1:], out=patches_of(of_normal, frames))
    return of_normal
