"""CLIP's two towers, a vision and a text transformer, with the seams `embed`, `blocks` and `pool` left open.

A tower's `forward` is nothing but `pool(blocks(embed(x)))`. A method that changes what happens between the blocks runs
that loop itself, on the same parts; this file knows no prompts and no videos (a video is N = B·T images).

    vision   pixels [N, 3, H, W]  --embed-->  [N, 1 + P, D]  --blocks-->  [N, 1 + P, D]  --pool-->  [N, E]
    text     token ids [N, L]     --embed-->  [N, L, D]      --blocks-->  [N, L, D]      --pool-->  [N, E]

Shapes: N rows (images or texts), P patches, L words (tokens in a row), S context tokens, D width, E joint embedding.

Source: Radford et al., "Learning Transferable Visual Models From Natural Language Supervision", ICML 2021, section 2.
Names inside a block and the draws for fresh weights follow https://github.com/openai/CLIP, where the rule for a block's
draws is given for the text tower; here it serves both.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from modules.backbones import ACTIVATIONS, ARCHITECTURES, Backbone, CLIPArchitecture
from modules.kernels import usable
from modules.kernels.attention import fits, short_attention
from modules.precision import FrozenWeightCache, compute_dtype, times

__all__ = ["ACTIVATIONS", "ARCHITECTURES", "CLIP", "CLIPArchitecture"]

NARROW = 16  # heads less wide than this are quicker on a CPU by plain products than by torch's fused kernel


class KeysValues(NamedTuple):
    """Of tokens that are attended to but ask nothing and have no output, each [N, S, D]."""

    keys: Tensor
    values: Tensor

    def followed_by(self, others: "KeysValues") -> "KeysValues":
        """These, then the others, which are the same for all rows where their N is 1."""
        rows = len(self.keys)
        return KeysValues(
            torch.cat([self.keys, others.keys.expand(rows, -1, -1)], dim=1),
            torch.cat([self.values, others.values.expand(rows, -1, -1)], dim=1),
        )


class Attention(nn.Module):
    """Multi-head attention: queries come from x, keys and values from x followed by a context where one is given.

    x may come normalised by `layer_norm` alone where `norm` is given: its gain and bias are then multiplied into the
    projection, once where all are frozen.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.width, self.heads = width, heads
        self.in_proj_weight = nn.Parameter(torch.randn(3 * width, width) * width**-0.5)
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.out_proj = nn.Linear(width, width)
        nn.init.normal_(self.out_proj.weight, std=width**-0.5)
        nn.init.zeros_(self.out_proj.bias)
        self._in, self._out = FrozenWeightCache(), FrozenWeightCache()
        self._normed_in, self._normed_in_bias = FrozenWeightCache(torch.mul), FrozenWeightCache(torch.addmv)

    def draw_as_torch(self) -> None:
        """Fresh weights as torch.nn.MultiheadAttention has them, for attention that is not CLIP's."""
        nn.init.xavier_uniform_(self.in_proj_weight)
        self.out_proj.reset_parameters()
        nn.init.zeros_(self.out_proj.bias)

    def projection(self, norm: nn.LayerNorm | None = None) -> tuple[Tensor, Tensor]:
        """Weight [3 D, D] and bias of queries, keys and values."""
        if norm is None:
            return self._in(self.in_proj_weight), self.in_proj_bias
        weight = self._normed_in(self.in_proj_weight, norm.weight)
        return weight, self._normed_in_bias(self.in_proj_bias, self.in_proj_weight, norm.bias)

    def project(self, x: Tensor, norm: nn.LayerNorm | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """[..., D] -> queries, keys and values, each [..., D]."""
        q, k, v = F.linear(x, *self.projection(norm)).chunk(3, dim=-1)
        return q, k, v

    def query(self, x: Tensor, norm: nn.LayerNorm | None = None) -> Tensor:
        """[..., D] -> queries alone, [..., D]."""
        weight, bias = self.projection(norm)
        return F.linear(x, weight[: self.width], bias[: self.width])

    def keys_values(self, x: Tensor, norm: nn.LayerNorm | None = None) -> KeysValues:
        """[..., D] -> keys and values alone."""
        weight, bias = self.projection(norm)
        return KeysValues(*F.linear(x, weight[self.width :], bias[self.width :]).chunk(2, dim=-1))

    def find(self, q: Tensor, seen: KeysValues, mask: Tensor | None = None, causal: bool = False) -> Tensor:
        """What queries [N, L, D] find in S keys and values, the heads side by side: [N, L, D]; `mask` broadcastable to
        [N, heads, L, S]."""
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in (q, *seen))
        if mask is None and not causal and q.shape[-1] < NARROW and q.device.type == "cpu":
            shares = (q * q.shape[-1] ** -0.5 @ k.transpose(-1, -2)).softmax(dim=-1)
            return (shares @ v).transpose(1, 2).flatten(2)
        if mask is not None and mask.is_floating_point():
            mask = mask.to(q.dtype)  # which autocast may have changed
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal).transpose(1, 2).flatten(2)

    def project_out(self, found: Tensor) -> Tensor:
        """[..., D] -> [..., D]."""
        return F.linear(found, self._out(self.out_proj.weight), self.out_proj.bias)

    def forward(
        self,
        x: Tensor,
        context: KeysValues | None = None,
        mask: Tensor | None = None,
        causal: bool = False,
        norm: nn.LayerNorm | None = None,
    ) -> Tensor:
        """Each token of x attends to x and to the context: [N, L, D] -> [N, L, D].

        Args:
            context: what `keys_values` makes of S tokens for each row, or for all (N = 1). The result is that of
                attention over x and these tokens joined, with their outputs dropped, at less cost.
            mask: broadcastable to [N, heads, L, L + S], the context last; bool (True: may attend) or float (added).
            causal: token i of x sees tokens 0..i of x; the whole context stays visible.
            norm: whose gain and bias x has not had yet.
        """
        qkv = F.linear(x, *self.projection(norm))
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
        return self.project_out(self.find(q, seen, mask, causal))

    def _in_a_tile(self, qkv: Tensor, others: int, mask: Tensor | None) -> bool:
        """Whether `short_attention` can do this, with so many tokens in the context."""
        return (
            usable(qkv)
            and qkv.dtype in (torch.bfloat16, torch.float16)  # in fp32 it would use no tensor cores
            and fits(qkv.shape[1], others, self.width // self.heads)
            and (mask is None or mask.dtype == torch.bool)
        )


def _with_causal(mask: Tensor | None, length: int, keys: int, device: torch.device) -> Tensor:
    """Join a mask (or none) with the rule that query i may not see keys i+1 to length-1; the keys after are free."""
    future = torch.ones(length, keys, dtype=torch.bool, device=device).triu(1)
    future[:, length:] = False
    if mask is None:
        return ~future
    return mask & ~future if mask.dtype == torch.bool else mask.masked_fill(future, -math.inf)


class MLP(nn.Module):
    """The two linear layers of a block: [..., D] -> [..., D], or [..., out]; inside 4 D wide, or `hidden`."""

    def __init__(self, width: int, activation: str, *, hidden: int | None = None, out: int | None = None) -> None:
        super().__init__()
        self.c_fc = nn.Linear(width, hidden or 4 * width)
        self.c_proj = nn.Linear(hidden or 4 * width, out or width)
        self.activation, scale = ACTIVATIONS[activation]
        self._in, self._in_bias, self._out = times(scale), times(scale), times(1 / scale)
        nn.init.normal_(self.c_fc.weight, std=(2 * width) ** -0.5)
        nn.init.normal_(self.c_proj.weight, std=width**-0.5)

    def forward(self, x: Tensor) -> Tensor:
        # s goes into the weights: the widest tensors of the tower are so spared two passes forward and two backward.
        hidden = self.activation(F.linear(x, self._in(self.c_fc.weight), self._in_bias(self.c_fc.bias)))
        return F.linear(hidden, self._out(self.c_proj.weight), self.c_proj.bias)


class Block(nn.Module):
    """A pre-norm transformer layer: x + attention(norm x), then x + MLP(norm x)."""

    def __init__(self, width: int, heads: int, activation: str) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(width)
        self.attn = Attention(width, heads)
        self.ln_2 = nn.LayerNorm(width)
        self.mlp = MLP(width, activation)
        self.recompute = False  # in backward, instead of keeping what is inside: less memory, a forward pass more

    def context(self, tokens: Tensor) -> KeysValues:
        """What makes tokens [N, S, D], normalised as x is, a context."""
        return self.attn.keys_values(self.ln_1(tokens))

    def attend(
        self,
        x: Tensor,
        context: KeysValues | None = None,
        mask: Tensor | None = None,
        causal: bool = False,
        normal: Tensor | None = None,
    ) -> Tensor:
        """First half, residual included: [N, L, D] -> [N, L, D].

        Args:
            normal: x after LayerNorm without gain and bias, where that is at hand.

        The other arguments are those of `Attention.forward`.
        """
        return self.run(self._attend, x, context, mask, causal, normal)

    def _attend(
        self, x: Tensor, context: KeysValues | None, mask: Tensor | None, causal: bool, normal: Tensor | None
    ) -> Tensor:
        normal, norm = self._normalised(x, normal)
        return x + self.attn(normal, context, mask, causal, norm)

    def _normalised(self, x: Tensor, normal: Tensor | None) -> tuple[Tensor, nn.LayerNorm | None]:
        """What goes into attention, and the norm whose gain and bias it has not had yet."""
        return (self.ln_1(x), None) if normal is None else (normal, self.ln_1)

    def feed_forward(self, x: Tensor) -> Tensor:
        """Second half, residual included: [N, L, D] -> [N, L, D]."""
        return self.run(self._feed_forward, x)

    def _feed_forward(self, x: Tensor) -> Tensor:
        return x + self.mlp(self.ln_2(x))

    def run(self, half: Callable[..., Tensor], *arguments: Any) -> Tensor:
        """`half(*arguments)`, a part of this block; recomputed in backward if that is asked for."""
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
        """[N, L, D] -> [N, L, D]; the arguments are those of `attend`."""
        return self.feed_forward(self.attend(x, context, mask, causal, normal))

    def first_token(
        self,
        x: Tensor,
        context: KeysValues | None = None,
        mask: Tensor | None = None,
        normal: Tensor | None = None,
    ) -> Tensor:
        """What `forward` makes of the first token alone: [N, L, D] -> [N, 1, D]; `mask` must not depend on the query.

        For a last block of which only the class token is read: the others then need keys and values only, which is a
        sixth of the work.
        """
        return self.feed_forward(self.run(self._first_attends, x, context, mask, normal))

    def _first_attends(
        self, x: Tensor, context: KeysValues | None, mask: Tensor | None, normal: Tensor | None
    ) -> Tensor:
        normal, norm = self._normalised(x, normal)
        seen = self.attn.keys_values(normal, norm)
        if context is not None:
            seen = seen.followed_by(context)
        return x[:, :1] + self.attn.project_out(self.attn.find(self.attn.query(normal[:, :1], norm), seen, mask))

    def attend_from(
        self, x: Tensor, places: Tensor, context: KeysValues | None = None, seen: Tensor | None = None
    ) -> Tensor:
        """What `attend` makes, with `causal`, of one token of each row alone: [N, L, D] -> [N, 1, D].

        For a last block of which only that token is read, as `first_token`.

        Args:
            places: int64 [N], where it stands.
            seen: bool [N or 1, 1, L, S], which tokens see which of the context; given where a context is.
        """
        rows = torch.arange(len(x), device=x.device)
        before = torch.arange(x.shape[1], device=x.device) < places.unsqueeze(-1)
        visible = [torch.ones_like(before[:, :1]), before]  # its own key first, then those of the tokens
        others = self.context(x)
        if context is not None:
            assert seen is not None
            others = others.followed_by(context)
            visible.append(seen.expand(len(x), -1, -1, -1)[rows, 0, places])
        return self.attend(x[rows, places].unsqueeze(1), others, torch.cat(visible, dim=1)[:, None, None])


def make_blocks(width: int, layers: int, heads: int, activation: str) -> nn.ModuleList:
    """A fresh stack of blocks whose depth does not change the variance of what leaves it."""
    blocks = nn.ModuleList()
    for _ in range(layers):
        block = Block(width, heads, activation)
        with torch.no_grad():  # every block adds to the residual stream twice
            block.attn.out_proj.weight.mul_((2 * layers) ** -0.5)
            block.mlp.c_proj.weight.mul_((2 * layers) ** -0.5)
        blocks.append(block)
    return blocks


class VisionTransformer(nn.Module):
    """Images [N, 3, H, W], normalised with this CLIP's mean and deviation -> embeddings [N, E], not of unit length."""

    def __init__(self, architecture: CLIPArchitecture) -> None:
        super().__init__()
        self.image_size = architecture.image_size
        self.patch_size = architecture.patch_size
        self.grid = architecture.grid
        self.width = width = architecture.vision_width
        self.conv1 = nn.Conv2d(3, width, kernel_size=self.patch_size, stride=self.patch_size, bias=False)
        self._patch_weight = FrozenWeightCache(partial(torch.flatten, start_dim=1))
        self.class_embedding = nn.Parameter(torch.randn(width) * width**-0.5)
        self.positional_embedding = nn.Parameter(torch.randn(1 + self.grid**2, width) * width**-0.5)
        self.ln_pre = nn.LayerNorm(width)
        self.blocks = make_blocks(width, architecture.vision_layers, architecture.vision_heads, architecture.activation)
        self.ln_post = nn.LayerNorm(width)
        self.proj = nn.Parameter(torch.randn(width, architecture.embed_dim) * width**-0.5)

    def embed(self, pixels: Tensor) -> Tensor:
        """Pixels [N, 3, H, W] -> tokens [N, 1 + P, D]: the class token, then the patches row by row.

        Raises ValueError if H and W are not the image size the position embeddings were made for.
        """
        height, width = pixels.shape[-2:]
        if (height, width) != (self.image_size, self.image_size):
            size = f"{self.image_size}x{self.image_size}"
            raise ValueError(
                f"This CLIP takes images of {size} pixels, not {height}x{width}: resize and crop them first."
            )
        # As one product of whole patches: on a GPU ten times as fast as this convolution, on a CPU as fast.
        squares = pixels.to(compute_dtype(pixels)).unflatten(3, (self.grid, -1)).unflatten(2, (self.grid, -1))
        patches = F.linear(
            squares.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2), self._patch_weight(self.conv1.weight)
        )
        class_token = self.class_embedding.to(patches.dtype).expand(len(patches), 1, -1)
        return self.ln_pre(torch.cat([class_token, patches], dim=1) + self.positional_embedding)

    def pool(self, tokens: Tensor) -> Tensor:
        """[N, any, D] with the class token first -> [N, E]."""
        return self.ln_post(tokens[:, 0]) @ self.proj

    def forward(self, pixels: Tensor) -> Tensor:
        tokens = self.embed(pixels)
        *blocks, last = self.blocks
        for block in blocks:
            tokens = block(tokens)
        assert isinstance(last, Block)
        return self.pool(last.first_token(tokens))


class TextTransformer(nn.Module):
    """Token ids [N, L] with L up to the context length -> embeddings [N, E], not of unit length."""

    def __init__(self, architecture: CLIPArchitecture) -> None:
        super().__init__()
        self.context_length = architecture.context_length
        self.width = width = architecture.text_width
        self.token_embedding = nn.Embedding(architecture.vocab_size, width)
        nn.init.normal_(self.token_embedding.weight, std=0.02)
        self.positional_embedding = nn.Parameter(torch.randn(self.context_length, width) * 0.01)
        self.blocks = make_blocks(width, architecture.text_layers, architecture.text_heads, architecture.activation)
        self.ln_final = nn.LayerNorm(width)
        self.text_projection = nn.Parameter(torch.randn(width, architecture.embed_dim) * width**-0.5)

    def embed(self, token_ids: Tensor) -> Tensor:
        """Integer ids [N, L] -> [N, L, D]; raises ValueError if L exceeds the context length."""
        length = token_ids.shape[-1]
        if length > self.context_length:
            raise ValueError(f"This CLIP reads at most {self.context_length} tokens, not {length}: lower --max_words.")
        return self.token_embedding(token_ids) + self.positional_embedding[:length]

    @staticmethod
    def end_positions(token_ids: Tensor) -> Tensor:
        """[N, L] -> int64 [N]: where each text ends, which is at its largest id, END being the vocabulary's last."""
        return token_ids.argmax(dim=-1)

    def pool(self, end: Tensor) -> Tensor:
        """[N, D] -> [N, E]: the token that a text ends with stands for it, having seen all before it."""
        return self.ln_final(end) @ self.text_projection

    def forward(self, token_ids: Tensor) -> Tensor:
        tokens = self.embed(token_ids)
        *blocks, last = self.blocks
        for block in blocks:
            tokens = block(tokens, causal=True)
        assert isinstance(last, Block)
        end = last.feed_forward(last.attend_from(tokens, self.end_positions(token_ids)))
        return self.pool(end.squeeze(1))


class CLIP(nn.Module):
    """Both towers, with fresh weights, and the learned temperature: cosines are multiplied by `exp(logit_scale)`.

    `backbone` says what belongs to these weights beside them; left out, it is what OpenAI's CLIP has. A backbone whose
    similarity is "sigmoid" has a learned `logit_bias` too (`modules.losses.SigmoidLoss`); for others it is None.
    """

    logit_bias: nn.Parameter | None

    def __init__(self, architecture: CLIPArchitecture, backbone: Backbone | None = None) -> None:
        super().__init__()
        self.architecture = architecture
        self.backbone = backbone or Backbone(architecture)
        assert self.backbone.architecture == architecture
        self.visual = VisionTransformer(architecture)
        self.text = TextTransformer(architecture)
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))
        sigmoid = self.backbone.similarity == "sigmoid"
        self.register_parameter("logit_bias", nn.Parameter(torch.tensor(-10.0)) if sigmoid else None)
