"""Changes between frames and their depth-wise convolutions, the dynamics nets' work, as Triton kernels for a GPU.

Two operators: `frame_changes` and `change_energy`; `modules.stop.frame_changes` calls them, and does the same by
torch's operators on a CPU. torch's and cuDNN's depth-wise 3-D convolutions would take most of a training step of STOP
on a GPU, and kernels that multiply and add tap by tap would take a fifth (docs/performance.md). Here tensor cores do
it. For one channel, one tap in time is a matrix from the patches of one frame to those of another, zero except between
neighbours (a Toeplitz matrix of 3x3 taps). The convolution of one channel over many frames is then a product of two
tiles. For a grid of 7 that takes seven times the operations, and less time. In fp32 each product is three products of
tf32, which together are nearly exact (`tf32x3`).

For this, changes lie channel by channel, `[D,B,T+1,Q]`: a frame's patches side by side, padded with zeros from P to Q,
a multiple of eight, because loads are eight values wide. Transposing costs nothing: it happens in the pass over memory
that takes the differences.

Shapes: B clips, T frames, P = G*G patches, D width, K taps in time (2 or 3), N = T+2-K places of features, R = B*(T+1)
rows, the changes of one frame each. Features lie as changes do; the feature at place i of a clip sees its changes i to
i+K-1. A chunk is as many patches as a tile holds. Where a frame has several chunks, a tap leads from a chunk to itself
and to its neighbours.

With TRITON_INTERPRET=1, set before the first import of triton, the kernels run on CPU tensors, slowly: for tests.
"""

import math
from typing import Any

import torch
from torch import Tensor

from modules.kernels import cdiv, tile_side

SPACE = 9  # taps of a kernel in space, 3 by 3
CHUNK = 64  # most patches or channels in a tile; half as many patches in fp32
VALUES = 2048  # values a program handles in an element-wise kernel
GROUP = 16  # channels a program handles one after another
ROWS = 64  # most rows in a tile
LARGE = ((9, 0), (10, 0), (10, 3))  # compute capabilities of GPUs with 228 kB of shared memory
PARTS = 1  # programs that share the rows of a channel


@torch.library.custom_op("stop::frame_changes", mutates_args=())
def frame_changes(tokens: Tensor, gap_mask: Tensor | None, frames: int) -> Tensor:
    """Return the changes `[D,B,T+1,Q]` of sequences `[B,C,L,D]` of T frames; differentiable once.

    Changes in gaps that bool `[B,T-1]` marks false are zero.
    """
    from modules.kernels import changes_tiles

    batch, count, length, width = tokens.shape
    tokens, patches = tokens.contiguous(), _patches(count, length, frames)
    changes = tokens.new_empty(width, batch, frames + 1, padded(patches))
    size, chunks, _ = _chunks(patches, tokens)
    with torch.cuda.device_of(tokens):
        changes_tiles.subtract[(batch * (frames + 1), cdiv(width, CHUNK), chunks)](
            tokens, tokens if gap_mask is None else gap_mask.contiguous(), changes,
            batch, frames, frames // count, tokens.stride(0), tokens.stride(1), patches, width,
            MASKED=gap_mask is not None, Q=padded(patches), PATCHES=size, CHANNELS=CHUNK,
        )  # fmt: skip
    return changes


@frame_changes.register_fake
def _(tokens: Tensor, gap_mask: Tensor | None, frames: int) -> Tensor:
    batch, count, length, width = tokens.shape
    return tokens.new_empty(width, batch, frames + 1, padded(_patches(count, length, frames)))


@torch.library.custom_op("stop::frame_changes_backward", mutates_args=())
def frame_changes_backward(of_changes: Tensor, gap_mask: Tensor | None, count: int, length: int) -> Tensor:
    """Turn the gradient of the changes into that of C sequences of L tokens."""
    from modules.kernels import changes_tiles

    width, batch, per_clip, _ = of_changes.shape
    frames = per_clip - 1
    patches = _patches(count, length, frames)
    of_tokens = of_changes.new_empty(batch, count, length, width)
    of_tokens[:, :, 0].zero_()
    size, chunks, _ = _chunks(patches, of_changes)
    with torch.cuda.device_of(of_changes):
        changes_tiles.subtract_back[(batch * frames, cdiv(width, CHUNK), chunks)](
            of_changes.contiguous(), of_changes if gap_mask is None else gap_mask.contiguous(), of_tokens,
            batch, frames, frames // count, of_tokens.stride(0), of_tokens.stride(1), patches, width,
            MASKED=gap_mask is not None, Q=padded(patches), PATCHES=size, CHANNELS=CHUNK,
        )  # fmt: skip
    return of_tokens


@frame_changes_backward.register_fake
def _(of_changes: Tensor, gap_mask: Tensor | None, count: int, length: int) -> Tensor:
    return of_changes.new_empty(of_changes.shape[1], count, length, of_changes.shape[0])


def _keep_gaps(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    tokens, gap_mask, _ = inputs
    ctx.count, ctx.length = tokens.shape[1:3]
    ctx.save_for_backward(gap_mask)


def _differentiate_changes(ctx: Any, of_changes: Tensor) -> tuple[Tensor, None, None]:
    return frame_changes_backward(of_changes, *ctx.saved_tensors, ctx.count, ctx.length), None, None


frame_changes.register_autograd(_differentiate_changes, setup_context=_keep_gaps)


def linear_of_changes(changes: Tensor, weight: Tensor, patches: int) -> Tensor:
    """Apply a Linear without bias, `[c,D]`, to changes `[D,B,T+1,Q]`: `[B,T+1,P,c]`."""
    return (changes.flatten(1).t() @ weight.t()).unflatten(0, changes.shape[1:])[:, :, :patches]


@torch.library.custom_op("stop::change_energy", mutates_args=())
def change_energy(changes: Tensor, kernel: Tensor, patches: int) -> tuple[Tensor, Tensor]:
    """Convolve changes `[D,B,T+1,Q]` with depth-wise kernels `[D,1,K,3,3]`; differentiable once.

    Returns:
        The energy fp32 `[B,N,P]`, the mean square over channels of the features; and the features themselves, kept for
        the gradient, which lie as the changes do and are zero after the N places.
    """
    from modules.kernels import changes_tiles

    width, batch, per_clip, q = changes.shape
    places, size = per_clip + 1 - kernel.shape[2], batch * per_clip * q
    features = _convolved(changes, kernel, patches)
    partial_energy = changes.new_empty(cdiv(width, GROUP), batch, per_clip, q, dtype=torch.float32)
    with torch.cuda.device_of(changes):
        changes_tiles.sum_squares[(cdiv(size, VALUES), len(partial_energy))](
            features, partial_energy, size, width, GROUP=GROUP, VALUES=VALUES
        )
    return partial_energy[:, :, :places, :patches].sum(dim=0), features


@change_energy.register_fake
def _(changes: Tensor, kernel: Tensor, patches: int) -> tuple[Tensor, Tensor]:
    _, batch, per_clip, _ = changes.shape
    energy = changes.new_empty(batch, per_clip + 1 - kernel.shape[2], patches, dtype=torch.float32)
    return energy, torch.empty_like(changes, memory_format=torch.contiguous_format)


@torch.library.custom_op("stop::change_energy_backward", mutates_args=())
def change_energy_backward(
    of_energy: Tensor, features: Tensor, changes: Tensor, kernel: Tensor, changes_wanted: bool
) -> tuple[Tensor, Tensor]:
    """Turn the gradient of the energy, fp32 `[B,N,P]`, into those of the changes and of the kernels.

    Returns:
        `[D,B,T+1,Q]` in the dtype of the changes, empty unless wanted, and fp32 `[D,1,K,3,3]`.
    """
    from modules.kernels import changes_tiles

    features, changes = features.contiguous(), changes.contiguous()
    width, batch, per_clip, q = changes.shape
    rows, taps, (_, places, patches) = batch * per_clip, kernel.shape[2], of_energy.shape
    of_features = torch.empty_like(features)
    size, chunks, halo = _chunks(patches, changes)
    windows = [(-halo, size), (size - halo, 2 * halo)] if halo else [(0, size)]  # together all patches that it sees
    partial_taps = features.new_empty(len(windows), PARTS * chunks, width, taps, SPACE, dtype=torch.float32)
    with torch.cuda.device_of(changes):
        changes_tiles.scale[(cdiv(rows * q, VALUES), cdiv(width, GROUP))](
            features, of_energy.contiguous(), of_features, rows * q, per_clip, places, patches, width,
            Q=q, GROUP=GROUP, VALUES=VALUES,
        )  # fmt: skip
        for (first, seen), of_window in zip(windows, partial_taps, strict=True):
            changes_tiles.sum_taps[(PARTS, width, chunks)](
                changes, of_features, of_window, rows, patches, math.isqrt(patches), width,
                TAPS=taps, ROWS=_rows_of_a_tile(rows), Q=q, CHUNK=size, FIRST=first, SEEN=seen,
                num_warps=4, num_stages=_stages(changes, 0),
            )  # fmt: skip
    sums = partial_taps.flatten(0, 1)
    of_kernel = (sums[0] if len(sums) == 1 else sums.sum(dim=0)).view(width, 1, taps, 3, 3)
    if not changes_wanted:
        return changes.new_empty(0), of_kernel
    return _convolved(of_features, kernel, patches, back=True), of_kernel


@change_energy_backward.register_fake
def _(
    of_energy: Tensor, features: Tensor, changes: Tensor, kernel: Tensor, changes_wanted: bool
) -> tuple[Tensor, Tensor]:
    of_changes = changes.new_empty(changes.shape if changes_wanted else 0)
    return of_changes, kernel.new_empty(kernel.shape, dtype=torch.float32)


def _keep_features(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    changes, kernel, _ = inputs
    ctx.set_materialize_grads(False)  # the features get no gradient, and zeros would be as large as they are
    ctx.save_for_backward(output[1], changes, kernel)


def _differentiate_energy(
    ctx: Any, of_energy: Tensor | None, of_features: None
) -> tuple[Tensor | None, Tensor | None, None]:
    if of_energy is None:
        return None, None, None
    changes_wanted, kernel_wanted, _ = ctx.needs_input_grad
    of_changes, of_kernel = change_energy_backward(of_energy, *ctx.saved_tensors, changes_wanted)
    return of_changes if changes_wanted else None, of_kernel if kernel_wanted else None, None


change_energy.register_autograd(_differentiate_energy, setup_context=_keep_features)


def _convolved(source: Tensor, kernel: Tensor, patches: int, *, back: bool = False) -> Tensor:
    from modules.kernels import changes_tiles

    source, kernel = source.contiguous(), kernel.to(source.dtype).contiguous()
    width, batch, per_clip, q = source.shape
    rows, taps = batch * per_clip, kernel.shape[2]
    size, chunks, halo = _chunks(patches, source)
    result = torch.empty_like(source)
    with torch.cuda.device_of(source):
        changes_tiles.convolve[(width, PARTS, chunks)](
            source, kernel, result, rows, per_clip, per_clip + 1 - taps, patches, math.isqrt(patches),
            BACK=back, TAPS=taps, ROWS=_rows_of_a_tile(rows), Q=q, CHUNK=size, HALO=halo,
            num_warps=4, num_stages=_stages(source, halo),
        )  # fmt: skip
    return result


def padded(patches: int) -> int:
    """Return Q for P."""
    return -(-patches // 8) * 8


def _patches(count: int, length: int, frames: int) -> int:
    """Return P for T frames in C sequences of L tokens."""
    return (length - 1) * count // frames


def _chunks(patches: int, x: Tensor) -> tuple[int, int, int]:
    """Return the patches in a chunk, the chunks in a frame, and how far a chunk sees before and after itself."""
    most = CHUNK if x.element_size() == 2 else CHUNK // 2
    size = min(most, tile_side(patches))
    count = cdiv(patches, size)
    halo = tile_side(math.isqrt(patches) + 1)
    return size, count, halo if count > 1 else 0


def _rows_of_a_tile(rows: int) -> int:
    return min(ROWS, tile_side(rows))


def _stages(x: Tensor, halo: int) -> int:
    """Return how many tiles ahead a kernel loads. Shared memory sets the limit: many GPUs have 100 kB."""
    if x.element_size() > 2 or not x.is_cuda:
        return 1
    return (3 if torch.cuda.get_device_capability(x.device) in LARGE else 2) - (halo > 0)
