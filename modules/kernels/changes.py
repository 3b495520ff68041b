"""The dynamics nets on a GPU: depth-wise convolutions of what frames differ by, their energy, and the way back.

What `modules.stop.frame_changes` needs of N_s and N_t, and `modules.stop.changes` does by torch's operators. torch's
and cuDNN's
depth-wise 3-D convolutions take most of a training step of STOP on a GPU, and kernels that multiply and add tap by tap
a fifth (docs/performance.md). Here tensor cores do it: for one channel, one tap in time is a matrix between the patches
of a frame and those of another, zero but for neighbours (a Toeplitz matrix of 3x3 taps), so that a channel of many
frames is a product of two tiles. For a grid of 7 that takes seven times the operations, and less time. Of fp32 each
product is three of tf32, which together are nearly as exact (`tf32x3`).

For it the changes lie channel by channel, `[D,B,T+1,Q]`: a frame's patches side by side, filled up with zeros from P to
Q, a multiple of eight values, which is how much is loaded at once. To turn the tokens costs nothing beyond the pass
over memory in which differences are taken anyhow.

Shapes: B clips, T frames, P = G*G patches, D width, K taps in time (2 or 3), N = T+2-K places of features, R = B*(T+1)
frames' changes one after another. Features lie as changes do; the feature at place i of a clip sees its changes i to
i+K-1. A chunk is as many patches as a tile holds; where a frame has several, a tap leads from a chunk to itself or to
those beside it.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from modules.kernels import HAS_TRITON

if HAS_TRITON:
    import triton
    import triton.language as tl

SPACE = 9  # taps of a kernel in space, 3 by 3
CHUNK = 64  # patches, or channels, of a tile, at most; of patches half as many in fp32
LEAST = 16  # of what tensor cores take along any axis
VALUES = 2048  # that a program takes where each stands for itself
GROUP = 16  # channels that a program takes one after another
ROWS = 64  # frames' changes of a tile, at most
LARGE = ((9, 0), (10, 0), (10, 3))  # compute capabilities of GPUs with 228 kB of shared memory
PARTS = 1  # programs that share the frames of a channel


if HAS_TRITON:

    @triton.jit
    def _frame_start(frame, frames_a_sequence, per_sequence, patches, width):
        """Where a frame's first patch lies in its clip; each sequence begins with a class token."""
        return (frame // frames_a_sequence) * per_sequence + (1 + frame % frames_a_sequence * patches) * width

    @triton.jit
    def _take_changes(
        tokens, gaps, changes, clips, frames, frames_a_sequence, per_clip, per_sequence, patches, width,
        MASKED: tl.constexpr, Q: tl.constexpr, PATCHES: tl.constexpr, CHANNELS: tl.constexpr,
    ):  # fmt: skip
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
    def _take_changes_back(
        of_changes, gaps, others, of_tokens, clips, frames, frames_a_sequence, per_clip, per_sequence, patches, width,
        MASKED: tl.constexpr, ADDED: tl.constexpr, Q: tl.constexpr, PATCHES: tl.constexpr, CHANNELS: tl.constexpr,
    ):  # fmt: skip
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
        of_token = tl.trans(of_token)
        if ADDED:
            of_token += tl.load(others + into, mask=there, other=0.0).to(tl.float32)
        tl.store(of_tokens + into, of_token.to(of_tokens.dtype.element_ty), mask=there)

    @triton.jit
    def _tap(to, of, patches, grid):
        """Which tap of nine the feature at patch `of` has for the change at patch `to`; nine, if none."""
        dy, dx = to // grid - of // grid + 1, to % grid - of % grid + 1
        near = (dy >= 0) & (dy < 3) & (dx >= 0) & (dx < 3) & (to < patches) & (of < patches) & (to >= 0) & (of >= 0)
        return tl.where(near, 3 * dy + dx, 9)

    @triton.jit
    def _matrix(taps, seen, out, patches, grid, BACK: tl.constexpr):
        """A tap in time as a matrix from the patches seen to those given out."""
        if BACK:
            which = _tap(out[None, :], seen[:, None], patches, grid)
        else:
            which = _tap(seen[:, None], out[None, :], patches, grid)
        return tl.load(taps + which, mask=which < 9, other=0.0)

    @triton.jit
    def _frames(source, row, seen, rows, AWAY: tl.constexpr, Q: tl.constexpr):
        """The patches seen of the rows of a channel that lie so many away from some, zero where there are none."""
        real = row + AWAY < rows
        if AWAY < 0:
            real = real & (row + AWAY >= 0)
        at = source + AWAY * Q + row.to(tl.int64)[:, None] * Q + seen[None, :]  # rows' places are the same for all
        return tl.load(at, mask=real[:, None] & ((seen >= 0) & (seen < Q))[None, :], other=0.0)

    @triton.jit
    def _products(
        done, source, row, seen, rows, first, second, third, BACK: tl.constexpr, TAPS: tl.constexpr, Q: tl.constexpr
    ):
        """Add what the taps in time give of some patches."""
        # A feature sees the rows from its own on; what has seen a change lies in its own row and in those before.
        NEXT: tl.constexpr = -1 if BACK else 1
        done = tl.dot(_frames(source, row, seen, rows, 0, Q), first, done, input_precision="tf32x3")
        done = tl.dot(_frames(source, row, seen, rows, NEXT, Q), second, done, input_precision="tf32x3")
        if TAPS == 3:
            done = tl.dot(_frames(source, row, seen, rows, 2 * NEXT, Q), third, done, input_precision="tf32x3")
        return done

    @triton.jit
    def _convolve(
        source, taps, others, result, rows, per_clip, places, patches, grid,
        BACK: tl.constexpr, ADDED: tl.constexpr, TAPS: tl.constexpr, ROWS: tl.constexpr,
        Q: tl.constexpr, CHUNK: tl.constexpr, HALO: tl.constexpr,
    ):  # fmt: skip
        """Changes -> features; or, with BACK, the gradient of features -> that of changes, added to others'."""
        channel = tl.program_id(0).to(tl.int64)
        out = tl.program_id(2) * CHUNK + tl.arange(0, CHUNK)
        seen = out - HALO
        source += channel * rows * Q
        others += channel * rows * Q
        result += channel * rows * Q
        taps += channel * (TAPS * 9)
        first = _matrix(taps, seen, out, patches, grid, BACK)
        second = _matrix(taps + 9, seen, out, patches, grid, BACK)
        third = second
        if TAPS == 3:
            third = _matrix(taps + 18, seen, out, patches, grid, BACK)
        if HALO > 0:  # the rest of what the chunk's patches see
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
            added = tl.zeros((ROWS, CHUNK), result.dtype.element_ty)
            if ADDED:
                added = tl.load(others + at, mask=inside, other=0.0)  # here, as it takes a while to come
            done = tl.zeros((ROWS, CHUNK), tl.float32)
            done = _products(done, source, row, seen, rows, first, second, third, BACK, TAPS, Q)
            if HALO > 0:
                done = _products(done, source, row, more, rows, more_first, more_second, more_third, BACK, TAPS, Q)
            if ADDED:
                done += added.to(tl.float32)
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
        """Sum a tap's products over all patches that have it."""
        for tap in tl.static_range(9):
            tl.store(into + tap, tl.sum(tl.sum(tl.where(which == tap, products, 0.0), axis=1), axis=0))

    @triton.jit
    def _sum_taps(
        changes, of_features, partial_taps, rows, patches, grid, width,
        TAPS: tl.constexpr, ROWS: tl.constexpr, Q: tl.constexpr,
        CHUNK: tl.constexpr, FIRST: tl.constexpr, SEEN: tl.constexpr,
    ):  # fmt: skip
        """Changes and the gradient of features -> the gradient of a channel's kernel, from the features of a chunk and
        the patches that they see from the FIRST on."""
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


def padded(patches: int) -> int:
    """Q for P."""
    return -(-patches // 8) * 8


def _chunks(patches: int, x: Tensor) -> tuple[int, int, int]:
    """Patches of a chunk, chunks of a frame, and of how many patches before and behind it a chunk sees any."""
    most = CHUNK if x.element_size() == 2 else CHUNK // 2
    size = min(most, max(LEAST, triton.next_power_of_2(patches)))
    count = triton.cdiv(patches, size)
    halo = max(LEAST, triton.next_power_of_2(math.isqrt(patches) + 1))
    return size, count, halo if count > 1 else 0


def _rows_of_a_tile(rows: int) -> int:
    return min(ROWS, max(LEAST, triton.next_power_of_2(rows)))


def _stages(x: Tensor, halo: int) -> int:
    """How many tiles ahead a kernel loads, as many as shared memory holds: on many GPUs it has 100 kB."""
    if x.element_size() > 2 or not x.is_cuda:
        return 1
    return (3 if torch.cuda.get_device_capability(x.device) in LARGE else 2) - (halo > 0)


@torch.library.custom_op("stop::take_changes", mutates_args=())
def take_changes(tokens: Tensor, gap_mask: Tensor | None, frames: int) -> Tensor:
    """The changes `[D,B,T+1,Q]` of sequences `[B,C,L,D]` of T frames; those of gaps that bool `[B,T-1]` leaves out are
    zero. Without gradient."""
    batch, count, length, width = tokens.shape
    tokens, patches = tokens.contiguous(), (length - 1) * count // frames
    changes = tokens.new_empty(width, batch, frames + 1, padded(patches))
    size, chunks, _ = _chunks(patches, tokens)
    with torch.cuda.device_of(tokens):
        _take_changes[(batch * (frames + 1), triton.cdiv(width, CHUNK), chunks)](
            tokens, tokens if gap_mask is None else gap_mask.contiguous(), changes,
            batch, frames, frames // count, tokens.stride(0), tokens.stride(1), patches, width,
            MASKED=gap_mask is not None, Q=padded(patches), PATCHES=size, CHANNELS=CHUNK,
        )  # fmt: skip
    return changes


@take_changes.register_fake
def _(tokens: Tensor, gap_mask: Tensor | None, frames: int) -> Tensor:
    batch, count, length, width = tokens.shape
    return tokens.new_empty(width, batch, frames + 1, padded((length - 1) * count // frames))


@torch.library.custom_op(
    "stop::take_changes_backward",
    mutates_args=(),
    schema="(Tensor of_changes, Tensor? gap_mask, int[] shape, Tensor? others) -> Tensor",
)
def take_changes_backward(
    of_changes: Tensor, gap_mask: Tensor | None, shape: list[int], others: Tensor | None
) -> Tensor:
    """From the gradient of the changes that of the sequences of this shape, added to others, which have it too."""
    batch, count, length, width = shape
    frames = of_changes.shape[2] - 1
    of_tokens = of_changes.new_empty(shape)
    if others is None:
        of_tokens[:, :, 0].zero_()
    else:
        others = others.contiguous()
        of_tokens[:, :, 0] = others[:, :, 0]
    patches = (length - 1) * count // frames
    size, chunks, _ = _chunks(patches, of_changes)
    with torch.cuda.device_of(of_changes):
        _take_changes_back[(batch * frames, triton.cdiv(width, CHUNK), chunks)](
            of_changes.contiguous(), of_changes if gap_mask is None else gap_mask.contiguous(),
            of_tokens if others is None else others, of_tokens,
            batch, frames, frames // count, of_tokens.stride(0), of_tokens.stride(1), patches, width,
            MASKED=gap_mask is not None, ADDED=others is not None, Q=padded(patches), PATCHES=size, CHANNELS=CHUNK,
        )  # fmt: skip
    return of_tokens


@take_changes_backward.register_fake
def _(of_changes: Tensor, gap_mask: Tensor | None, shape: list[int], others: Tensor | None) -> Tensor:
    return of_changes.new_empty(shape)


def linear_of_changes(changes: Tensor, weight: Tensor, patches: int) -> Tensor:
    """A Linear without bias, `[c,D]`, of changes `[D,B,T+1,Q]`: `[B,T+1,P,c]`."""
    return (changes.flatten(1).t() @ weight.t()).unflatten(0, changes.shape[1:])[:, :, :patches]


def linear_of_changes_backward(
    gradient: Tensor, changes: Tensor, weight: Tensor, wanted: bool
) -> tuple[Tensor | None, Tensor]:
    """Of the changes, if wanted, and of the weight."""
    flat = F.pad(gradient, (0, 0, 0, changes.shape[3] - gradient.shape[2])).flatten(0, 2)
    of_weight = (changes.flatten(1) @ flat).t()
    return (weight.t() @ flat.t()).view_as(changes) if wanted else None, of_weight


@torch.library.custom_op(
    "stop::change_energy", mutates_args=(), schema="(Tensor changes, Tensor kernel, int patches) -> Tensor[]"
)
def change_energy(changes: Tensor, kernel: Tensor, patches: int) -> list[Tensor]:
    """Convolve changes `[D,B,T+1,Q]` with depth-wise kernels `[D,1,K,3,3]`.

    Returns:
        The energy fp32 `[B,N,P]`, the mean square over channels of the features; and these, like the changes, zero
        behind the N places.
    """
    width, batch, per_clip, q = changes.shape
    places, size = per_clip + 1 - kernel.shape[2], batch * per_clip * q
    features = _convolved(changes, kernel, None, patches)
    partial_energy = changes.new_empty(triton.cdiv(width, GROUP), batch, per_clip, q, dtype=torch.float32)
    with torch.cuda.device_of(changes):
        _sum_squares[(triton.cdiv(size, VALUES), len(partial_energy))](
            features, partial_energy, size, width, GROUP=GROUP, VALUES=VALUES
        )
    return [partial_energy[:, :, :places, :patches].sum(dim=0), features]


@change_energy.register_fake
def _(changes: Tensor, kernel: Tensor, patches: int) -> list[Tensor]:
    _, batch, per_clip, _ = changes.shape
    energy = changes.new_empty(batch, per_clip + 1 - kernel.shape[2], patches, dtype=torch.float32)
    return [energy, torch.empty_like(changes)]


def _convolved(source: Tensor, kernel: Tensor, others: Tensor | None, patches: int, *, back: bool = False) -> Tensor:
    source, others = source.contiguous(), None if others is None else others.contiguous()
    width, batch, per_clip, q = source.shape
    rows, taps = batch * per_clip, kernel.shape[2]
    size, chunks, halo = _chunks(patches, source)
    result = torch.empty_like(source)
    with torch.cuda.device_of(source):
        _convolve[(width, PARTS, chunks)](
            source, kernel.contiguous(), source if others is None else others, result,
            rows, per_clip, per_clip + 1 - taps, patches, math.isqrt(patches),
            BACK=back, ADDED=others is not None, TAPS=taps, ROWS=_rows_of_a_tile(rows), Q=q, CHUNK=size, HALO=halo,
            num_warps=4, num_stages=_stages(source, halo),
        )  # fmt: skip
    return result


@torch.library.custom_op(
    "stop::change_energy_backward",
    mutates_args=(),
    schema="(Tensor of_energy, Tensor features, Tensor changes, Tensor kernel, bool wanted, Tensor? others)"
    " -> Tensor[]",
)
def change_energy_backward(
    of_energy: Tensor, features: Tensor, changes: Tensor, kernel: Tensor, wanted: bool, others: Tensor | None
) -> list[Tensor]:
    """From the gradient of the energy, fp32 `[B,N,P]`, that of the kernels, fp32 `[D,1,K,3,3]`, and that of the
    changes, `[D,B,T+1,Q]` like them and added to others, which have it too, or an empty one if it is not wanted."""
    features, changes = features.contiguous(), changes.contiguous()
    width, batch, per_clip, q = changes.shape
    rows, taps, (_, places, patches) = batch * per_clip, kernel.shape[2], of_energy.shape
    of_features = torch.empty_like(features)
    size, chunks, halo = _chunks(patches, changes)
    windows = [(-halo, size), (size - halo, 2 * halo)] if halo else [(0, size)]  # which together are all it sees
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
    if not wanted:
        return [of_kernel, changes.new_empty(0)]
    return [of_kernel, _convolved(of_features, kernel, others, patches, back=True)]


@change_energy_backward.register_fake
def _(
    of_energy: Tensor, features: Tensor, changes: Tensor, kernel: Tensor, wanted: bool, others: Tensor | None
) -> list[Tensor]:
    of_kernel = kernel.new_empty(kernel.shape, dtype=torch.float32)
    return [of_kernel, changes.new_empty(changes.shape if wanted else 0)]
