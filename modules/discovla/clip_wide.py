"""Attention of one token of every frame to all tokens of its clip, in the place of that token's own frame.

Shapes: B clips, T frames, N = B·T rows (frames, or their captions), L tokens of a row, D width.
"""

import torch
from torch import Tensor, nn

from modules.clip import Block, KeysValues


def attend_clip_wide(
    block: Block, adapter: nn.Module, x: Tensor, place: Tensor, seen: Tensor, *, causal: bool = False
) -> Tensor:
    """Run the first half of a block, residual included: [N, L, D] -> [N, L, D].

    With y, the output of attention inside of a row, and z, that of the same query to all tokens of the clip, the token
    at `place` gets z + a(y), and all others y.

    Args:
        adapter: a.
        place: int64 [N].
        seen: bool [B, 1, 1, T·L], the tokens of a clip that z may see.
        causal: y sees earlier tokens only.
    """
    attn, (clips, tokens) = block.attn, (len(seen), seen.shape[-1])
    rows = torch.arange(len(x), device=x.device)
    q, k, v = attn.project(block.ln_1(x))
    y = attn.project_out(attn.attend(q, KeysValues(k, v), causal=causal))
    of_clip = KeysValues(k.reshape(clips, tokens, -1), v.reshape(clips, tokens, -1))
    z = attn.project_out(attn.attend(q[rows, place].unflatten(0, (clips, -1)), of_clip, seen)).flatten(0, 1)
    replaced = (z + adapter(y[rows, place])).unsqueeze(1)
    is_place = torch.arange(x.shape[1], device=x.device) == place.unsqueeze(1)
    return x + torch.where(is_place.unsqueeze(2), replaced.to(y.dtype), y)
