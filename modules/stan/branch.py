"""STAN's branch beside CLIP's visual tower: it reads the outputs of its last K blocks and relates the frames of a clip.

With V_k the output of the k-th of these blocks, and the state of the branch one class token c of the clip and patch
tokens h of its frames, a level k = 1..K does:

    c, h <- what V_1 begins with; after that  c + mean over t of V_k's class tokens,  h + V_k's patch tokens
    h    <- cross-frame part (`modules.stan.temporal`); the class token skips it
    c, h <- intra-frame part: a CLIP block on [c; h[t]] of each frame, where the outputs for c are averaged

Shapes: B clips, T frames, L patches of a frame, D width, K levels. V_k are `[B,T,1+L,D]`, c is `[B,D]`, h is
`[B,T,L,D]`, and `frame_mask` is bool `[B,T]`, true where the frame is real; padding changes nothing of real frames.

Source: Liu et al., "Revisiting Temporal Modeling for CLIP-based Image-to-Video Knowledge Transferring", CVPR 2023,
arXiv 2301.11116; https://github.com/farewellthree/STAN.
"""

import copy
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from modules.block import Block
from modules.stan.drop_path import DropPath
from modules.stan.temporal import TemporalAttention, TemporalConvolution
from modules.stan.time_table import TimeTable

TemporalModule = Literal["self", "conv"]
Embeddings = Literal["released", "paper"]


def mean_of_frames(x: Tensor, frame_mask: Tensor) -> Tensor:
    """Return the mean over real frames, in fp32 for x in half precision: `[B,T,D]` -> `[B,D]`."""
    weight = frame_mask.to(torch.promote_types(x.dtype, torch.float32)).unsqueeze(-1)
    return (x * weight).sum(dim=1) / weight.sum(dim=1)


class Level(nn.Module):
    """One level: the cross-frame part, then the intra-frame part, whose block starts as a copy of a block of CLIP."""

    def __init__(self, block: Block, temporal: TemporalModule, drop_path: float, projected: bool) -> None:
        super().__init__()
        width, heads = block.attn.width, block.attn.heads
        self.temporal: TemporalAttention | TemporalConvolution = (
            TemporalAttention(width, heads, drop_path) if temporal == "self" else TemporalConvolution(width)
        )
        self.spatial = copy.deepcopy(block).requires_grad_(True)
        self.drop_path = DropPath(drop_path)
        self.projection = nn.Linear(width, width, bias=False) if projected else None  # W_proj of the paper
        if self.projection is not None:
            nn.init.eye_(self.projection.weight)

    def forward(self, c: Tensor, h: Tensor, frame_mask: Tensor, class_only: bool = False) -> tuple[Tensor, Tensor]:
        """Return c and h after the level; with `class_only`, h is that before the intra-frame part."""
        return self.spatial.run(self._relate, c, h, frame_mask, class_only)  # type: ignore[no-any-return]

    def _relate(self, c: Tensor, h: Tensor, frame_mask: Tensor, class_only: bool) -> tuple[Tensor, Tensor]:
        h = self.temporal(h, frame_mask)
        block, clips, frames = self.spatial, *h.shape[:2]
        repeated = c[:, None, None].expand(-1, frames, 1, -1).to(h.dtype)
        f = torch.cat([repeated, h], dim=2).flatten(0, 1)  # f_t = [c; h[t]], [B T, 1 + L, D]
        normal = block.ln_1(f)
        if class_only:  # patch tokens then need keys and values alone
            query, seen = block.attn.query(normal[:, :1]), block.attn.own_keys_values(normal)
            a = block.attn.project_out(block.attn.attend(query, seen))
        else:
            a = block.attn(normal)
        a = self.drop_path(a).unflatten(0, (clips, frames))
        c = c + mean_of_frames(a[:, :, 0], frame_mask)
        c = c + block.mlp(block.ln_2(c))
        if not class_only:
            h = h + a[:, :, 1:]
            h = h + block.mlp(block.ln_2(h))
        return c, h


class Branch(nn.Module):
    """All levels, and the time table.

    Args:
        blocks: CLIP's last K blocks, which the intra-frame parts start as copies of.
        positions: CLIP's own positions, `[1+L,D]`; a table of the branch's own starts as a copy of them.
        temporal: the cross-frame part.
        embeddings: released: c begins as half of mean class token + class embedding + its position, and h has CLIP's
            own positions, so that they learn from both; paper: c begins as the mean class token, and the positions of
            h are a table of the branch's own.
        projected: V_k is multiplied by a learned matrix for k > 1 (W_proj of the paper), which starts as the identity.
        cls_residue: for k > 1 the class tokens of every second frame alone are averaged in training.
        drop_path: the rate of the last level; those before it rise to it from zero.
        time_frames: see `TimeTable`.
    """

    positions: nn.Parameter | None

    def __init__(
        self,
        blocks: Sequence[Block],
        positions: Tensor,
        *,
        temporal: TemporalModule,
        embeddings: Embeddings,
        projected: bool,
        cls_residue: bool,
        drop_path: float,
        time_frames: int,
    ) -> None:
        super().__init__()
        last = max(1, len(blocks) - 1)
        self.levels = nn.ModuleList(
            Level(block, temporal, drop_path * k / last, projected and k > 0) for k, block in enumerate(blocks)
        )
        self.time = TimeTable(blocks[0].attn.width, time_frames)
        own = embeddings == "paper"
        self.register_parameter("positions", nn.Parameter(positions[1:].detach().clone()) if own else None)
        self.cls_residue = cls_residue

    def forward(self, taps: Sequence[Tensor], class_embedding: Tensor, positions: Tensor, frame_mask: Tensor) -> Tensor:
        """Return the class token of every clip after the last level, `[B,D]`.

        Args:
            taps: V_1 to V_K.
            class_embedding: CLIP's, `[D]`.
            positions: CLIP's, `[1+L,D]`.
        """
        c, h = self.begin(taps[0], class_embedding, positions, frame_mask)
        for k, level in enumerate(self.levels):
            if k > 0:
                c, h = self.add(k, taps[k], c, h, frame_mask)
            c, h = level(c, h, frame_mask, k == len(self.levels) - 1)
        return c

    def begin(self, v: Tensor, class_embedding: Tensor, positions: Tensor, frame_mask: Tensor) -> tuple[Tensor, Tensor]:
        """Return c and h as the first level gets them."""
        c, h = mean_of_frames(v[:, :, 0], frame_mask), v[:, :, 1:]
        time = self.time(h.shape[1]).unsqueeze(1)
        if self.positions is not None:
            return c, h + self.positions + time
        return (c + class_embedding + positions[0]) / 2, h + positions[1:] + time

    def add(self, k: int, v: Tensor, c: Tensor, h: Tensor, frame_mask: Tensor) -> tuple[Tensor, Tensor]:
        """Return c and h as level k > 0 gets them, counted from 0."""
        level = self.levels[k]
        assert isinstance(level, Level)
        if level.projection is not None:
            v = level.projection(v)
        if self.cls_residue and self.training:
            frame_mask = frame_mask.clone()
            frame_mask[:, 1::2] = False
        return c + mean_of_frames(v[:, :, 0], frame_mask), h + v[:, :, 1:]
