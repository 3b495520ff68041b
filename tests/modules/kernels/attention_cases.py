"""Inputs of attention in one tile, and what they give with torch's own attention over joined keys."""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

ON_GPU = torch.cuda.is_available()
DEVICE = "cuda" if ON_GPU else "cpu"
FP32 = 5e-6  # largest allowed error of fp32 against fp64
HALF = torch.bfloat16 if ON_GPU else torch.float16  # triton's interpreter multiplies the bits of bf16 as integers


@dataclass(frozen=True)
class Case:
    rows: int
    length: int
    context: int
    heads: int
    head_width: int
    shared: bool = False  # one context for all rows
    mask: tuple[int, int] | None = None  # its N and its L, in full or 1


CASES = {
    "vision": Case(2, 50, 8, 2, 64),
    "vision without context": Case(2, 50, 0, 2, 64),
    "vision, some keys hidden": Case(2, 50, 8, 2, 64, mask=(2, 1)),
    "prompter": Case(2, 49, 0, 3, 10),
    "text": Case(2, 32, 4, 2, 64, shared=True, mask=(1, 32)),
    "text, context of each row": Case(2, 32, 4, 2, 64, mask=(2, 32)),
    "one token": Case(3, 1, 0, 2, 16),
    "one token, one context token": Case(2, 1, 1, 1, 5, shared=True),
    "one row, shared": Case(1, 7, 3, 2, 8, shared=True, mask=(1, 1)),
    "full tiles": Case(1, 64, 64, 1, 64, shared=True),
    "just over a tile": Case(2, 17, 17, 2, 17, mask=(2, 17)),
}


def inputs_of(case: Case, dtype: torch.dtype = torch.float32) -> tuple[list[Tensor], Tensor | None, Tensor]:
    """Return qkv and the context, which require gradients; a mask; and the gradient of the result."""
    source = torch.Generator().manual_seed(0)
    width = case.heads * case.head_width

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=source).to(DEVICE, dtype)

    inputs = [draw(case.rows, case.length, 3 * width)]
    if case.context:
        inputs += [draw(1 if case.shared else case.rows, case.context, width) for _ in range(2)]
    mask = None
    if case.mask is not None:
        rows, queries = case.mask
        mask = torch.rand(rows, 1, queries, case.length + case.context, generator=source) < 0.6
        if queries > 1:
            mask[..., : case.length] &= torch.ones(queries, queries, dtype=torch.bool).tril()
            mask[..., : case.length] |= torch.eye(queries, dtype=torch.bool)
        mask[..., 0] = True
        mask = mask.to(DEVICE)
    return [part.requires_grad_() for part in inputs], mask, draw(case.rows, case.length, width)


def reference(inputs: list[Tensor], mask: Tensor | None, heads: int) -> Tensor:
    """Return torch's attention, with the context's keys and values appended to those of the tokens."""
    q, k, v = inputs[0].chunk(3, dim=-1)
    if len(inputs) > 1:
        k, v = (
            torch.cat([own, other.expand(len(q), -1, -1)], 1) for own, other in zip((k, v), inputs[1:], strict=True)
        )
    q, k, v = (part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in (q, k, v))
    mask = None if mask is None else torch.atleast_2d(mask)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).flatten(2)


def exact(inputs: list[Tensor], mask: Tensor | None, gradient: Tensor, heads: int) -> list[Tensor]:
    """Return result and gradients in fp64."""
    doubles = [part.detach().double().requires_grad_() for part in inputs]
    found = reference(doubles, mask, heads)
    return [found, *torch.autograd.grad(found, doubles, gradient.double())]


def of_kernels(attend: Any, inputs: list[Tensor], mask: Tensor | None, gradient: Tensor, heads: int) -> list[Tensor]:
    found = attend(*inputs, mask=mask, heads=heads)
    return [found, *torch.autograd.grad(found, inputs, gradient)]


def assert_close(ours: list[Tensor], theirs: list[Tensor], tolerance: float) -> None:
    """Check each tensor to within a share of its largest number."""
    assert len(ours) == len(theirs)
    for our, their in zip(ours, theirs, strict=True):
        assert our.shape == their.shape
        largest = max(1.0, their.abs().max().item())
        torch.testing.assert_close(our.double(), their.double(), rtol=0, atol=tolerance * largest)
