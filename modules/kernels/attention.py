"""Attention over short sequences, forward and backward, each (row, head) in one tile of a GPU.

Tokens attend to themselves and to a context whose keys and values lie elsewhere in memory. Queries, keys and values are
read where the projection wrote them, and their gradients written where it reads them: nothing is joined, sliced, padded
or transposed in memory on the way, which for sequences this short would cost more than the attention.

Shapes: N rows, L tokens of a row, S context tokens, D width, d = D / heads the width of a head. Heads lie side by side
in D. In a kernel everything is a tile, of the next power of two and at least 16 along L, S and d, which is the least
that tensor cores take; what lies beyond L, S and d is read as zeros and never written.

Source: to keep the inputs alone and to make the softmax again in backward is the idea of Dao et al., "FlashAttention",
NeurIPS 2022. With all keys in one tile its running maximum and sum are not needed.

With TRITON_INTERPRET=1, set before the first import of triton, the kernels run on CPU tensors, slowly: for tests.
"""

from typing import Any

import torch
from torch import Tensor

from modules.kernels import HAS_TRITON

if HAS_TRITON:
    import triton
    import triton.language as tl

LONGEST = 64  # tokens, context tokens or channels of a head up to which a tile stays in registers
LEAST = 16  # of what tensor cores take along any axis
DTYPES = (torch.bfloat16, torch.float16, torch.float32)


def fits(length: int, context: int, head_width: int) -> bool:
    """Whether L tokens with S context tokens and heads d wide are a size for one tile."""
    return max(length, context, head_width) <= LONGEST


def short_attention(
    qkv: Tensor,
    context_keys: Tensor | None = None,
    context_values: Tensor | None = None,
    mask: Tensor | None = None,
    *,
    heads: int,
) -> Tensor:
    """What `F.scaled_dot_product_attention` finds for each token of a row among the row's tokens and its context.

    Differentiable in all but the mask, once. A query whose mask is all false finds zeros.

    Args:
        qkv: [N, L, 3 D] of bf16, fp16 or fp32: queries, keys and values one after another on the last axis.
        context_keys: [N, S, D], or [1, S, D] for the same in all rows; views are read as they lie, as long as their
            last axis has a unit stride. Other dtypes are cast to that of qkv.
        context_values: as `context_keys`; both or neither.
        mask: bool (True: may attend), broadcastable to [N, 1, L, L + S], the context last.
        heads: what D divides into.

    Returns:
        [N, L, D] in the dtype of qkv, the heads side by side.

    Raises:
        ValueError: for shapes or dtypes other than these, and for sizes that do not fit (`fits`).
    """
    if context_keys is not None and context_keys.shape[1] == 0:
        context_keys = context_values = None
    _check(qkv, context_keys, context_values, mask, heads)
    if context_keys is not None and context_values is not None:
        context_keys, context_values = context_keys.to(qkv.dtype), context_values.to(qkv.dtype)
    return _attend(qkv, context_keys, context_values, mask, heads)


def _check(
    qkv: Tensor, context_keys: Tensor | None, context_values: Tensor | None, mask: Tensor | None, heads: int
) -> None:
    if qkv.ndim != 3 or qkv.shape[-1] % (3 * heads):
        raise ValueError(f"qkv must be [N, L, 3 D] with D a multiple of {heads} heads, not {tuple(qkv.shape)}.")
    if qkv.dtype not in DTYPES:
        raise ValueError(f"qkv must be bf16, fp16 or fp32, not {qkv.dtype}.")
    rows, length, width = qkv.shape[0], qkv.shape[1], qkv.shape[2] // 3
    if (context_keys is None) != (context_values is None):
        raise ValueError("A context has both keys and values.")
    context = 0
    if context_keys is not None and context_values is not None:
        context = context_keys.shape[1]
        for part in (context_keys, context_values):
            if part.shape[0] not in (1, rows) or part.shape[1:] != (context, width):
                raise ValueError(
                    f"The context must be [{rows} or 1, S, {width}], keys as values, not {tuple(part.shape)}."
                )
    if not fits(length, context, width // heads):
        raise ValueError(
            f"{length} tokens, {context} context tokens or heads {width // heads} wide: more than {LONGEST} do not "
            "fit in a tile."
        )
    if mask is not None:
        if mask.dtype != torch.bool:
            raise ValueError(f"The mask must be bool, not {mask.dtype}.")
        full = (rows, 1, length, length + context)
        given = (1,) * (4 - mask.ndim) + tuple(mask.shape)
        if len(given) != 4 or any(size not in (1, whole) for size, whole in zip(given, full, strict=True)):
            raise ValueError(f"The mask must be broadcastable to {list(full)}, not {tuple(mask.shape)}.")


@torch.library.custom_op("stop::short_attention", mutates_args=())
def _attend(
    qkv: Tensor, context_keys: Tensor | None, context_values: Tensor | None, mask: Tensor | None, heads: int
) -> Tensor:
    rows, length, width = qkv.shape
    found = qkv.new_empty(rows, length, width // 3)
    with torch.cuda.device_of(qkv):
        _forward[(rows * heads,)](found=found, **_arguments(qkv, context_keys, context_values, mask, heads))
    return found


@_attend.register_fake
def _(
    qkv: Tensor, context_keys: Tensor | None, context_values: Tensor | None, mask: Tensor | None, heads: int
) -> Tensor:
    rows, length, width = qkv.shape
    return qkv.new_empty(rows, length, width // 3)


@torch.library.custom_op("stop::short_attention_backward", mutates_args=())
def _attend_backward(
    gradient: Tensor,
    qkv: Tensor,
    context_keys: Tensor | None,
    context_values: Tensor | None,
    mask: Tensor | None,
    heads: int,
    context_wanted: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of qkv and of the context's keys and values; those not wanted are empty."""
    of_qkv = qkv.new_empty(qkv.shape)
    of_keys = of_values = None
    if context_wanted:
        assert context_keys is not None
        assert context_values is not None
        of_keys, of_values = _room(qkv, context_keys), _room(qkv, context_values)
    with torch.cuda.device_of(qkv):
        _backward[(len(qkv) * heads,)](
            gradient=gradient.contiguous(),
            of_qkv=of_qkv,
            of_keys=of_keys,
            of_values=of_values,
            WANTED=context_wanted,
            **_arguments(qkv, context_keys, context_values, mask, heads),
        )
    return of_qkv, _gathered(of_keys, context_keys, qkv), _gathered(of_values, context_values, qkv)


@_attend_backward.register_fake
def _(
    gradient: Tensor,
    qkv: Tensor,
    context_keys: Tensor | None,
    context_values: Tensor | None,
    mask: Tensor | None,
    heads: int,
    context_wanted: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    of_keys, of_values = (
        qkv.new_empty(context.shape if context_wanted and context is not None else 0)
        for context in (context_keys, context_values)
    )
    return qkv.new_empty(qkv.shape), of_keys, of_values


def _room(qkv: Tensor, context: Tensor) -> Tensor:
    """For a context's gradient in each row, [N, S, D]; in fp32 where it will be summed over the rows."""
    dtype = qkv.dtype if len(context) == len(qkv) else torch.float32
    return qkv.new_empty(len(qkv), *context.shape[1:], dtype=dtype)


def _gathered(gradient: Tensor | None, context: Tensor | None, qkv: Tensor) -> Tensor:
    """A context's gradient in each row -> that of the context as it was given."""
    if gradient is None or context is None:
        return qkv.new_empty(0)
    if len(context) == len(gradient):
        return gradient
    return gradient.sum(dim=0, keepdim=True).to(qkv.dtype)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.heads = inputs
    ctx.save_for_backward(*tensors)


def _differentiate(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    _, keys_wanted, values_wanted, *_ = ctx.needs_input_grad
    of_qkv, of_keys, of_values = _attend_backward(gradient, *ctx.saved_tensors, ctx.heads, keys_wanted or values_wanted)
    return of_qkv, of_keys if keys_wanted else None, of_values if values_wanted else None, None, None


_attend.register_autograd(_differentiate, setup_context=_keep)


def _arguments(
    qkv: Tensor, context_keys: Tensor | None, context_values: Tensor | None, mask: Tensor | None, heads: int
) -> dict[str, Any]:
    """What both kernels are launched with."""
    rows, length, width = qkv.shape[0], qkv.shape[1], qkv.shape[2] // 3
    context = 0
    if context_keys is not None and context_values is not None:
        context = context_keys.shape[1]
        context_keys, context_values = (_in_rows(part, rows) for part in (context_keys, context_values))
    if mask is not None:
        mask = mask.expand(rows, 1, length, length + context)
    return {
        "qkv": qkv.contiguous(),
        "context_keys": context_keys,
        "context_values": context_values,
        "mask": mask,
        "keys_by_row": 0 if context_keys is None else context_keys.stride(0),
        "keys_by_token": 0 if context_keys is None else context_keys.stride(1),
        "values_by_row": 0 if context_values is None else context_values.stride(0),
        "values_by_token": 0 if context_values is None else context_values.stride(1),
        "mask_by_row": 0 if mask is None else mask.stride(0),
        "mask_by_query": 0 if mask is None else mask.stride(2),
        "mask_by_key": 0 if mask is None else mask.stride(3),
        "scale": (width // heads) ** -0.5,
        "L": length,
        "S": context,
        "HEADS": heads,
        "WIDTH": width // heads,
        "MASKED": "" if mask is None else "by key" if mask.stride(2) == 0 else "by query",
        "BLOCK_L": _block(length),
        "BLOCK_S": _block(context),
        "BLOCK_D": _block(width // heads),
        # fp32 is multiplied in registers, of which fewer warps have too few for a tile.
        "num_warps": 8 if qkv.dtype == torch.float32 else 4,
        "num_stages": 1,
    }


def _in_rows(context: Tensor, rows: int) -> Tensor:
    """[N or 1, S, D] -> [N, S, D] with a unit stride on the last axis, where possible a view."""
    return (context if context.stride(-1) == 1 else context.contiguous()).expand(rows, -1, -1)


def _block(size: int) -> int:
    """The side of a tile that holds `size`."""
    return max(LEAST, 1 << (size - 1).bit_length())


if HAS_TRITON:

    @triton.jit
    def _load(start, stride, tokens, channels, COUNT: tl.constexpr, WIDTH: tl.constexpr):
        inside = (tokens[:, None] < COUNT) & (channels[None, :] < WIDTH)
        return tl.load(start + tokens[:, None] * stride + channels[None, :], mask=inside, other=0.0)

    @triton.jit
    def _store(tile, start, stride, tokens, channels, COUNT: tl.constexpr, WIDTH: tl.constexpr):
        inside = (tokens[:, None] < COUNT) & (channels[None, :] < WIDTH)
        at = start + tokens[:, None] * stride + channels[None, :]
        tl.store(at, tile.to(start.dtype.element_ty), mask=inside)

    @triton.jit
    def _product(a, b):
        # Without "ieee" fp32 would be rounded to tf32; it says nothing to the half precisions.
        return tl.dot(a, b, input_precision="ieee")

    @triton.jit
    def _scores(
        q, k, scale, mask, by_query, by_key, queries, keys, L: tl.constexpr, COUNT: tl.constexpr, MASKED: tl.constexpr
    ):
        """fp32 scores, minus infinity for keys beyond the last and for those the mask, from its first key on, hides."""
        scores = _product(q, tl.trans(k)) * scale
        scores = tl.where(keys[None, :] < COUNT, scores, float("-inf"))
        if MASKED == "by key":  # the same for all queries: a hundredth of the loads
            seen = tl.load(mask + keys * by_key, mask=keys < COUNT, other=0) != 0
            scores = tl.where(seen[None, :], scores, float("-inf"))
        elif MASKED == "by query":
            inside = (queries[:, None] < L) & (keys[None, :] < COUNT)
            at = mask + queries[:, None] * by_query + keys[None, :] * by_key
            scores = tl.where(tl.load(at, mask=inside, other=0) != 0, scores, float("-inf"))
        return scores

    @triton.jit
    def _exponentials(
        q,
        k,
        context_k,
        mask,
        mask_by_query,
        mask_by_key,
        scale,
        tokens,
        others,
        L: tl.constexpr,
        S: tl.constexpr,
        MASKED: tl.constexpr,
    ):
        """Of the scores of own and of context keys (of own ones again where there is no context), and their sums."""
        own = _scores(q, k, scale, mask, mask_by_query, mask_by_key, tokens, tokens, L, L, MASKED)
        peak = tl.max(own, axis=1)
        of_context = own
        if S > 0:
            if MASKED != "":
                mask += L * mask_by_key
            of_context = _scores(q, context_k, scale, mask, mask_by_query, mask_by_key, tokens, others, L, S, MASKED)
            peak = tl.maximum(peak, tl.max(of_context, axis=1))
        # Queries that see nothing, as those beyond L of a mask: their exponentials are to be 0, not those of inf - inf.
        peak = tl.where(peak == float("-inf"), 0.0, peak)
        own = tl.exp(own - peak[:, None])
        total = tl.sum(own, axis=1)
        if S > 0:
            of_context = tl.exp(of_context - peak[:, None])
            total += tl.sum(of_context, axis=1)
        return own, of_context, tl.where(total == 0.0, 1.0, total)

    @triton.jit
    def _forward(
        found,
        qkv,
        context_keys,
        context_values,
        mask,
        keys_by_row,
        keys_by_token,
        values_by_row,
        values_by_token,
        mask_by_row,
        mask_by_query,
        mask_by_key,
        scale,
        L: tl.constexpr,
        S: tl.constexpr,
        HEADS: tl.constexpr,
        WIDTH: tl.constexpr,
        MASKED: tl.constexpr,
        BLOCK_L: tl.constexpr,
        BLOCK_S: tl.constexpr,
        BLOCK_D: tl.constexpr,
    ):
        D: tl.constexpr = HEADS * WIDTH
        # The heads of a row run side by side: narrow ones share sectors of memory.
        row = (tl.program_id(0) // HEADS).to(tl.int64)  # large batches have more than 2^31 elements
        first = (tl.program_id(0) % HEADS) * WIDTH
        tokens, others, channels = tl.arange(0, BLOCK_L), tl.arange(0, BLOCK_S), tl.arange(0, BLOCK_D)
        at = qkv + row * (L * 3 * D) + first
        q = _load(at, 3 * D, tokens, channels, L, WIDTH)
        k = _load(at + D, 3 * D, tokens, channels, L, WIDTH)
        v = _load(at + 2 * D, 3 * D, tokens, channels, L, WIDTH)
        context_k = k
        if S > 0:
            context_k = _load(context_keys + row * keys_by_row + first, keys_by_token, others, channels, S, WIDTH)
        if MASKED != "":
            mask += row * mask_by_row
        own, of_context, total = _exponentials(
            q, k, context_k, mask, mask_by_query, mask_by_key, scale, tokens, others, L, S, MASKED
        )
        tile = _product(own.to(v.dtype), v)
        if S > 0:
            context_v = _load(context_values + row * values_by_row + first, values_by_token, others, channels, S, WIDTH)
            tile += _product(of_context.to(v.dtype), context_v)
        _store(tile / total[:, None], found + row * (L * D) + first, D, tokens, channels, L, WIDTH)

    @triton.jit
    def _backward(
        gradient,
        of_qkv,
        of_keys,
        of_values,
        qkv,
        context_keys,
        context_values,
        mask,
        keys_by_row,
        keys_by_token,
        values_by_row,
        values_by_token,
        mask_by_row,
        mask_by_query,
        mask_by_key,
        scale,
        L: tl.constexpr,
        S: tl.constexpr,
        HEADS: tl.constexpr,
        WIDTH: tl.constexpr,
        MASKED: tl.constexpr,
        WANTED: tl.constexpr,
        BLOCK_L: tl.constexpr,
        BLOCK_S: tl.constexpr,
        BLOCK_D: tl.constexpr,
    ):
        D: tl.constexpr = HEADS * WIDTH
        row = (tl.program_id(0) // HEADS).to(tl.int64)
        first = (tl.program_id(0) % HEADS) * WIDTH
        tokens, others, channels = tl.arange(0, BLOCK_L), tl.arange(0, BLOCK_S), tl.arange(0, BLOCK_D)
        at = qkv + row * (L * 3 * D) + first
        q = _load(at, 3 * D, tokens, channels, L, WIDTH)
        k = _load(at + D, 3 * D, tokens, channels, L, WIDTH)
        v = _load(at + 2 * D, 3 * D, tokens, channels, L, WIDTH)
        out = _load(gradient + row * (L * D) + first, D, tokens, channels, L, WIDTH)
        context_k = k
        if S > 0:
            context_k = _load(context_keys + row * keys_by_row + first, keys_by_token, others, channels, S, WIDTH)
        if MASKED != "":
            mask += row * mask_by_row
        own, of_context, total = _exponentials(
            q, k, context_k, mask, mask_by_query, mask_by_key, scale, tokens, others, L, S, MASKED
        )

        own = own / total[:, None]
        by_own = _product(out, tl.trans(v))
        delta = tl.sum(own * by_own, axis=1)
        by_context = by_own
        if S > 0:
            context_v = _load(context_values + row * values_by_row + first, values_by_token, others, channels, S, WIDTH)
            of_context = of_context / total[:, None]
            by_context = _product(out, tl.trans(context_v))
            delta += tl.sum(of_context * by_context, axis=1)

        by_own = (own * (by_own - delta[:, None]) * scale).to(q.dtype)
        of_q = _product(by_own, k)
        if S > 0:
            by_context = (of_context * (by_context - delta[:, None]) * scale).to(q.dtype)
            of_q += _product(by_context, context_k)
            if WANTED:
                start = row * (S * D) + first
                _store(_product(tl.trans(by_context), q), of_keys + start, D, others, channels, S, WIDTH)
                of_context_v = _product(tl.trans(of_context.to(q.dtype)), out)
                _store(of_context_v, of_values + start, D, others, channels, S, WIDTH)
        at = of_qkv + row * (L * 3 * D) + first
        _store(of_q, at, 3 * D, tokens, channels, L, WIDTH)
        _store(_product(tl.trans(by_own), q), at + D, 3 * D, tokens, channels, L, WIDTH)
        _store(_product(tl.trans(own.to(q.dtype)), out), at + 2 * D, 3 * D, tokens, channels, L, WIDTH)
