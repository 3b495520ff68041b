"""Multi-head attention that takes what methods add to it: a context, masks, and deltas of the weights.

Shapes: N rows (images or texts), L tokens of a row, S context tokens, D width.
"""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from modules.deltas import Deltas
from modules.kernels import usable
from modules.kernels.attention import fits, short_attention
from modules.precision import FrozenWeightCache

# On a CPU, narrower heads use plain matrix products, because all our results of STOP (heads 10 wide) were computed that
# way. This is no longer faster: 22 gaps of 49 patches, forward and backward on one core, take 8.9 ms, and 7.7 ms with
# torch's fused kernel.
NARROW = 16


class KeysValues(NamedTuple):
    """Keys and values, each [N, S, D], of tokens without queries: others attend to them, and they have no output."""

    keys: Tensor
    values: Tensor

    def followed_by(self, others: "KeysValues") -> "KeysValues":
        """Return these, then the others, which are the same for all rows if their N is 1."""
        rows = len(self.keys)
        return KeysValues(
            torch.cat([self.keys, others.keys.expand(rows, -1, -1)], dim=1),
            torch.cat([self.values, others.values.expand(rows, -1, -1)], dim=1),
        )


class Attention(nn.Module):
    """Multi-head attention: queries come from x, keys and values from x followed by a context if one is given.

    If a `norm` is given, x has been through LayerNorm without gain and bias. The norm's gain and bias are then folded
    into the projection, only once if all these weights are frozen. STOP needs this: its attention map carries queries
    back through the projection to such an x. In the block itself it is about as fast as a second LayerNorm (82.8 and
    81.1 ms for half a block, 16 frames, forward and backward), and faster than gain and bias on the tokens (103.9 ms).
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.width, self.heads = width, heads
        self.in_proj_weight = nn.Parameter(torch.randn(3 * width, width) * width**-0.5)
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.out_proj = nn.Linear(width, width)
        nn.init.normal_(self.out_proj.weight, std=width**-0.5)
        nn.init.zeros_(self.out_proj.bias)
        self.in_deltas, self.out_deltas = Deltas(), Deltas()
        self._in, self._out = FrozenWeightCache(), FrozenWeightCache()
        self._normed_in, self._normed_in_bias = FrozenWeightCache(torch.mul), FrozenWeightCache(torch.addmv)

    def draw_as_torch(self) -> None:
        """Draw fresh weights as torch.nn.MultiheadAttention does, for attention that is not CLIP's."""
        nn.init.xavier_uniform_(self.in_proj_weight)
        self.out_proj.reset_parameters()
        nn.init.zeros_(self.out_proj.bias)

    def projection(self, norm: nn.LayerNorm | None = None) -> tuple[Tensor, Tensor]:
        """Return weight [3 D, D] and bias [3 D] of queries, keys and values, with the deltas that are matrices."""
        weight = self.in_deltas.merged(self.in_proj_weight)
        if norm is None:
            return self._in(weight), self.in_proj_bias
        return self._normed_in(weight, norm.weight), self._normed_in_bias(self.in_proj_bias, weight, norm.bias)

    @torch.no_grad()
    def key_weight(self, norm: nn.LayerNorm) -> Tensor:
        """Return the keys' part [D, D] of `projection`, without gradient, with LoRA in training too.

        Training leaves LoRA out of `projection`, because a product of two narrow matrices with the tokens costs less.
        """
        weight, left = self.projection(norm)[0], self.in_deltas.left_out(self.in_proj_weight)
        if left is not None:
            weight = weight + (left * norm.weight).to(weight.dtype)
        return weight.chunk(3)[1]

    def project_parts(self, x: Tensor, norm: nn.LayerNorm | None = None, first: int = 0, end: int = 3) -> Tensor:
        """Project [..., D] to the parts `first` to `end` of queries, keys and values, side by side."""
        weight, bias = self.projection(norm)
        if (first, end) != (0, 3):
            rows = slice(first * self.width, end * self.width)
            weight, bias = weight[rows], bias[rows]
        read = None if norm is None else lambda x: x * norm.weight + norm.bias
        return self.in_deltas.add_to(F.linear(x, weight, bias), x, row=first * self.width, read=read)

    def project(self, x: Tensor, norm: nn.LayerNorm | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Project [..., D] to queries, keys and values, each [..., D]."""
        q, k, v = self.project_parts(x, norm).chunk(3, dim=-1)
        return q, k, v

    def query(self, x: Tensor, norm: nn.LayerNorm | None = None) -> Tensor:
        """Project [..., D] to queries alone, [..., D]."""
        return self.project_parts(x, norm, end=1)

    def keys_values(self, x: Tensor, norm: nn.LayerNorm | None = None) -> KeysValues:
        """Project [..., D] to keys and values alone."""
        return KeysValues(*self.project_parts(x, norm, first=1).chunk(2, dim=-1))

    def attend(self, q: Tensor, seen: KeysValues, mask: Tensor | None = None, causal: bool = False) -> Tensor:
        """Return the values that queries [N, L, D] gather from S keys and values, the heads side by side: [N, L, D].

        `mask` is broadcastable to [N, heads, L, S].
        """
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in (q, *seen))
        if mask is None and not causal and q.shape[-1] < NARROW and q.device.type == "cpu":
            shares = (q * q.shape[-1] ** -0.5 @ k.transpose(-1, -2)).softmax(dim=-1)
            return (shares @ v).transpose(1, 2).flatten(2)
        if mask is not None and mask.is_floating_point():
            mask = mask.to(q.dtype)  # which autocast may have changed
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal).transpose(1, 2).flatten(2)

    def project_out(self, gathered: Tensor) -> Tensor:
        """Project the heads' values [..., D] to the output [..., D]."""
        weight = self._out(self.out_deltas.merged(self.out_proj.weight))
        return self.out_deltas.add_to(F.linear(gathered, weight, self.out_proj.bias), gathered)

    def forward(
        self,
        x: Tensor,
        context: KeysValues | None = None,
        mask: Tensor | None = None,
        causal: bool = False,
        norm: nn.LayerNorm | None = None,
    ) -> Tensor:
        """Let each token of x attend to x and to the context: [N, L, D] -> [N, L, D].

        Args:
            context: `keys_values` of S tokens for each row, or for all rows (N = 1). The result is that of attention
                over x and these tokens joined, without the outputs of these tokens, at less cost.
            mask: broadcastable to [N, heads, L, L + S], the context last; bool (True: may attend) or float (added).
            causal: token i of x sees tokens 0..i of x; the whole context stays visible.
            norm: the LayerNorm whose gain and bias are not yet applied to x.
        """
        qkv = self.project_parts(x, norm)
        others = 0 if context is None else context.keys.shape[1]
        if self._in_a_tile(qkv, others, mask):
            if causal:
                mask = _with_causal(mask, x.shape[1], x.shape[1] + others, x.device)
            keys, values = (None, None) if context is None else context
            return self.project_out(short_attention(qkv, keys, values, mask, heads=self.heads))
        q, *own = qkv.chunk(3, dim=-1)
        seen = KeysValues(*own)
        if context is not None:
            seen = seen.followed_by(context)
        if causal and (context is not None or mask is not None):
            # torch's own causal flag neither combines with a mask nor leaves the context visible
            mask, causal = _with_causal(mask, q.shape[1], seen.keys.shape[1], q.device), False
        return self.project_out(self.attend(q, seen, mask, causal))

    def _in_a_tile(self, qkv: Tensor, others: int, mask: Tensor | None) -> bool:
        """Return whether `short_attention` can do this, with `others` tokens in the context."""
        return (
            qkv.dtype in (torch.bfloat16, torch.float16)  # in fp32 it would use no tensor cores
            and usable(qkv)
            and fits(qkv.shape[1], others, self.width // self.heads)
            and (mask is None or mask.dtype == torch.bool)
        )


def _with_causal(mask: Tensor | None, length: int, keys: int, device: torch.device) -> Tensor:
    """Return the mask made causal: query i cannot see keys i+1 to length-1. Later keys are not affected."""
    future = torch.ones(length, keys, dtype=torch.bool, device=device).triu(1)
    future[:, length:] = False
    if mask is None:
        return ~future
    return mask & ~future if mask.dtype == torch.bool else mask.masked_fill(future, -math.inf)
