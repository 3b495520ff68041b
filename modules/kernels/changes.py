"""The dynamics nets on a GPU: depth-wise convolutions of what frames differ by, their energy, and the way back.

What `modules.dynamics.look` needs of N_s and N_t. torch's and cuDNN's depth-wise 3-D convolutions take most of a
training step of STOP on a GPU (docs/performance.md). Here one program takes some patches and channels of a clip through
all frames, and keeps in registers what later frames still add to.

Shapes: B clips, T frames, P = G*G patches, D width, K taps in time (2 or 3), N = T+2-K places of features; changes
`[B,T+1,P,D]` are those of `look`, the first and the last of a clip zero.
"""

import math

import torch
from torch import Tensor

from modules.kernels import HAS_TRITON

if HAS_TRITON:
    import triton
    import triton.language as tl

SPACE = 9  # taps of a kernel in space, 3 by 3
TILE = {2: 4096, 3: 2048}  # of a tile, by taps in time: as many as four warps have registers for
BLOCK = 2048  # values that a program takes where each stands for itself
PARTS = 32  # of a batch, whose clips one program after another adds to the gradient of the kernels


if HAS_TRITON:

    @triton.jit
    def _frame_start(frame, frames_a_sequence, per_sequence, patches, width):
        """Where a frame's first patch lies in its clip; each sequence begins with a class token."""
        return (frame // frames_a_sequence) * per_sequence + (1 + frame % frames_a_sequence * patches) * width

    @triton.jit
    def _take_changes(
        tokens, gaps, changes, frames, frames_a_sequence, per_clip, per_sequence, patches, width,
        MASKED: tl.constexpr, VALUES: tl.constexpr,
    ):  # fmt: skip
        clip, j = tl.program_id(0).to(tl.int64) // (frames + 1), tl.program_id(0) % (frames + 1)
        value = tl.program_id(1) * VALUES + tl.arange(0, VALUES)
        size = patches * width
        real = (value < size) & (j > 0) & (j < frames)
        tokens += clip * per_clip + value
        change = tl.load(
            tokens + _frame_start(j, frames_a_sequence, per_sequence, patches, width), mask=real, other=0.0
        )
        before = tl.load(
            tokens + _frame_start(j - 1, frames_a_sequence, per_sequence, patches, width), mask=real, other=0.0
        )
        change = change.to(tl.float32) - before.to(tl.float32)
        if MASKED:
            gap = tl.load(gaps + clip * (frames - 1) + j - 1, mask=(j > 0) & (j < frames), other=0)
            change = tl.where(gap != 0, change, 0.0)
        into = changes + (clip * (frames + 1) + j) * size + value
        tl.store(into, change.to(changes.dtype.element_ty), mask=value < size)

    @triton.jit
    def _take_changes_back(
        of_changes, gaps, of_tokens, frames, frames_a_sequence, per_clip, per_sequence, patches, width,
        MASKED: tl.constexpr, VALUES: tl.constexpr,
    ):  # fmt: skip
        clip, frame = tl.program_id(0).to(tl.int64) // frames, tl.program_id(0) % frames
        value = tl.program_id(1) * VALUES + tl.arange(0, VALUES)
        size = patches * width
        first, last = frame > 0, frame < frames - 1  # is there a change before this frame, and one after it?
        if MASKED:
            gaps += clip * (frames - 1) + frame
            first = first & (tl.load(gaps - 1, mask=first, other=0) != 0)
            last = last & (tl.load(gaps, mask=last, other=0) != 0)
        at = of_changes + (clip * (frames + 1) + frame) * size + value
        of_token = tl.load(at, mask=(value < size) & first, other=0.0).to(tl.float32)
        of_token -= tl.load(at + size, mask=(value < size) & last, other=0.0).to(tl.float32)
        into = (
            of_tokens + clip * per_clip + _frame_start(frame, frames_a_sequence, per_sequence, patches, width) + value
        )
        tl.store(into, of_token.to(of_tokens.dtype.element_ty), mask=value < size)

    @triton.jit
    def _forward(
        changes, taps, partial_energy, features, last, patches, grid, width, places,
        TAPS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
    ):  # fmt: skip
        clip, block = tl.program_id(0).to(tl.int64), tl.program_id(1)
        row = tl.program_id(2) * ROWS + tl.arange(0, ROWS)
        column = block * COLUMNS + tl.arange(0, COLUMNS)
        y, x = row // grid, row % grid
        real_row, real_column = row < patches, column < width
        at = row[:, None] * width + column[None, :]
        frame = patches * width
        changes += clip * (last + 1) * frame
        features += clip * places * frame
        partial_energy += (block * tl.num_programs(0) + clip) * places * patches
        coming = tl.zeros((ROWS, COLUMNS), tl.float32)  # features at the place that is done with the next change
        coming_later = tl.zeros((ROWS, COLUMNS), tl.float32)  # with three taps, at the place after it
        for j in range(1, last + 1):
            first = tl.zeros((ROWS, COLUMNS), tl.float32)
            second = tl.zeros((ROWS, COLUMNS), tl.float32)
            third = tl.zeros((ROWS, COLUMNS), tl.float32)
            if j < last:
                for tap in tl.static_range(9):
                    dy, dx = tap // 3 - 1, tap % 3 - 1
                    seen = real_row & (y + dy >= 0) & (y + dy < grid) & (x + dx >= 0) & (x + dx < grid)
                    there = changes + j * frame + (dy * grid + dx) * width + at
                    change = tl.load(there, mask=seen[:, None] & real_column[None, :], other=0.0).to(tl.float32)
                    weight = taps + tap * width + column
                    first += change * tl.load(weight, mask=real_column, other=0.0)[None, :]
                    second += change * tl.load(weight + 9 * width, mask=real_column, other=0.0)[None, :]
                    if TAPS == 3:
                        third += change * tl.load(weight + 18 * width, mask=real_column, other=0.0)[None, :]
            if TAPS == 3:
                done = coming + third
                coming = coming_later + second
                coming_later = first
            else:
                done = coming + second
                coming = first
            place = j + 1 - TAPS
            if place >= 0:
                tl.store(partial_energy + place * patches + row, tl.sum(done * done, axis=1), mask=real_row)
                tl.store(
                    features + place * frame + at,
                    done.to(features.dtype.element_ty),
                    mask=real_row[:, None] & real_column[None, :],
                )

    @triton.jit
    def _line_back(
        features, of_energy, taps, x, seen_line, real_column, grid, width, before, here, after, first, second, third,
        a0, a1, a2, b0, b1, b2, c0, c1, c2, TAPS: tl.constexpr, WANTED: tl.constexpr,
    ):  # fmt: skip
        """What one place's features, moved by a line, give three changes, `first` to `third`, and get from them for
        three taps in space: a of the first tap in time, b of the second, c of the third."""
        for step in tl.static_range(3):
            dx = 1 - step
            seen = seen_line & (x + dx >= 0) & (x + dx < grid)
            gradient = tl.load(of_energy + dx, mask=seen, other=0.0) * (2.0 / width)
            feature = tl.load(features + dx * width, mask=seen[:, None] & real_column[None, :], other=0.0)
            feature = feature.to(tl.float32) * gradient[:, None]
            if WANTED:
                weight = taps + step * width
                first += feature * tl.load(weight, mask=real_column, other=0.0)[None, :]
                second += feature * tl.load(weight + 9 * width, mask=real_column, other=0.0)[None, :]
                if TAPS == 3:
                    third += feature * tl.load(weight + 18 * width, mask=real_column, other=0.0)[None, :]
            if step == 0:
                a0 += feature * before
                b0 += feature * here
                if TAPS == 3:
                    c0 += feature * after
            elif step == 1:
                a1 += feature * before
                b1 += feature * here
                if TAPS == 3:
                    c1 += feature * after
            else:
                a2 += feature * before
                b2 += feature * here
                if TAPS == 3:
                    c2 += feature * after
        return first, second, third, a0, a1, a2, b0, b1, b2, c0, c1, c2

    @triton.jit
    def _store_line(into, width, real_column, a0, a1, a2, b0, b1, b2, c0, c1, c2, TAPS: tl.constexpr):
        tl.store(into, tl.sum(a0, axis=0), mask=real_column)
        tl.store(into + width, tl.sum(a1, axis=0), mask=real_column)
        tl.store(into + 2 * width, tl.sum(a2, axis=0), mask=real_column)
        tl.store(into + 9 * width, tl.sum(b0, axis=0), mask=real_column)
        tl.store(into + 10 * width, tl.sum(b1, axis=0), mask=real_column)
        tl.store(into + 11 * width, tl.sum(b2, axis=0), mask=real_column)
        if TAPS == 3:
            tl.store(into + 18 * width, tl.sum(c0, axis=0), mask=real_column)
            tl.store(into + 19 * width, tl.sum(c1, axis=0), mask=real_column)
            tl.store(into + 20 * width, tl.sum(c2, axis=0), mask=real_column)

    @triton.jit
    def _backward(
        of_energy, features, changes, taps, of_changes, partial_taps,
        clips, clips_a_program, last, patches, grid, width, places,
        TAPS: tl.constexpr, WANTED: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
    ):  # fmt: skip
        part, block = tl.program_id(0).to(tl.int64), tl.program_id(1)
        row = tl.program_id(2) * ROWS + tl.arange(0, ROWS)
        column = block * COLUMNS + tl.arange(0, COLUMNS)
        y, x = row // grid, row % grid
        real_row, real_column = row < patches, column < width
        here = real_row[:, None] & real_column[None, :]
        above, below = real_row & (y > 0), real_row & (y < grid - 1)
        at = row[:, None] * width + column[None, :]
        frame = patches * width
        taps += column
        nothing = tl.zeros((ROWS, COLUMNS), tl.float32)
        # By line and tap of it in space, and by tap in time.
        a0, a1, a2, b0, b1, b2, c0, c1, c2 = (nothing,) * 9
        d0, d1, d2, e0, e1, e2, f0, f1, f2 = (nothing,) * 9
        g0, g1, g2, h0, h1, h2, i0, i1, i2 = (nothing,) * 9
        for clip in range(part * clips_a_program, min((part + 1) * clips_a_program, clips)):
            of_clip = of_changes + clip * (last + 1) * frame + at
            clip_changes = changes + clip * (last + 1) * frame + at
            change_before = nothing  # the first is zero
            change = tl.load(clip_changes + frame, mask=here, other=0.0).to(tl.float32)
            change_after = nothing
            coming = nothing  # what the next change has got so far
            coming_later = nothing  # with three taps, the one after it
            for place in range(places):
                if TAPS == 3:
                    change_after = tl.load(clip_changes + (place + 2) * frame, mask=here, other=0.0).to(tl.float32)
                first, second, third = nothing, nothing, nothing
                seen = features + (clip * places + place) * frame + at
                gradient = of_energy + (clip * places + place) * patches + row
                first, second, third, a0, a1, a2, b0, b1, b2, c0, c1, c2 = _line_back(
                    seen + grid * width, gradient + grid, taps, x, below, real_column, grid, width,
                    change_before, change, change_after, first, second, third,
                    a0, a1, a2, b0, b1, b2, c0, c1, c2, TAPS, WANTED,
                )  # fmt: skip
                first, second, third, d0, d1, d2, e0, e1, e2, f0, f1, f2 = _line_back(
                    seen, gradient, taps + 3 * width, x, real_row, real_column, grid, width,
                    change_before, change, change_after, first, second, third,
                    d0, d1, d2, e0, e1, e2, f0, f1, f2, TAPS, WANTED,
                )  # fmt: skip
                first, second, third, g0, g1, g2, h0, h1, h2, i0, i1, i2 = _line_back(
                    seen - grid * width, gradient - grid, taps + 6 * width, x, above, real_column, grid, width,
                    change_before, change, change_after, first, second, third,
                    g0, g1, g2, h0, h1, h2, i0, i1, i2, TAPS, WANTED,
                )  # fmt: skip
                change_before = change
                if TAPS == 3:
                    change = change_after
                else:
                    change = tl.load(clip_changes + (place + 2) * frame, mask=here & (place + 2 <= last), other=0.0)
                    change = change.to(tl.float32)
                if WANTED:
                    tl.store(of_clip + place * frame, (coming + first).to(of_changes.dtype.element_ty), mask=here)
                    if TAPS == 3:
                        coming = coming_later + second
                        coming_later = third
                    else:
                        coming = second
            if WANTED:
                tl.store(of_clip + places * frame, coming.to(of_changes.dtype.element_ty), mask=here)
                if TAPS == 3:
                    tl.store(of_clip + last * frame, coming_later.to(of_changes.dtype.element_ty), mask=here)
        into = partial_taps + (part * tl.num_programs(2) + tl.program_id(2)) * TAPS * 9 * width + column
        _store_line(into, width, real_column, a0, a1, a2, b0, b1, b2, c0, c1, c2, TAPS)
        _store_line(into + 3 * width, width, real_column, d0, d1, d2, e0, e1, e2, f0, f1, f2, TAPS)
        _store_line(into + 6 * width, width, real_column, g0, g1, g2, h0, h1, h2, i0, i1, i2, TAPS)


def take_changes(tokens: Tensor, gap_mask: Tensor | None, frames: int) -> Tensor:
    """The changes `[B,T+1,P,D]` of sequences `[B,C,L,D]` of T frames; those of gaps that bool `[B,T-1]` leaves out are
    zero. Without gradient."""
    batch, count, length, width = tokens.shape
    tokens, patches = tokens.contiguous(), (length - 1) * count // frames
    changes = tokens.new_empty(batch, frames + 1, patches, width)
    with torch.cuda.device_of(tokens):
        _take_changes[(batch * (frames + 1), triton.cdiv(patches * width, BLOCK))](
            tokens, tokens if gap_mask is None else gap_mask.contiguous(), changes,
            frames, frames // count, tokens.stride(0), tokens.stride(1), patches, width,
            MASKED=gap_mask is not None, VALUES=BLOCK,
        )  # fmt: skip
    return changes


def take_changes_backward(of_changes: Tensor, gap_mask: Tensor | None, shape: torch.Size) -> Tensor:
    """From the gradient of the changes that of the sequences of this shape, whose class tokens get none."""
    batch, count, length, width = shape
    frames = of_changes.shape[1] - 1
    of_tokens = of_changes.new_empty(shape)
    of_tokens[:, :, 0].zero_()
    patches = (length - 1) * count // frames
    with torch.cuda.device_of(of_changes):
        _take_changes_back[(batch * frames, triton.cdiv(patches * width, BLOCK))](
            of_changes.contiguous(), of_changes if gap_mask is None else gap_mask.contiguous(), of_tokens,
            frames, frames // count, of_tokens.stride(0), of_tokens.stride(1), patches, width,
            MASKED=gap_mask is not None, VALUES=BLOCK,
        )  # fmt: skip
    return of_tokens


def _tile(patches: int, width: int, values: int) -> tuple[int, int, int, int]:
    """Rows and columns of a program's tile of so many values, and how many tiles make P and D."""
    rows = min(64, triton.next_power_of_2(max(patches, 16)))
    columns = values // rows
    return rows, columns, triton.cdiv(patches, rows), triton.cdiv(width, columns)


def _by_tap(kernel: Tensor) -> Tensor:
    """`[D,1,K,3,3]` -> fp32 `[K,9,D]`, so that neighbouring channels lie side by side."""
    return kernel[:, 0].flatten(2).permute(1, 2, 0).to(torch.float32).contiguous()


@torch.library.custom_op("stop::change_energy", mutates_args=(), schema="(Tensor changes, Tensor kernel) -> Tensor[]")
def change_energy(changes: Tensor, kernel: Tensor) -> list[Tensor]:
    """Convolve changes `[B,T+1,P,D]` with depth-wise kernels `[D,1,K,3,3]`.

    Returns:
        The energy fp32 `[B,N,P]`, the mean square over channels of the features; and these, `[B,N,P,D]`, like the
        changes.
    """
    batch, count, patches, width = changes.shape
    taps, places = kernel.shape[2], count + 1 - kernel.shape[2]
    rows, columns, lots, blocks = _tile(patches, width, TILE[taps])
    partial_energy = changes.new_empty(blocks, batch, places, patches, dtype=torch.float32)
    features = changes.new_empty(batch, places, patches, width)
    with torch.cuda.device_of(changes):
        _forward[(batch, blocks, lots)](
            changes.contiguous(), _by_tap(kernel), partial_energy, features,
            count - 1, patches, math.isqrt(patches), width, places,
            TAPS=taps, ROWS=rows, COLUMNS=columns, num_warps=4,
        )  # fmt: skip
    return [partial_energy.sum(dim=0) / width, features]


@change_energy.register_fake
def _(changes: Tensor, kernel: Tensor) -> list[Tensor]:
    batch, count, patches, width = changes.shape
    places = count + 1 - kernel.shape[2]
    energy = changes.new_empty(batch, places, patches, dtype=torch.float32)
    return [energy, changes.new_empty(batch, places, patches, width)]


@torch.library.custom_op(
    "stop::change_energy_backward",
    mutates_args=(),
    schema="(Tensor of_energy, Tensor features, Tensor changes, Tensor kernel, bool wanted) -> Tensor[]",
)
def change_energy_backward(
    of_energy: Tensor, features: Tensor, changes: Tensor, kernel: Tensor, wanted: bool
) -> list[Tensor]:
    """From the gradient of the energy, fp32 `[B,N,P]`, that of the kernels, fp32 `[D,1,K,3,3]`, and that of the
    changes, `[B,T+1,P,D]` like them, or an empty one if it is not wanted."""
    batch, places, patches, width = features.shape
    taps = kernel.shape[2]
    rows, columns, lots, blocks = _tile(patches, width, 1024)
    clips_a_program = triton.cdiv(batch, PARTS)
    parts = triton.cdiv(batch, clips_a_program)
    of_changes = features.new_empty(changes.shape if wanted else 0)
    partial_taps = features.new_empty(parts * lots, taps, SPACE, width, dtype=torch.float32)
    with torch.cuda.device_of(changes):
        _backward[(parts, blocks, lots)](
            of_energy.contiguous(), features, changes.contiguous(), _by_tap(kernel), of_changes, partial_taps,
            batch, clips_a_program, changes.shape[1] - 1, patches, math.isqrt(patches), width, places,
            TAPS=taps, WANTED=wanted, ROWS=rows, COLUMNS=columns, num_warps=8,
        )  # fmt: skip
    of_kernel = partial_taps.sum(dim=0).permute(2, 0, 1).reshape(width, 1, taps, 3, 3).contiguous()
    return [of_kernel, of_changes]


@change_energy_backward.register_fake
def _(of_energy: Tensor, features: Tensor, changes: Tensor, kernel: Tensor, wanted: bool) -> list[Tensor]:
    of_kernel = kernel.new_empty(kernel.shape, dtype=torch.float32)
    return [of_kernel, features.new_empty(changes.shape if wanted else 0)]
