"""CLIP's two towers, a vision and a text transformer, each in three parts: `embed`, `blocks` and `pool`.

The `forward` of a tower is `pool(blocks(embed(x)))`. A method that changes what happens between the blocks runs that
loop itself, on the same parts; this file knows no prompts and no videos (a video is N = B·T images).

    vision   pixels [N, 3, H, W]  --embed-->  [N, 1 + P, D]  --blocks-->  [N, 1 + P, D]  --pool-->  [N, E]
    text     token ids [N, L]     --embed-->  [N, L, D]      --blocks-->  [N, L, D]      --pool-->  [N, E]

Shapes: N rows (images or texts), P patches, L words (tokens in a row), S context tokens, D width, E joint embedding.

Source: Radford et al., "Learning Transferable Visual Models From Natural Language Supervision", ICML 2021, section 2.
Names inside a block and the initial values of fresh weights follow https://github.com/openai/CLIP. Its rule for the
blocks of the text tower serves both towers here.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from modules.attention import Attention, KeysValues
from modules.backbones import ACTIVATIONS, ARCHITECTURES, Backbone, CLIPArchitecture
from modules.deltas import Deltas, Layer
from modules.precision import FrozenWeightCache, compute_dtype, times

__all__ = ["ACTIVATIONS", "ARCHITECTURES", "CLIP", "Attention", "Block", "CLIPArchitecture", "KeysValues"]


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

    def __init__(self, width: int, heads: int, activation: str) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(width)
        self.attn = Attention(width, heads)
        self.ln_2 = nn.LayerNorm(width)
        self.mlp = MLP(width, activation)
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
        seen = self.attn.keys_values(normal, norm)
        if context is not None:
            seen = seen.followed_by(context)
        return x[:, :1] + self.attn.project_out(self.attn.attend(self.attn.query(normal[:, :1], norm), seen, mask))

    def attend_from(
        self, x: Tensor, places: Tensor, context: KeysValues | None = None, seen: Tensor | None = None
    ) -> Tensor:
        """Return one token of each row of `attend` with `causal`: [N, L, D] -> [N, 1, D].

        For a last block, if only that token is read; compare `first_token`.

        Args:
            places: int64 [N], the token's place in each row.
            seen: bool [N or 1, 1, L, S], which tokens see which of the context; needed with a context.
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
    """Return a fresh stack of blocks whose depth does not change the variance of its output."""
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
        """Embed pixels [N, 3, H, W] as tokens [N, 1 + P, D]: the class token, then the patches row by row.

        Raises ValueError if H and W are not the image size that the position embeddings were made for.
        """
        height, width = pixels.shape[-2:]
        if (height, width) != (self.image_size, self.image_size):
            size = f"{self.image_size}x{self.image_size}"
            raise ValueError(
                f"This CLIP takes images of {size} pixels, not {height}x{width}: resize and crop them first."
            )
        # One product of whole patches is ten times as fast as this convolution on a GPU, and 1.3 times on a CPU.
        squares = pixels.to(compute_dtype(pixels)).unflatten(3, (self.grid, -1)).unflatten(2, (self.grid, -1))
        patches = F.linear(
            squares.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2), self._patch_weight(self.conv1.weight)
        )
        class_token = self.class_embedding.to(patches.dtype).expand(len(patches), 1, -1)
        return self.ln_pre(torch.cat([class_token, patches], dim=1) + self.positional_embedding)

    def pool(self, tokens: Tensor) -> Tensor:
        """Embed images by their class tokens: [N, any, D] with the class token first -> [N, E]."""
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
        """Embed integer ids [N, L] as tokens [N, L, D]; ValueError if L exceeds the context length."""
        length = token_ids.shape[-1]
        if length > self.context_length:
            raise ValueError(f"This CLIP reads at most {self.context_length} tokens, not {length}: lower --max_words.")
        return self.token_embedding(token_ids) + self.positional_embedding[:length]

    @staticmethod
    def end_positions(token_ids: Tensor) -> Tensor:
        """Return the place of END in each text, [N, L] -> int64 [N]; it is the vocabulary's last, so largest, id."""
        return token_ids.argmax(dim=-1)

    def pool(self, end: Tensor) -> Tensor:
        """Embed texts by their END tokens, which have seen all others: [N, D] -> [N, E]."""
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

    `backbone` has the facts that belong to the weights; the default is OpenAI's CLIP. A backbone whose similarity
    is "sigmoid" has a learned `logit_bias` too (`modules.losses.SigmoidLoss`); for others it is None.
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
