"""CLIP's two towers, a vision and a text transformer, each in three parts: `embed`, `blocks` and `pool`.

The `forward` of a tower is `pool(blocks(embed(x)))`. A method that changes what happens between the blocks runs that
loop itself, on the same parts; this file knows no prompts and no videos (a video is N = B·T images).

    vision   pixels [N, 3, H, W]  --embed-->  [N, 1 + P, D]  --blocks-->  [N, 1 + P, D]  --pool-->  [N, E]
    text     token ids [N, L]     --embed-->  [N, L, D]      --blocks-->  [N, L, D]      --pool-->  [N, E]

Shapes: N rows (images or texts), P patches, L words (tokens in a row), S context tokens, D width, E joint embedding.

Source: Radford et al., "Learning Transferable Visual Models From Natural Language Supervision", ICML 2021, section 2.
The parts that other backbones have instead are in `modules.rotary` and `modules.attention_pool`.
"""

import math
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from modules.attention import Attention, KeysValues
from modules.attention_pool import AttentionPool, MapReader
from modules.backbones import ACTIVATIONS, ARCHITECTURES, Backbone, CLIPArchitecture
from modules.block import MLP, Block, make_blocks
from modules.precision import FrozenWeightCache, compute_dtype
from modules.rotary import RotaryPositions

__all__ = [
    "ACTIVATIONS", "ARCHITECTURES", "CLIP", "MLP", "Attention", "Block", "CLIPArchitecture", "KeysValues",
    "make_blocks",
]  # fmt: skip


class VisionTransformer(nn.Module):
    """Images [N, 3, H, W], normalised with this CLIP's mean and deviation -> embeddings [N, E], not of unit length.

    C, the number of class tokens, is 1 or 0; `architecture.vision` says what else the tower is made of.
    """

    class_embedding: nn.Parameter | None
    ln_pre: nn.Module
    proj: nn.Parameter | None
    proj_bias: nn.Parameter | None

    def __init__(self, architecture: CLIPArchitecture) -> None:
        super().__init__()
        parts = architecture.vision
        self.image_size = architecture.image_size
        self.patch_size = architecture.patch_size
        self.grid = architecture.grid
        self.class_tokens = architecture.class_tokens
        self.width = width = architecture.vision_width
        activation, eps = parts.activation or architecture.activation, parts.norm_eps
        self.conv1 = nn.Conv2d(3, width, kernel_size=self.patch_size, stride=self.patch_size, bias=parts.patch_bias)
        self._patch_weight = FrozenWeightCache(partial(torch.flatten, start_dim=1))
        self.register_parameter(
            "class_embedding", nn.Parameter(torch.randn(width) * width**-0.5) if self.class_tokens else None
        )
        self.positional_embedding = nn.Parameter(torch.randn(self.class_tokens + self.grid**2, width) * width**-0.5)
        self.ln_pre = nn.LayerNorm(width, eps=eps) if parts.pre_norm else nn.Identity()
        layers, heads = architecture.vision_layers, architecture.vision_heads
        self.blocks = make_blocks(width, layers, heads, activation, eps, parts.hidden)
        self.ln_post = nn.LayerNorm(width, eps=eps)
        self.attention_pool = None
        if parts.pool == "attention":
            mlp = MLP(width, activation, hidden=parts.hidden or None)
            self.attention_pool = AttentionPool(width, parts.pool_heads, mlp, eps)
        out = torch.randn(width, architecture.embed_dim) * width**-0.5 if parts.projection != "none" else None
        self.register_parameter("proj", None if out is None else nn.Parameter(out))
        bias = torch.zeros(architecture.embed_dim) if parts.projection == "linear" else None
        self.register_parameter("proj_bias", None if bias is None else nn.Parameter(bias))
        if parts.rotary:
            rotary = RotaryPositions(self.class_tokens, self.grid, width, heads)
            for block in self.blocks:
                assert isinstance(block, Block)
                block.attn.rotary = rotary

    def embed(self, pixels: Tensor) -> Tensor:
        """Embed pixels [N, 3, H, W] as tokens [N, C + P, D]: the class token, then the patches row by row.

        Raises ValueError if H and W are not the image size that the position embeddings were made for.
        """
        height, width = pixels.shape[-2:]
        if (height, width) != (self.image_size, self.image_size):
            size = f"{self.image_size}x{self.image_size}"
            raise ValueError(
                f"This CLIP takes images of {size} pixels, not {height}x{width}: resize and crop them first."
            )
        # One product of whole patches is ten times as fast as this convolution on a GPU, and 1.3 times on a CPU.
        side = self.grid * self.patch_size  # what is left of a picture beside the last patch is never read
        pixels = pixels[..., :side, :side].to(compute_dtype(pixels))
        squares = pixels.unflatten(3, (self.grid, -1)).unflatten(2, (self.grid, -1))
        tokens = F.linear(
            squares.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2),
            self._patch_weight(self.conv1.weight),
            self.conv1.bias,
        )
        if self.class_embedding is not None:
            class_token = self.class_embedding.to(tokens.dtype).expand(len(tokens), 1, -1)
            tokens = torch.cat([class_token, tokens], dim=1)
        return self.ln_pre(tokens + self.positional_embedding)

    def step(
        self,
        block: nn.Module,
        tokens: Tensor,
        context: KeysValues | None = None,
        mask: Tensor | None = None,
        normal: Tensor | None = None,
    ) -> Tensor:
        """Run a block; of the last one, only the tokens that `pool` reads: [N, L, D] -> [N, L or 1, D].

        The arguments are those of `Block.first_token`.
        """
        assert isinstance(block, Block)
        if self.reads_first_token and block is self.blocks[-1]:
            return block.first_token(tokens, context, mask, normal)
        return block(tokens, context, mask, normal=normal)

    @property
    def reads_first_token(self) -> bool:
        """Whether `pool` reads the class token alone, so that the last block need not compute the others."""
        return self.attention_pool is None

    def pool(self, tokens: Tensor, mask: Tensor | None = None) -> Tensor:
        """Embed images by their tokens, [N, L, D] -> [N, E]: by the class token, which comes first, or by all of them.

        A tower with an attention pool reads every token that it is given and `mask`, bool [N, 1, 1, L], leaves.
        """
        if self.attention_pool is None:
            assert self.proj is not None
            return self.ln_post(tokens[:, 0]) @ self.proj
        pooled = self.attention_pool(self.ln_post(tokens), mask)
        return pooled if self.proj is None else F.linear(pooled, self.proj.t(), self.proj_bias)

    def pool_parameters(self) -> list[nn.Parameter]:
        """Return the parameters of `pool`."""
        parts = [*self.ln_post.parameters(), *(self.attention_pool.parameters() if self.attention_pool else ())]
        return parts + [parameter for parameter in (self.proj, self.proj_bias) if parameter is not None]

    def map_reader(self) -> MapReader | None:
        """Return what tells which patches matter where no class token does: the latent of the pool, which reads the
        tokens of any block as it reads those of the last one; None for a tower with a class token."""
        if self.class_tokens:
            return None
        assert self.attention_pool is not None
        return MapReader(self.attention_pool.attn, self.ln_post, self.attention_pool.query())

    def forward(self, pixels: Tensor) -> Tensor:
        tokens = self.embed(pixels)
        for block in self.blocks:
            tokens = self.step(block, tokens)
        return self.pool(tokens)


class TextTransformer(nn.Module):
    """Token ids [N, L] with L up to the context length -> embeddings [N, E], not of unit length.

    `architecture.text` says what the tower is made of.
    """

    projection_bias: nn.Parameter | None

    def __init__(self, architecture: CLIPArchitecture) -> None:
        super().__init__()
        parts = architecture.text
        self.context_length = architecture.context_length
        self.causal, self.reads_last, self.end_id = parts.causal, parts.end == "last", parts.end_id
        self.width = width = architecture.text_width
        self.token_embedding = nn.Embedding(architecture.vocab_size, width)
        nn.init.normal_(self.token_embedding.weight, std=0.02)
        self.positional_embedding = nn.Parameter(torch.randn(self.context_length, width) * 0.01)
        activation, eps = parts.activation or architecture.activation, parts.norm_eps
        layers, heads = architecture.text_layers, architecture.text_heads
        self.blocks = make_blocks(width, layers, heads, activation, eps, parts.hidden)
        self.ln_final = nn.LayerNorm(width, eps=eps)
        self.text_projection = nn.Parameter(torch.randn(width, architecture.embed_dim) * width**-0.5)
        bias = nn.Parameter(torch.zeros(architecture.embed_dim)) if parts.projection_bias else None
        self.register_parameter("projection_bias", bias)

    def embed(self, token_ids: Tensor) -> Tensor:
        """Embed integer ids [N, L] as tokens [N, L, D]; ValueError if L exceeds the context length."""
        length = token_ids.shape[-1]
        if length > self.context_length:
            raise ValueError(f"This CLIP reads at most {self.context_length} tokens, not {length}: lower --max_words.")
        return self.token_embedding(token_ids) + self.positional_embedding[:length]

    def end_positions(self, token_ids: Tensor) -> Tensor:
        """Return the place of the token that stands for each text, [N, L] -> int64 [N]: of the first END, which has the
        largest id of CLIP's vocabulary, or of the last token."""
        if self.reads_last:
            return torch.full_like(token_ids[:, 0], token_ids.shape[1] - 1, dtype=torch.int64)
        if self.end_id is not None:
            return (token_ids == self.end_id).int().argmax(dim=-1)
        return token_ids.argmax(dim=-1)

    def pool(self, end: Tensor) -> Tensor:
        """Embed texts by the tokens that stand for them, which have seen all others: [N, D] -> [N, E]."""
        embedding = self.ln_final(end) @ self.text_projection
        return embedding if self.projection_bias is None else embedding + self.projection_bias

    def pool_parameters(self) -> list[nn.Parameter]:
        """Return the parameters of `pool`."""
        parts = [*self.ln_final.parameters(), self.text_projection]
        return parts if self.projection_bias is None else [*parts, self.projection_bias]

    def forward(self, token_ids: Tensor) -> Tensor:
        tokens = self.embed(token_ids)
        *blocks, last = self.blocks
        for block in blocks:
            tokens = block(tokens, causal=self.causal)
        assert isinstance(last, Block)
        end = last.feed_forward(last.attend_from(tokens, self.end_positions(token_ids), causal=self.causal))
        return self.pool(end.squeeze(1))


class CLIP(nn.Module):
    """Both towers, with fresh weights, and the learned temperature: cosines are multiplied by `exp(logit_scale)`.

    `backbone` has the facts that belong to the weights; the default is OpenAI's CLIP. A backbone whose similarity
    is "sigmoid" has a `logit_bias` too, and for others it is None. It is no parameter: no score of a method has it, and
    only `modules.losses.SigmoidLoss` trains it, as its own.
    """

    logit_bias: Tensor | None

    def __init__(self, architecture: CLIPArchitecture, backbone: Backbone | None = None) -> None:
        super().__init__()
        self.architecture = architecture
        self.backbone = backbone or Backbone(architecture)
        assert self.backbone.architecture == architecture
        self.visual = VisionTransformer(architecture)
        self.text = TextTransformer(architecture)
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))
        sigmoid = self.backbone.similarity == "sigmoid"
        self.register_buffer("logit_bias", torch.tensor(-10.0) if sigmoid else None)
