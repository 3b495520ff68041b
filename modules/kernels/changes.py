"""The dynamics nets on a GPU: depth-wise convolutions of what frames differ by, their energy, and the way back.

What `modules.dynamics.look` needs of N_s and N_t. torch's and cuDNN's depth-wise 3-D convolutions take most of a
training step of STOP on a GPU (docs/performance.md). Here one program takes one clip and a few channels through all
frames, and keeps in registers what later frames still add to.

Shapes: B clips, T frames, P = G*G patches, D width, K taps in time (2 or 3), N = T+2-K places of features; changes
`[B,T+1,P,D]` are those of `look`, the first and the last of a clip zero.
"""

import math

import torch
from torch import Tensor

try:
    import triton
    import triton.language as tl
except ImportError:  # comes with torch for GPUs alone
    triton = None  # type: ignore[assignment]

SPACE = 9  # taps of a kernel in space, 3 by 3
VALUES = {2: 4096, 3: 2048}  # of a tile, by taps in time: as many as four warps have registers for
PARTS = 32  # of a batch, whose clips one program after another adds to the gradient of the kernels


def usable(x: Tensor) -> bool:
    """Whether tensors like this one can be given to these kernels."""
    return triton is not None and x.is_cuda


if triton is not None:

    @triton.jit
    def _forward(
        changes, taps, partial_energy, features, last, patches, grid, width, places,
        TAPS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
    ):  # fmt: skip
        clip, block = tl.program_id(0).to(tl.int64), tl.program_id(1)
        row = tl.arange(0, ROWS)
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
    def _to_changes(
        of_energy, features, taps, of_changes, frames, patches, grid, width, places,
        TAPS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
    ):  # fmt: skip
        clip, block = tl.program_id(0).to(tl.int64), tl.program_id(1)
        row = tl.arange(0, ROWS)
        column = block * COLUMNS + tl.arange(0, COLUMNS)
        y, x = row // grid, row % grid
        real_row, real_column = row < patches, column < width
        at = row[:, None] * width + column[None, :]
        frame = patches * width
        features += clip * places * frame
        of_energy += clip * places * patches
        of_changes += clip * (frames + 1) * frame
        coming = tl.zeros((ROWS, COLUMNS), tl.float32)  # what change j+1 has got so far
        coming_later = tl.zeros((ROWS, COLUMNS), tl.float32)  # with three taps, change j+2
        for j in range(frames + 1):
            first = tl.zeros((ROWS, COLUMNS), tl.float32)
            second = tl.zeros((ROWS, COLUMNS), tl.float32)
            third = tl.zeros((ROWS, COLUMNS), tl.float32)
            if j < places:
                for tap in tl.static_range(9):
                    dy, dx = 1 - tap // 3, 1 - tap % 3
                    seen = real_row & (y + dy >= 0) & (y + dy < grid) & (x + dx >= 0) & (x + dx < grid)
                    shift = dy * grid + dx
                    there = features + j * frame + shift * width + at
                    feature = tl.load(there, mask=seen[:, None] & real_column[None, :], other=0.0).to(tl.float32)
                    gradient = tl.load(of_energy + j * patches + shift + row, mask=seen, other=0.0)
                    feature *= (2.0 / width * gradient)[:, None]
                    weight = taps + tap * width + column
                    first += feature * tl.load(weight, mask=real_column, other=0.0)[None, :]
                    second += feature * tl.load(weight + 9 * width, mask=real_column, other=0.0)[None, :]
                    if TAPS == 3:
                        third += feature * tl.load(weight + 18 * width, mask=real_column, other=0.0)[None, :]
            tl.store(
                of_changes + j * frame + at,
                (coming + first).to(of_changes.dtype.element_ty),
                mask=real_row[:, None] & real_column[None, :],
            )
            if TAPS == 3:
                coming = coming_later + second
                coming_later = third
            else:
                coming = second

    @triton.jit
    def _add_line(
        changes, x, seen_line, real_column, grid, width, of_here, of_before, of_two_before,
        a0, a1, a2, b0, b1, b2, c0, c1, c2, TAPS: tl.constexpr,
    ):  # fmt: skip
        """The part of one frame's changes, moved by a line, in the gradient of three taps in space: a of the first tap
        in time, b of the second, c of the third."""
        for step in tl.static_range(3):
            dx = step - 1
            seen = (seen_line & (x + dx >= 0) & (x + dx < grid))[:, None] & real_column[None, :]
            change = tl.load(changes + dx * width, mask=seen, other=0.0).to(tl.float32)
            if step == 0:
                a0 += change * of_here
                b0 += change * of_before
                if TAPS == 3:
                    c0 += change * of_two_before
            elif step == 1:
                a1 += change * of_here
                b1 += change * of_before
                if TAPS == 3:
                    c1 += change * of_two_before
            else:
                a2 += change * of_here
                b2 += change * of_before
                if TAPS == 3:
                    c2 += change * of_two_before
        return a0, a1, a2, b0, b1, b2, c0, c1, c2

    @triton.jit
    def _store_line(
        into, width, real_column, a0, a1, a2, b0, b1, b2, c0, c1, c2, TAPS: tl.constexpr
    ):  # fmt: skip
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
    def _to_taps(
        of_energy, features, changes, partial_taps, clips, clips_a_program, last, patches, grid, width, places,
        TAPS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
    ):  # fmt: skip
        part, block = tl.program_id(0).to(tl.int64), tl.program_id(1)
        row = tl.arange(0, ROWS)
        column = block * COLUMNS + tl.arange(0, COLUMNS)
        y, x = row // grid, row % grid
        real_row, real_column = row < patches, column < width
        at = row[:, None] * width + column[None, :]
        frame = patches * width
        nothing = tl.zeros((ROWS, COLUMNS), tl.float32)
        # By line and tap of it in space, and by tap in time.
        a0, a1, a2, b0, b1, b2, c0, c1, c2 = (nothing,) * 9
        d0, d1, d2, e0, e1, e2, f0, f1, f2 = (nothing,) * 9
        g0, g1, g2, h0, h1, h2, i0, i1, i2 = (nothing,) * 9
        for clip in range(part * clips_a_program, min((part + 1) * clips_a_program, clips)):
            of_before = nothing  # of the features at place j-1
            of_two_before = nothing
            of_clip = features + clip * places * frame + at
            seen = changes + clip * (last + 1) * frame + at
            for j in range(last):
                known = real_row & (j < places)
                gradient = tl.load(of_energy + (clip * places + j) * patches + row, mask=known, other=0.0)
                here = known[:, None] & real_column[None, :]
                of_here = tl.load(of_clip + j * frame, mask=here, other=0.0).to(tl.float32)
                of_here *= (2.0 / width * gradient)[:, None]
                if j > 0:
                    a0, a1, a2, b0, b1, b2, c0, c1, c2 = _add_line(
                        seen + j * frame - grid * width, x, real_row & (y > 0), real_column, grid, width,
                        of_here, of_before, of_two_before, a0, a1, a2, b0, b1, b2, c0, c1, c2, TAPS,
                    )  # fmt: skip
                    d0, d1, d2, e0, e1, e2, f0, f1, f2 = _add_line(
                        seen + j * frame, x, real_row, real_column, grid, width,
                        of_here, of_before, of_two_before, d0, d1, d2, e0, e1, e2, f0, f1, f2, TAPS,
                    )  # fmt: skip
                    g0, g1, g2, h0, h1, h2, i0, i1, i2 = _add_line(
                        seen + j * frame + grid * width, x, real_row & (y < grid - 1), real_column, grid, width,
                        of_here, of_before, of_two_before, g0, g1, g2, h0, h1, h2, i0, i1, i2, TAPS,
                    )  # fmt: skip
                of_two_before = of_before
                of_before = of_here
        into = partial_taps + part * TAPS * 9 * width + column
        _store_line(into, width, real_column, a0, a1, a2, b0, b1, b2, c0, c1, c2, TAPS)
        _store_line(into + 3 * width, width, real_column, d0, d1, d2, e0, e1, e2, f0, f1, f2, TAPS)
        _store_line(into + 6 * width, width, real_column, g0, g1, g2, h0, h1, h2, i0, i1, i2, TAPS)


def _tile(patches: int, width: int, values: int) -> tuple[int, int, int]:
    """Rows and columns of a program's tile, of so many values where the patches allow, and how many tiles make D."""
    rows = triton.next_power_of_2(max(patches, 16))
    columns = max(16, values // rows)
    return rows, columns, triton.cdiv(width, columns)


def _warps(rows: int, columns: int, values_a_thread: int) -> int:
    return min(16, max(1, rows * columns // (32 * values_a_thread)))


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
    rows, columns, blocks = _tile(patches, width, VALUES[taps])
    partial_energy = changes.new_empty(blocks, batch, places, patches, dtype=torch.float32)
    features = changes.new_empty(batch, places, patches, width)
    with torch.cuda.device_of(changes):
        _forward[(batch, blocks)](
            changes.contiguous(), _by_tap(kernel), partial_energy, features,
            count - 1, patches, math.isqrt(patches), width, places,
            TAPS=taps, ROWS=rows, COLUMNS=columns, num_warps=_warps(rows, columns, VALUES[taps] // 128),
        )  # fmt: skip
    return [partial_energy.sum(dim=0) / width, features]


@change_energy.register_fake
def _(changes: Tensor, kernel: Tensor) -> list[Tensor]:
    batch, count, patches, width = changes.shape
    places = count + 1 - kernel.shape[2]
    energy = changes.new_empty(batch, places, patches, dtype=torch.float32)
    return [energy, changes.new_empty(batch, places, patches, width)]


@torch.library.custom_op(
    "stop::change_energy_to_changes",
    mutates_args=(),
    schema="(Tensor of_energy, Tensor features, Tensor kernel) -> Tensor",
)
def to_changes(of_energy: Tensor, features: Tensor, kernel: Tensor) -> Tensor:
    """From the gradient of the energy, fp32 `[B,N,P]`, that of the changes, `[B,T+1,P,D]` like the features."""
    batch, places, patches, width = features.shape
    taps = kernel.shape[2]
    rows, columns, blocks = _tile(patches, width, VALUES[taps])
    of_changes = features.new_empty(batch, places + taps - 1, patches, width)
    with torch.cuda.device_of(features):
        _to_changes[(batch, blocks)](
            of_energy.contiguous(), features, _by_tap(kernel), of_changes,
            places + taps - 2, patches, math.isqrt(patches), width, places,
            TAPS=taps, ROWS=rows, COLUMNS=columns, num_warps=_warps(rows, columns, VALUES[taps] // 128),
        )  # fmt: skip
    return of_changes


@to_changes.register_fake
def _(of_energy: Tensor, features: Tensor, kernel: Tensor) -> Tensor:
    batch, places, patches, width = features.shape
    return features.new_empty(batch, places + kernel.shape[2] - 1, patches, width)


@torch.library.custom_op(
    "stop::change_energy_to_kernel",
    mutates_args=(),
    schema="(Tensor of_energy, Tensor features, Tensor changes) -> Tensor",
)
def to_kernel(of_energy: Tensor, features: Tensor, changes: Tensor) -> Tensor:
    """From the gradient of the energy, fp32 `[B,N,P]`, that of the kernels, fp32 `[D,1,K,3,3]`."""
    batch, places, patches, width = features.shape
    taps = changes.shape[1] + 1 - places
    rows, columns, blocks = _tile(patches, width, 1024)
    clips_a_program = triton.cdiv(batch, PARTS)
    parts = triton.cdiv(batch, clips_a_program)
    partial_taps = features.new_empty(parts, taps, SPACE, width, dtype=torch.float32)
    with torch.cuda.device_of(changes):
        _to_taps[(parts, blocks)](
            of_energy.contiguous(), features, changes.contiguous(), partial_taps, batch, clips_a_program,
            changes.shape[1] - 1, patches, math.isqrt(patches), width, places,
            TAPS=taps, ROWS=rows, COLUMNS=columns, num_warps=_warps(rows, columns, 8),
        )  # fmt: skip
    return partial_taps.sum(dim=0).permute(2, 0, 1).reshape(width, 1, taps, 3, 3).contiguous()


@to_kernel.register_fake
def _(of_energy: Tensor, features: Tensor, changes: Tensor) -> Tensor:
    return of_energy.new_empty(features.shape[3], 1, changes.shape[1] + 1 - features.shape[1], 3, 3)
