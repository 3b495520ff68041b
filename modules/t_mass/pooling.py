"""X-Pool (Gorti et al., CVPR 2022, arXiv 2203.15086) as T-MASS has it: a text pools the frames that it asks for.

    P_nb = LN2(W_o Σ_t softmax_t(q_n · k_bt / √E) v_bt + b_o)     q of LN1(text), k and v of LN1(frame), one head
    pooled_nb = LN3(P_nb + dropout(W_l P_nb + b_l))

Shapes: N texts, B videos, T frames, E joint embedding.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

DROPOUT = 0.3


class FrameKeys(NamedTuple):
    """What texts ask of B videos: `keys` and `values` float `[B,T,E]`, `frame_mask` bool `[B,T]`."""

    keys: Tensor
    values: Tensor
    frame_mask: Tensor


class CrossAttention(nn.Module):
    """The four projections, which start as identities."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = (identity(width) for _ in range(4))


class FramePooling(nn.Module):
    """The equations of the module's head. Padded frames have no share."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.cross_attn = CrossAttention(width)
        self.linear_proj = identity(width)
        self.layer_norm1, self.layer_norm2, self.layer_norm3 = (nn.LayerNorm(width) for _ in range(3))

    def queries(self, text: Tensor) -> Tensor:
        """Return the queries of texts `[N,E]`."""
        return self.cross_attn.q_proj(self.layer_norm1(text))

    def keys(self, frames: Tensor, frame_mask: Tensor) -> FrameKeys:
        """Return keys and values of frames `[B,T,E]`, of which `frame_mask`, bool `[B,T]`, are real."""
        frames = self.layer_norm1(frames)
        return FrameKeys(self.cross_attn.k_proj(frames), self.cross_attn.v_proj(frames), frame_mask)

    def forward(self, queries: Tensor, frames: FrameKeys, kept: Tensor | None = None) -> Tensor:
        """Pool every video for every text: `[N,E]` and B videos -> `[N,B,E]`.

        Args:
            kept: bool `[N,B,E]`, which values dropout keeps; None without dropout.
        """
        asked = torch.einsum("ne,bte->nbt", queries, frames.keys) / math.sqrt(queries.shape[1])
        shares = asked.masked_fill(~frames.frame_mask, -math.inf).softmax(dim=-1)
        gathered = torch.einsum("nbt,bte->nbe", shares, frames.values)
        pooled = self.layer_norm2(self.cross_attn.out_proj(gathered))
        more = self.linear_proj(pooled)
        if kept is not None:
            more = more * kept / (1 - DROPOUT)
        return self.layer_norm3(pooled + more)


def identity(width: int) -> nn.Linear:
    """Return a linear layer that changes nothing yet."""
    layer = nn.Linear(width, width)
    nn.init.eye_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer
