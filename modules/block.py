"""A transformer block of CLIP in its parts, with the seams that methods need.

Names inside a block and the initial values of fresh weights follow https://github.com/openai/CLIP. Its rule for the
blocks of the text tower serves both towers here.

Shapes: N rows (images or texts), L tokens of a row, S context tokens, D width.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from modules.attention import Attention, KeysValues
from modules.backbones import ACTIVATIONS
from modules.deltas import Deltas, Layer
from modules.precision import times


class MLP(nn.Module):
    """The two linear layers of a block: [..., D] -> [..., D], or [..., out]; inside 4 D wide, or `hidden`."""

    def __init__(self, width: int, activation: str, *, hidden: int | None = None, out: int | None = None) -> None:
        super().__init__()
        self.c_fc = nn.Linear(width, hidden or 4 * width)
        self.c_proj = nn.Linear(hidden or 4 * width, out or width)
        self.activation, self.scale = ACTIVATIONS[activation]
        self.in_deltas, self.out_deltas = Deltas(), Deltas()
        self._in, self._in_bias, self._out = times(self.scale), times(self.scale), times(1 / self.scale)
        nn.init.normal_(self.c_fc.weight, std=(2 * width) ** -0.5)
        nn.init.normal_(self.c_proj.weight, std=width**-0.5)

    def forward(self, x: Tensor) -> Tensor:
        # We fold s into the weights. This saves two passes over the tower's widest tensors forward, and two backward.
        # An MLP of ViT-B/32 on 16 frames, forward and backward on one CPU core: 135 ms, and 165 as z sigmoid(1.702 z).
        hidden = F.linear(x, self._in(self.in_deltas.merged(self.c_fc.weight)), self._in_bias(self.c_fc.bias))
        hidden = self.activation(self.in_deltas.add_to(hidden, x, times=self.scale))
        out = F.linear(hidden, self._out(self.out_deltas.merged(self.c_proj.weight)), self.c_proj.bias)
        return self.out_deltas.add_to(out, hidden, read=lambda scaled: scaled / self.scale)


class Block(nn.Module):
    """A pre-norm transformer layer: x + attention(norm x), then x + MLP(norm x)."""

    def __init__(self, width: int, heads: int, activation: str, eps: float = 1e-5, hidden: int = 0) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(width, eps=eps)
        self.attn = Attention(width, heads)
        self.ln_2 = nn.LayerNorm(width, eps=eps)
        self.mlp = MLP(width, activation, hidden=hidden or None)
        self.recompute = False  # True: compute the inside again in backward; less memory, one more forward pass

    def layers(self) -> dict[str, Layer]:
        """Return the linear layers by name, for deltas; qkv is q, k and v in one."""
        width, hidden, of_qkv = self.attn.width, self.mlp.c_fc.out_features, self.attn.in_deltas
        return {
            "q": Layer(of_qkv, 0, width, width),
            "k": Layer(of_qkv, width, width, width),
            "v": Layer(of_qkv, 2 * width, width, width),
            "qkv": Layer(of_qkv, 0, 3 * width, width),
            "out": Layer(self.attn.out_deltas, 0, width, width),
            "c_fc": Layer(self.mlp.in_deltas, 0, hidden, width),
            "c_proj": Layer(self.mlp.out_deltas, 0, width, hidden),
        }

    def context(self, tokens: Tensor) -> KeysValues:
        """Return keys and values of tokens [N, S, D], normalised as x is."""
        return self.attn.keys_values(self.ln_1(tokens))

    def attend(
        self,
        x: Tensor,
        context: KeysValues | None = None,
        mask: Tensor | None = None,
        causal: bool = False,
        normal: Tensor | None = None,
    ) -> Tensor:
        """Run the first half, residual included: [N, L, D] -> [N, L, D].

        Args:
            normal: x after LayerNorm without gain and bias, if the caller has it.

        The other arguments are those of `Attention.forward`.
        """
        return self.run(self._attend, x, context, mask, causal, normal)

    def _attend(
        self, x: Tensor, context: KeysValues | None, mask: Tensor | None, causal: bool, normal: Tensor | None
    ) -> Tensor:
        normal, norm = self._normalised(x, normal)
        return x + self.attn(normal, context, mask, causal, norm)

    def _normalised(self, x: Tensor, normal: Tensor | None) -> tuple[Tensor, nn.LayerNorm | None]:
        """Return the input of attention, and the norm whose gain and bias are not yet applied to it."""
        return (self.ln_1(x), None) if normal is None else (normal, self.ln_1)

    def feed_forward(self, x: Tensor) -> Tensor:
        """Run the second half, residual included: [N, L, D] -> [N, L, D]."""
        return self.run(self._feed_forward, x)

    def _feed_forward(self, x: Tensor) -> Tensor:
        return x + self.mlp(self.ln_2(x))

    def run(self, half: Callable[..., Any], *arguments: Any) -> Any:
        """Call `half(*arguments)`, a part of this block, and compute it again in backward if `recompute` is set."""
        if self.recompute and torch.is_grad_enabled():
            return checkpoint(half, *arguments, use_reentrant=False)
        return half(*arguments)

    def forward(
        self,
        x: Tensor,
        context: KeysValues | None = None,
        mask: Tensor | None = None,
        causal: bool = False,
        normal: Tensor | None = None,
    ) -> Tensor:
        """Run the block: [N, L, D] -> [N, L, D]; the arguments are those of `attend`."""
        return self.feed_forward(self.attend(x, context, mask, causal, normal))

    def first_token(
        self,
        x: Tensor,
        context: KeysValues | None = None,
        mask: Tensor | None = None,
        normal: Tensor | None = None,
    ) -> Tensor:
        """Return only the first token of `forward`: [N, L, D] -> [N, 1, D]; `mask` must not depend on the query.

        For a last block, if only its class token is read: the other tokens then need keys and values only, which is a
        sixth of the work.
        """
        return self.feed_forward(self.attend_first(x, context, mask, normal))

    def attend_first(
        self,
        x: Tensor,
        context: KeysValues | None = None,
        mask: Tensor | None = None,
        normal: Tensor | None = None,
    ) -> Tensor:
        """Return only the first token of `attend`: [N, L, D] -> [N, 1, D]; compare `first_token`."""
        return self.run(self._first_attends, x, context, mask, normal)

    def _first_attends(
        self, x: Tensor, context: KeysValues | None, mask: Tensor | None, normal: Tensor | None
    ) -> Tensor:
        normal, norm = self._normalised(x, normal)
        seen = self.attn.own_keys_values(normal, norm)
        if context is not None:
            seen = seen.followed_by(context)
        return x[:, :1] + self.attn.project_out(self.attn.attend(self.attn.query(normal[:, :1], norm), seen, mask))

    def attend_from(
        self,
        x: Tensor,
        places: Tensor,
        context: KeysValues | None = None,
        seen: Tensor | None = None,
        causal: bool = True,
    ) -> Tensor:
        """Return one token of each row of `attend`: [N, L, D] -> [N, 1, D].

        For a last block, if only that token is read; compare `first_token`.

        Args:
            places: int64 [N], the token's place in each row.
            seen: bool [N or 1, 1, L, S], which tokens see which of the context; needed with a context.
        """
        rows = torch.arange(len(x), device=x.device)
        order = torch.arange(x.shape[1], device=x.device)
        before = order < places.unsqueeze(-1) if causal else order != places.unsqueeze(-1)
        visible = [torch.ones_like(before[:, :1]), before]  # its own key first, then those of the tokens
        others = self.context(x)
        if context is not None:
            assert seen is not None
            others = others.followed_by(context)
            visible.append(seen.expand(len(x), -1, -1, -1)[rows, 0, places])
        return self.attend(x[rows, places].unsqueeze(1), others, torch.cat(visible, dim=1)[:, None, None])


def make_blocks(
    width: int, layers: int, heads: int, activation: str, eps: float = 1e-5, hidden: int = 0
) -> nn.ModuleList:
    """Return a fresh stack of blocks whose depth does not change the variance of its output."""
    blocks = nn.ModuleList()
    for _ in range(layers):
        block = Block(width, heads, activation, eps, hidden)
        with torch.no_grad():  # every block adds to the residual stream twice
            block.attn.out_proj.weight.mul_((2 * layers) ** -0.5)
            block.mlp.c_proj.weight.mul_((2 * layers) ** -0.5)
        blocks.append(block)
    return blocks
