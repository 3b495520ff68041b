"""Attention over short sequences, forward and backward, each (row, head) in one tile of a GPU.

Tokens attend to themselves and to a context whose keys and values lie elsewhere in memory. The kernels read queries,
keys and values where the projection wrote them, and write gradients where it reads them. Joining, slicing, padding or
transposing them in memory would cost more than the attention for sequences this short.

Shapes: N rows, L tokens of a row, S context tokens, D width, d = D / heads the width of a head. Heads lie side by side
in D. Kernels work on tiles whose sides are powers of two, at least 16 (the minimum of tensor cores) along L, S and d.
They read zeros beyond L, S and d, and never write there.

Source: keeping only the inputs and computing the softmax again in backward follows Dao et al., "FlashAttention",
NeurIPS 2022. With all keys in one tile, its running maximum and sum are not needed.

With TRITON_INTERPRET=1, set before the first import of triton, the kernels run on CPU tensors, slowly: for tests.
"""

from typing import Any

import torch
from torch import Tensor

from modules.kernels import tile_side

LONGEST = 64  # most queries, and most channels of a head, with which a tile stays in registers
MOST_KEYS = 128  # most keys, the context's included
DTYPES = (torch.bfloat16, torch.float16, torch.float32)


def fits(length: int, context: int, head_width: int) -> bool:
    """Return whether L tokens with S context tokens and heads d wide fit in one tile."""
    return max(length, head_width) <= LONGEST and length + context <= MOST_KEYS


def short_attention(
    qkv: Tensor,
    context_keys: Tensor | None = None,
    context_values: Tensor | None = None,
    mask: Tensor | None = None,
    *,
    heads: int,
) -> Tensor:
    """Let each token of a row attend to the row's tokens and its context, as `F.scaled_dot_product_attention` does.

    It can be differentiated once, by everything but the mask. A query whose mask is all false gets zeros.

    Args:
        qkv: [N, L, 3 D] of bf16, fp16 or fp32: queries, keys and values one after another on the last axis.
        context_keys: [N, S, D], or [1, S, D] if all rows share it. Views need no copy if their last axis has a
            unit stride. Other dtypes are cast to that of qkv.
        context_values: as `context_keys`; both or neither.
        mask: bool (True: may attend), broadcastable to [N, 1, L, L + S], the context last.
        heads: the number of heads; D is a multiple of it.

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
            f"{length} tokens with {context} context tokens and heads {width // heads} wide do not fit in a tile: at "
            f"most {LONGEST} tokens and channels, and {MOST_KEYS} tokens with the context."
        )
    if mask is not None:
        if mask.dtype != torch.bool:
            raise ValueError(f"The mask must be bool, not {mask.dtype}.")
        full = (rows, 1, length, length + context)
        given = (1,) * (4 - mask.ndim) + tuple(mask.shape)
        # One by one, since a traced size is not found in a tuple.
        if len(given) != 4 or not all(size == 1 or size == whole for size, whole in zip(given, full, strict=True)):
            raise ValueError(f"The mask must be broadcastable to {list(full)}, not {tuple(mask.shape)}.")


@torch.library.custom_op("stop::short_attention", mutates_args=())
def _attend(
    qkv: Tensor, context_keys: Tensor | None, context_values: Tensor | None, mask: Tensor | None, heads: int
) -> Tensor:
    from modules.kernels import attention_tiles

    rows, length, width = qkv.shape
    found = qkv.new_empty(rows, length, width // 3)
    with torch.cuda.device_of(qkv):
        attention_tiles.forward[(rows * heads,)](
            found=found, **_arguments(qkv, context_keys, context_values, mask, heads)
        )
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
    """Return gradients of qkv and of the context's keys and values; those not wanted are empty."""
    from modules.kernels import attention_tiles

    of_qkv = qkv.new_empty(qkv.shape)
    of_keys = of_values = None
    if context_wanted:
        assert context_keys is not None
        assert context_values is not None
        of_keys, of_values = _room(qkv, context_keys), _room(qkv, context_values)
    with torch.cuda.device_of(qkv):
        attention_tiles.backward[(len(qkv) * heads,)](
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
    """Allocate a context's gradient in each row, [N, S, D]; fp32 if it will be summed over the rows."""
    dtype = qkv.dtype if len(context) == len(qkv) else torch.float32
    return qkv.new_empty(len(qkv), *context.shape[1:], dtype=dtype)


def _gathered(gradient: Tensor | None, context: Tensor | None, qkv: Tensor) -> Tensor:
    """Turn the gradient of a context in each row into the gradient of the context as it was given."""
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
    """Return the arguments of both kernels."""
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
        "BLOCK_L": tile_side(length),
        "BLOCK_K": tile_side(length + context),
        "BLOCK_D": tile_side(width // heads),
        # fp32 is multiplied in registers, and fewer warps have too few of them for a tile.
        "num_warps": 8 if qkv.dtype == torch.float32 else 4,
        "num_stages": 1,
    }


def _in_rows(context: Tensor, rows: int) -> Tensor:
    """Expand [N or 1, S, D] to [N, S, D] with a unit stride on the last axis, as a view where possible."""
    return (context if context.stride(-1) == 1 else context.contiguous()).expand(rows, -1, -1)
