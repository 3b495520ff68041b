"""The Triton kernels behind `modules.kernels.changes`, which says what they compute and names the shapes."""

import triton
import triton.language as tl


@triton.jit
def _frame_start(frame, frames_a_sequence, per_sequence, patches, width):
    """Return the offset of a frame's first patch in its clip; each sequence begins with a class token."""
    return (frame // frames_a_sequence) * per_sequence + (1 + frame % frames_a_sequence * patches) * width


@triton.jit
def subtract(
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
    before = tl.load(at + _frame_start(j - 1, frames_a_sequence, per_sequence, patches, width), mask=there, other=0.0)
    change = (after.to(tl.float32) - before.to(tl.float32)).to(changes.dtype.element_ty)
    into = changes + row * Q + channel.to(tl.int64)[:, None] * (clips * (frames + 1) * Q) + patch[None, :]
    tl.store(into, tl.trans(change), mask=(channel < width)[:, None] & (patch < Q)[None, :])


@triton.jit
def subtract_back(
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
def convolve(
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
def sum_squares(features, partial_energy, size, width, GROUP: tl.constexpr, VALUES: tl.constexpr):
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
def scale(
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
def sum_taps(
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
