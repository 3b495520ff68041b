"""The pooling of SigLIP and Perception Encoder: a learned query, the latent, attends to all tokens of an image.

Source: Zhai et al., "Scaling Vision Transformers", CVPR 2022, section 3.4 (multi-head attention pooling); the layout of
weights is that of timm's `AttentionPoolLatent` (github.com/huggingface/pytorch-image-models).

Shapes: N images, L tokens, D width.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from modules.attention import Attention


class MapReader(NamedTuple):
    """An attention that reads tokens with a query of its own, [1, 1, D], through a norm."""

    attention: Attention
    norm: nn.LayerNorm
    query: Tensor


class AttentionPool(nn.Module):
    """Tokens [N, L, D] -> [N, D]: z = attention(latent, tokens), then z + MLP(norm z); there is no residual of z."""

    def __init__(self, width: int, heads: int, mlp: nn.Module, eps: float) -> None:
        super().__init__()
        self.latent = nn.Parameter(torch.randn(width) * width**-0.5)
        self.attn = Attention(width, heads)
        self.ln = nn.LayerNorm(width, eps=eps)
        self.mlp = mlp

    def query(self) -> Tensor:
        """Return the latent's query, [1, 1, D]; STOP's attention map uses it where there is no class token."""
        return self.attn.query(self.latent[None, None])

    def forward(self, tokens: Tensor, mask: Tensor | None = None) -> Tensor:
        """Pool tokens; `mask`, bool broadcastable to [N, heads, 1, L], says which of them are read."""
        query = self.query().expand(len(tokens), -1, -1)
        z = self.attn.project_out(self.attn.attend(query, self.attn.keys_values(tokens), mask)).squeeze(1)
        return z + self.mlp(self.ln(z))
