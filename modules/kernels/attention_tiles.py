"""The Triton kernels behind `modules.kernels.attention`, which says what they compute and names the shapes."""

import triton
import triton.language as tl


@triton.jit
def _load(start, stride, tokens, channels, FIRST: tl.constexpr, END: tl.constexpr, WIDTH: tl.constexpr):
    inside = (tokens >= FIRST)[:, None] & (tokens < END)[:, None] & (channels < WIDTH)[None, :]
    return tl.load(start + tokens[:, None] * stride + channels[None, :], mask=inside, other=0.0)


@triton.jit
def _store(tile, start, stride, tokens, channels, FIRST: tl.constexpr, END: tl.constexpr, WIDTH: tl.constexpr):
    inside = (tokens >= FIRST)[:, None] & (tokens < END)[:, None] & (channels < WIDTH)[None, :]
    at = start + tokens[:, None] * stride + channels[None, :]
    tl.store(at, tile.to(start.dtype.element_ty), mask=inside)


@triton.jit
def _product(a, b):
    # Without "ieee" fp32 would be rounded to tf32; half precisions ignore it.
    return tl.dot(a, b, input_precision="ieee")


@triton.jit
def _load_keys(
    own, of_context, own_stride, context_stride, keys, channels,
    L: tl.constexpr, S: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """Load keys (or values) of the tokens, then of the context, into one tile."""
    tile = _load(own, own_stride, keys, channels, 0, L, WIDTH)
    if S > 0:
        tile += _load(of_context - L * context_stride, context_stride, keys, channels, L, L + S, WIDTH)
    return tile


@triton.jit
def _shares(q, k, scale, mask, by_query, by_key, queries, keys, L: tl.constexpr, S: tl.constexpr, MASKED: tl.constexpr):
    """Return each key's unnormalised share, and the factor that normalises the shares of a query."""
    scores = _product(q, tl.trans(k)) * (scale * 1.4426950408889634)  # to the base of 2
    seen = (keys < L + S)[None, :]
    if MASKED == "by key":  # the same for all queries: a hundredth of the loads
        seen = seen & (tl.load(mask + keys * by_key, mask=keys < L + S, other=0) != 0)[None, :]
    elif MASKED == "by query":
        inside = (queries < L)[:, None] & seen
        at = mask + queries[:, None] * by_query + keys[None, :] * by_key
        seen = tl.load(at, mask=inside, other=0) != 0
    scores = tl.where(seen, scores, float("-inf"))
    peak = tl.max(scores, axis=1)
    # Queries that see nothing, such as those beyond L: their exponentials must be 0 and not exp(inf - inf).
    peak = tl.where(peak == float("-inf"), 0.0, peak)
    exponentials = tl.exp2(scores - peak[:, None])
    total = tl.sum(exponentials, axis=1)
    return exponentials, 1.0 / tl.where(total == 0.0, 1.0, total)


@triton.jit
def forward(
    found, qkv, context_keys, context_values, mask,
    keys_by_row, keys_by_token, values_by_row, values_by_token, mask_by_row, mask_by_query, mask_by_key, scale,
    L: tl.constexpr, S: tl.constexpr, HEADS: tl.constexpr, WIDTH: tl.constexpr, MASKED: tl.constexpr,
    BLOCK_L: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    D: tl.constexpr = HEADS * WIDTH
    # The heads of a row run side by side: narrow ones share sectors of memory.
    row = (tl.program_id(0) // HEADS).to(tl.int64)  # large batches have more than 2^31 elements
    first = (tl.program_id(0) % HEADS) * WIDTH
    queries, keys, channels = tl.arange(0, BLOCK_L), tl.arange(0, BLOCK_K), tl.arange(0, BLOCK_D)
    at = qkv + row * (L * 3 * D) + first
    q = _load(at, 3 * D, queries, channels, 0, L, WIDTH)
    others = at if S == 0 else context_keys + row * keys_by_row + first
    k = _load_keys(at + D, others, 3 * D, keys_by_token, keys, channels, L, S, WIDTH)
    others = at if S == 0 else context_values + row * values_by_row + first
    v = _load_keys(at + 2 * D, others, 3 * D, values_by_token, keys, channels, L, S, WIDTH)
    if MASKED != "":
        mask += row * mask_by_row
    shares, factor = _shares(q, k, scale, mask, mask_by_query, mask_by_key, queries, keys, L, S, MASKED)
    tile = _product(shares.to(v.dtype), v) * factor[:, None]
    _store(tile, found + row * (L * D) + first, D, queries, channels, 0, L, WIDTH)


@triton.jit
def backward(
    gradient, of_qkv, of_keys, of_values, qkv, context_keys, context_values, mask,
    keys_by_row, keys_by_token, values_by_row, values_by_token, mask_by_row, mask_by_query, mask_by_key, scale,
    L: tl.constexpr, S: tl.constexpr, HEADS: tl.constexpr, WIDTH: tl.constexpr, MASKED: tl.constexpr,
    WANTED: tl.constexpr, BLOCK_L: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    D: tl.constexpr = HEADS * WIDTH
    row = (tl.program_id(0) // HEADS).to(tl.int64)
    first = (tl.program_id(0) % HEADS) * WIDTH
    queries, keys, channels = tl.arange(0, BLOCK_L), tl.arange(0, BLOCK_K), tl.arange(0, BLOCK_D)
    at = qkv + row * (L * 3 * D) + first
    q = _load(at, 3 * D, queries, channels, 0, L, WIDTH)
    others = at if S == 0 else context_keys + row * keys_by_row + first
    k = _load_keys(at + D, others, 3 * D, keys_by_token, keys, channels, L, S, WIDTH)
    others = at if S == 0 else context_values + row * values_by_row + first
    v = _load_keys(at + 2 * D, others, 3 * D, values_by_token, keys, channels, L, S, WIDTH)
    out = _load(gradient + row * (L * D) + first, D, queries, channels, 0, L, WIDTH)
    if MASKED != "":
        mask += row * mask_by_row
    shares, factor = _shares(q, k, scale, mask, mask_by_query, mask_by_key, queries, keys, L, S, MASKED)
    shares *= factor[:, None]
    of_shares = _product(out, tl.trans(v))
    delta = tl.sum(shares * of_shares, axis=1)
    of_scores = (shares * (of_shares - delta[:, None]) * scale).to(q.dtype)
    of_k = _product(tl.trans(of_scores), q)
    of_v = _product(tl.trans(shares.to(q.dtype)), out)
    at = of_qkv + row * (L * 3 * D) + first
    _store(_product(of_scores, k), at, 3 * D, queries, channels, 0, L, WIDTH)
    _store(of_k, at + D, 3 * D, keys, channels, 0, L, WIDTH)
    _store(of_v, at + 2 * D, 3 * D, keys, channels, 0, L, WIDTH)
    if WANTED:
        start = row * (S * D) + first - L * D
        _store(of_k, of_keys + start, D, keys, channels, L, L + S, WIDTH)
        _store(of_v, of_values + start, D, keys, channels, L, L + S, WIDTH)
