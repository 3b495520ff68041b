"""Feature rows: a tensor whose first dimension is the rows, or a NamedTuple of such tensors.

A method whose similarity looks at tokens gives a NamedTuple, for example of token embeddings `[N,L,E]` and lengths
`[N]`. The engine gathers, slices and moves rows without knowing what they hold.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

Rows = Tensor | tuple[Tensor, ...]


def tensors_of(rows: Rows) -> tuple[Tensor, ...]:
    """Return the tensors of rows, one or several."""
    return (rows,) if isinstance(rows, Tensor) else tuple(rows)


def map_rows(function: Callable[[Tensor], Tensor], rows: Rows) -> Rows:
    """Apply a function to each tensor of rows; the result has the same type."""
    return rebuild(rows, [function(tensor) for tensor in tensors_of(rows)])


def rebuild(like: Rows, tensors: Sequence[Tensor]) -> Rows:
    """Return rows of the type of `like` that hold other tensors."""
    return tensors[0] if isinstance(like, Tensor) else type(like)(*tensors)


def to_float(rows: Rows) -> Rows:
    """Return rows whose floating-point tensors are fp32; masks and lengths stay as they are."""
    return map_rows(lambda tensor: tensor.float() if tensor.is_floating_point() else tensor, rows)


def take(rows: Rows, numbers: np.ndarray) -> Rows:
    """Return the rows with these numbers, int64 `[n]`; where they follow one another, a view instead of a copy."""
    if len(numbers) and numbers[0] >= 0 and (np.diff(numbers) == 1).all():
        return map_rows(lambda tensor: tensor[numbers[0] : numbers[-1] + 1], rows)
    return map_rows(lambda tensor: tensor[numbers], rows)


def join(batches: Sequence[Rows]) -> Rows:
    """Concatenate batches of rows. Raises ValueError where a tensor has another shape in another batch."""
    try:
        return rebuild(batches[0], [torch.cat(parts) for parts in zip(*map(tensors_of, batches), strict=True)])
    except RuntimeError as error:
        raise ValueError(f"the rows of two batches do not fit together ({error}); pad them to one length") from error
