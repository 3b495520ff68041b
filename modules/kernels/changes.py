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

from modules.kernels import HAS_TRITON

if HAS_TRITON:
    import triton
    import triton.language as tl

SPACE = 9  # taps of a kernel in space, 3 by 3
CHUNK = 64  # most patches or channels in a tile; half as many patches in fp32
LEAST = 16  # the shortest side of a tile that tensor cores take
VALUES = 2048  # values a program handles in an element-wise kernel
GROUP = 16  # channels a program handles one after another
ROWS = 64  # most rows in a tile
LARGE = ((9, 0), (10, 0), (10, 3))  # compute capabilities of GPUs with 228 kB of shared memory
PARTS = 1  # programs that share the rows of a channel


if HAS_TRITON:

    @triton.jit
    def _frame_start(frame, frames_a_sequence, per_sequence, patches, width):
        """Return the offset of a frame's first patch in its clip; each sequence begins with a class token."""
        return (frame // frames_a_sequence) * per_sequence + (1 + frame % frames_a_sequence * patches) * width

    @triton.jit
    def _subtract(
        tokens, gaps, changes, clips, frames, frames_a_sequence, per_clip, per_sequence, patches, width,
        MASKED: tl.constexpr, Q: tl.constexpr, PATCHES: tl.constexpr, CHANNELS: tl.constexpr,
    ):  # fmt: skip
        """Compute the changes from the tokens."""
        row = tl.program_id(0).to(tl.int64)
        clip, j = row // (frames + 1), row % (frames + 1)
        channel = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
        patch = tl.program_id(2) * PATCHES + tl.arange(0, PATCHES)
        between = (j > 0) & (j < frames)
        if MASKED:
            between = between & (tl.load(gaps + clip * (frames - 1) + j - 1, mask=between, other=0) != 0)
        there = (patch < patches)[:, None] & (channel < width)[None, :] & between
        at = tokens + clip * per_clip + patch[:, None] * width + channel[None, :]
        after = tl.load(at + _frame_start(j, frames_a_sequence, per_sequence, patches, width), mask=there, other=0.0)
        before = tl.load(
            at + _frame_start(j - 1, frames_a_sequence, per_sequence, patches, width), mask=there, other=0.0
        )
        change = (after.to(tl.float32) - before.to(tl.float32)).to(changes.dtype.element_ty)
        into = changes + row * Q + channel.to(tl.int64)[:, None] * (clips * (frames + 1) * Q) + patch[None, :]
        tl.store(into, tl.trans(change), mask=(channel < width)[:, None] & (patch < Q)[None, :])

    @triton.jit
    def _subtract_back(
        of_changes, gaps, of_tokens, clips, frames, frames_a_sequence, per_clip, per_sequence, patches, width,
        MASKED: tl.constexpr, Q: tl.constexpr, PATCHES: tl.constexpr, CHANNELS: tl.constexpr,
    ):  # fmt: skip
        """Compute the gradient of the tokens from that of the changes."""
        clip, frame = tl.program_id(0).to(tl.int64) // frames, tl.program_id(0) % frames
        channel = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
        patch = tl.program_id(2) * PATCHES + tl.arange(0, PATCHES)
        first, last = frame > 0, frame < frames - 1  # is there a change before this frame, and one after it?
        if MASKED:
            gaps += clip * (frames - 1) + frame
            first = first & (tl.load(gaps - 1, mask=first, other=0) != 0)
            last = last & (tl.load(gaps, mask=last, other=0) != 0)
        there = (channel < width)[:, None] & (patch < Q)[None, :]
        at = of_changes + (clip * (frames + 1) + frame) * Q
        at += channel.to(tl.int64)[:, None] * (clips * (frames + 1) * Q) + patch[None, :]
        of_token = tl.load(at, mask=there & first, other=0.0).to(tl.float32)
        of_token -= tl.load(at + Q, mask=there & last, other=0.0).to(tl.float32)
        into = clip * per_clip + _frame_start(frame, frames_a_sequence, per_sequence, patches, width)
        into += patch[:, None] * width + channel[None, :]
        there = (patch < patches)[:, None] & (channel < width)[None, :]
        tl.store(of_tokens + into, tl.trans(of_token).to(of_tokens.dtype.element_ty), mask=there)

    @triton.jit
    def _tap(to, of, patches, grid):
        """Return the tap, 0 to 8, by which the feature at patch `of` sees the change at `to`; 9 if it does not."""
        dy, dx = to // grid - of // grid + 1, to % grid - of % grid + 1
        near = (dy >= 0) & (dy < 3) & (dx >= 0) & (dx < 3) & (to < patches) & (of < patches) & (to >= 0) & (of >= 0)
        return tl.where(near, 3 * dy + dx, 9)

    @triton.jit
    def _matrix(taps, seen, out, patches, grid, BACK: tl.constexpr):
        """Return one tap in time as a matrix from the patches seen to the patches written."""
        if BACK:
            which = _tap(out[None, :], seen[:, None], patches, grid)
        else:
            which = _tap(seen[:, None], out[None, :], patches, grid)
        return tl.load(taps + which, mask=which < 9, other=0.0)

    @triton.jit
    def _frames(source, row, seen, rows, AWAY: tl.constexpr, Q: tl.constexpr):
        """Load patches of a channel from the rows AWAY rows later; zeros where there are none."""
        real = row + AWAY < rows
        if AWAY < 0:
            real = real & (row + AWAY >= 0)
        at = source + AWAY * Q + row.to(tl.int64)[:, None] * Q + seen[None, :]  # the same row offsets for each AWAY
        return tl.load(at, mask=real[:, None] & ((seen >= 0) & (seen < Q))[None, :], other=0.0)

    @triton.jit
    def _products(
        done, source, row, seen, rows, first, second, third, BACK: tl.constexpr, TAPS: tl.constexpr, Q: tl.constexpr
    ):
        """Add the products of all taps in time with some patches."""
        # A feature sees its own row and later ones; a change is seen from its own row and earlier ones.
        NEXT: tl.constexpr = -1 if BACK else 1
        done = tl.dot(_frames(source, row, seen, rows, 0, Q), first, done, input_precision="tf32x3")
        done = tl.dot(_frames(source, row, seen, rows, NEXT, Q), second, done, input_precision="tf32x3")
        if TAPS == 3:
            done = tl.dot(_frames(source, row, seen, rows, 2 * NEXT, Q), third, done, input_precision="tf32x3")
        return done

    @triton.jit
    def _convolve(
        source, taps, result, rows, per_clip, places, patches, grid,
        BACK: tl.constexpr, TAPS: tl.constexpr, ROWS: tl.constexpr,
        Q: tl.constexpr, CHUNK: tl.constexpr, HALO: tl.constexpr,
    ):  # fmt: skip
        """Compute the features from the changes; with BACK, the gradient of the changes from that of the features."""
        channel = tl.program_id(0).to(tl.int64)
        out = tl.program_id(2) * CHUNK + tl.arange(0, CHUNK)
        seen = out - HALO
        source += channel * rows * Q
        result += channel * rows * Q
        taps += channel * (TAPS * 9)
        first = _matrix(taps, seen, out, patches, grid, BACK)
        second = _matrix(taps + 9, seen, out, patches, grid, BACK)
        third = second
        if TAPS == 3:
            third = _matrix(taps + 18, seen, out, patches, grid, BACK)
        if HALO > 0:  # the other patches that the chunk's patches see
            more = tl.program_id(2) * CHUNK + CHUNK - HALO + tl.arange(0, 2 * HALO)
            more_first = _matrix(taps, more, out, patches, grid, BACK)
            more_second = _matrix(taps + 9, more, out, patches, grid, BACK)
            more_third = more_second
            if TAPS == 3:
                more_third = _matrix(taps + 18, more, out, patches, grid, BACK)
        for begin in range(tl.program_id(1) * ROWS, rows, tl.num_programs(1) * ROWS):
            row = begin + tl.arange(0, ROWS)
            at = row.to(tl.int64)[:, None] * Q + out[None, :]
            inside = (row < rows)[:, None] & (out < Q)[None, :]
            done = tl.zeros((ROWS, CHUNK), tl.float32)
            done = _products(done, source, row, seen, rows, first, second, third, BACK, TAPS, Q)
            if HALO > 0:
                done = _products(done, source, row, more, rows, more_first, more_second, more_third, BACK, TAPS, Q)
            if not BACK:
                done = tl.where((row % per_clip < places)[:, None], done, 0.0)
            tl.store(result + at, done.to(result.dtype.element_ty), mask=inside)

    @triton.jit
    def _sum_squares(features, partial_energy, size, width, GROUP: tl.constexpr, VALUES: tl.constexpr):
        value = tl.program_id(0) * VALUES + tl.arange(0, VALUES)
        group = tl.program_id(1)
        energy = tl.zeros((VALUES,), tl.float32)
        for channel in range(group * GROUP, min(group * GROUP + GROUP, width)):
            at = features + tl.cast(channel, tl.int64) * size + value
            feature = tl.load(at, mask=value < size, other=0.0).to(tl.float32)
            energy += feature * feature
        at = partial_energy + tl.cast(group, tl.int64) * size + value
        tl.store(at, energy / width, mask=value < size)

    @triton.jit
    def _scale(
        features, of_energy, of_features, size, per_clip, places, patches, width,
        Q: tl.constexpr, GROUP: tl.constexpr, VALUES: tl.constexpr,
    ):  # fmt: skip
        value = tl.program_id(0) * VALUES + tl.arange(0, VALUES)
        group = tl.program_id(1)
        row, patch = value // Q, value % Q
        clip, place = row // per_clip, row % per_clip
        inside = (value < size) & (place < places) & (patch < patches)
        factor = tl.load(of_energy + (clip * places + place) * patches + patch, mask=inside, other=0.0) * (2.0 / width)
        for channel in range(group * GROUP, min(group * GROUP + GROUP, width)):
            at = tl.cast(channel, tl.int64) * size + value
            feature = tl.load(features + at, mask=value < size, other=0.0).to(tl.float32)
            tl.store(of_features + at, (feature * factor).to(of_features.dtype.element_ty), mask=value < size)

    @triton.jit
    def _store_taps(into, products, which):
        """Sum the products that belong to each tap in space."""
        for tap in tl.static_range(9):
            tl.store(into + tap, tl.sum(tl.sum(tl.where(which == tap, products, 0.0), axis=1), axis=0))

    @triton.jit
    def _sum_taps(
        changes, of_features, partial_taps, rows, patches, grid, width,
        TAPS: tl.constexpr, ROWS: tl.constexpr, Q: tl.constexpr,
        CHUNK: tl.constexpr, FIRST: tl.constexpr, SEEN: tl.constexpr,
    ):  # fmt: skip
        """Compute the gradient of a channel's kernel from the changes and the gradient of the features: of the features
        of one chunk, and the SEEN patches from FIRST on that they see."""
        part, channel, chunk = tl.program_id(0), tl.program_id(1), tl.program_id(2)
        of = chunk * CHUNK + tl.arange(0, CHUNK)
        to = chunk * CHUNK + FIRST + tl.arange(0, SEEN)
        changes += tl.cast(channel, tl.int64) * rows * Q
        of_features += tl.cast(channel, tl.int64) * rows * Q
        first = tl.zeros((SEEN, CHUNK), tl.float32)
        second = tl.zeros((SEEN, CHUNK), tl.float32)
        third = tl.zeros((SEEN, CHUNK), tl.float32)
        for begin in range(part * ROWS, rows, tl.num_programs(0) * ROWS):
            row = begin + tl.arange(0, ROWS)
            change = tl.trans(_frames(changes, row, to, rows, 0, Q))
            first = tl.dot(change, _frames(of_features, row, of, rows, 0, Q), first, input_precision="tf32x3")
            second = tl.dot(change, _frames(of_features, row, of, rows, -1, Q), second, input_precision="tf32x3")
            if TAPS == 3:
                third = tl.dot(change, _frames(of_features, row, of, rows, -2, Q), third, input_precision="tf32x3")
        which = _tap(to[:, None], of[None, :], patches, grid)
        into = partial_taps + ((part * tl.num_programs(2) + chunk) * width + channel) * (TAPS * 9)
        _store_taps(into, first, which)
        _store_taps(into + 9, second, which)
        if TAPS == 3:
            _store_taps(into + 18, third, which)


@torch.library.custom_op("stop::frame_changes", mutates_args=())
def frame_changes(tokens: Tensor, gap_mask: Tensor | None, frames: int) -> Tensor:
    """Return the changes `[D,B,T+1,Q]` of sequences `[B,C,L,D]` of T frames; differentiable once.

    Changes in gaps that bool `[B,T-1]` marks false are zero.
    """
    batch, count, length, width = tokens.shape
    tokens, patches = tokens.contiguous(), _patches(count, length, frames)
    changes = tokens.new_empty(width, batch, frames + 1, padded(patches))
    size, chunks, _ = _chunks(patches, tokens)
    with torch.cuda.device_of(tokens):
        _subtract[(batch * (frames + 1), triton.cdiv(width, CHUNK), chunks)](
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
    width, batch, per_clip, _ = of_changes.shape
    frames = per_clip - 1
    patches = _patches(count, length, frames)
    of_tokens = of_changes.new_empty(batch, count, length, width)
    of_tokens[:, :, 0].zero_()
    size, chunks, _ = _chunks(patches, of_changes)
    with torch.cuda.device_of(of_changes):
        _subtract_back[(batch * frames, triton.cdiv(width, CHUNK), chunks)](
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
    width, batch, per_clip, q = changes.shape
    places, size = per_clip + 1 - kernel.shape[2], batch * per_clip * q
    features = _convolved(changes, kernel, patches)
    partial_energy = changes.new_empty(triton.cdiv(width, GROUP), batch, per_clip, q, dtype=torch.float32)
    with torch.cuda.device_of(changes):
        _sum_squares[(triton.cdiv(size, VALUES), len(partial_energy))](
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
    features, changes = features.contiguous(), changes.contiguous()
    width, batch, per_clip, q = changes.shape
    rows, taps, (_, places, patches) = batch * per_clip, kernel.shape[2], of_energy.shape
    of_features = torch.empty_like(features)
    size, chunks, halo = _chunks(patches, changes)
    windows = [(-halo, size), (size - halo, 2 * halo)] if halo else [(0, size)]  # together all patches that it sees
    partial_taps = features.new_empty(len(windows), PARTS * chunks, width, taps, SPACE, dtype=torch.float32)
    with torch.cuda.device_of(changes):
        _scale[(triton.cdiv(rows * q, VALUES), triton.cdiv(width, GROUP))](
            features, of_energy.contiguous(), of_features, rows * q, per_clip, places, patches, width,
            Q=q, GROUP=GROUP, VALUES=VALUES,
        )  # fmt: skip
        for (first, seen), of_window in zip(windows, partial_taps, strict=True):
            _sum_taps[(PARTS, width, chunks)](
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
    source, kernel = source.contiguous(), kernel.to(source.dtype).contiguous()
    width, batch, per_clip, q = source.shape
    rows, taps = batch * per_clip, kernel.shape[2]
    size, chunks, halo = _chunks(patches, source)
    result = torch.empty_like(source)
    with torch.cuda.device_of(source):
        _convolve[(width, PARTS, chunks)](
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
    size = min(most, max(LEAST, triton.next_power_of_2(patches)))
    count = triton.cdiv(patches, size)
    halo = max(LEAST, triton.next_power_of_2(math.isqrt(patches) + 1))
    return size, count, halo if count > 1 else 0


def _rows_of_a_tile(rows: int) -> int:
    return min(ROWS, max(LEAST, triton.next_power_of_2(rows)))


def _stages(x: Tensor, halo: int) -> int:
    """Return how many tiles ahead a kernel loads. Shared memory sets the limit: many GPUs have 100 kB."""
    if x.element_size() > 2 or not x.is_cuda:
        return 1
    return (3 if torch.cuda.get_device_capability(x.device) in LARGE else 2) - (halo > 0)
