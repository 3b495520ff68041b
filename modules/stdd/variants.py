"""What the released code offers in the place of space-time cross attention. Each runs one block of CLIP.

Shapes: B clips, T frames, L = 1 + N tokens of a frame, D width.
"""

from collections.abc import Callable
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn

from modules.attention import Attention, KeysValues
from modules.block import Block
from modules.stdd.neighbours import from_frame

Relate = Callable[[Tensor, Tensor], Tensor]  # keys or values [B,T,L,D] and frame_mask [B,T] -> [B,T,any,D]


class OwnFrame(nn.Module):
    """CLIP's block on every frame (`none`); the other variants inherit what they do not change."""

    def forward(self, block: Block, x: Tensor, frame_mask: Tensor, first_only: bool = False) -> Tensor:
        """Run the block on the frames of clips.

        Args:
            x: `[B,T,L,D]`, the class token first.
            frame_mask: bool `[B,T]`.
            first_only: compute only the class tokens, for a last block of which nothing else is read.

        Returns:
            `[B,T,L,D]`, or `[B,T,1,D]` with `first_only`.
        """
        return self.run(block, x, None, first_only)

    def run(self, block: Block, x: Tensor, context: KeysValues | None, first_only: bool) -> Tensor:
        run = block.first_token if first_only else block
        return run(x.flatten(0, 1), context).unflatten(0, x.shape[:2])


class RelatedKeys(OwnFrame):
    """A block whose tokens attend to keys and values that also come from other frames; it has no parameters."""

    def __init__(self, relate: Relate) -> None:
        super().__init__()
        self.relate = relate

    def forward(self, block: Block, x: Tensor, frame_mask: Tensor, first_only: bool = False) -> Tensor:
        return block.feed_forward(block.run(self._attend, block, x, frame_mask, first_only))

    def _attend(self, block: Block, x: Tensor, frame_mask: Tensor, first_only: bool) -> Tensor:
        read = slice(1) if first_only else slice(None)
        normal = block.ln_1(x)
        if first_only:
            query, seen = block.attn.query(normal[:, :, read]), block.attn.keys_values(normal)
        else:
            query, *parts = block.attn.project(normal)
            seen = KeysValues(*parts)
        seen = KeysValues(*(self.relate(part, frame_mask).flatten(0, 1) for part in seen))
        gathered = block.attn.attend(query.flatten(0, 1), seen).unflatten(0, x.shape[:2])
        return x[:, :, read] + block.attn.project_out(gathered)


def expand_view(part: Tensor, frame_mask: Tensor, *, steps: int) -> Tensor:
    """Join keys (or values) of a frame with those of the frames up to `steps` before and after it.

    Source: Open-VCLIP (Weng et al., ICML 2023). A frame that does not exist has keys and values of zero, which are not
    masked: they get their share of the softmax.
    """
    shifts = [step for k in range(1, steps + 1) for step in (k, -k)]
    return torch.cat([part, *(from_frame(part, step, frame_mask) for step in shifts)], dim=2)


def shift_channels(part: Tensor, frame_mask: Tensor, *, scrambled_heads: int = 0) -> Tensor:
    """Take the first quarter of the channels from frame t + 1 and the second from frame t - 1, zero at the ends.

    With `scrambled_heads`, the number of heads, do as the released code: it holds the channels d of a head as `[d,L]`
    and reads that memory as `[L,d]`, which mixes up tokens and channels.
    """
    quarter = part.shape[-1] // 4
    later, earlier, own = part.split([quarter, quarter, part.shape[-1] - 2 * quarter], dim=-1)
    shifted = torch.cat([from_frame(later, 1, frame_mask), from_frame(earlier, -1, frame_mask), own], dim=-1)
    if not scrambled_heads:
        return shifted
    by_head = shifted.unflatten(-1, (scrambled_heads, -1)).transpose(2, 3)  # [B,T,heads,L,d]
    return by_head.transpose(3, 4).reshape(by_head.shape).transpose(2, 3).flatten(3)


class FrameMessages(OwnFrame):
    """Cross-frame attention (X-CLIP, Ni et al., ECCV 2022): a message of each frame, from all frames, joins its keys.

    m = W c,  m <- m + MHSA over frames (ln(m)), where c are class tokens.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.message_fc = nn.Linear(width, width)
        self.message_ln = nn.LayerNorm(width)
        self.message_attn = Attention(width, heads)
        self.message_attn.draw_as_torch()

    def forward(self, block: Block, x: Tensor, frame_mask: Tensor, first_only: bool = False) -> Tensor:
        messages = self.message_fc(x[:, :, 0])
        messages = messages + self.message_attn(self.message_ln(messages), mask=frame_mask[:, None, None])
        return self.run(block, x, block.context(messages.flatten(0, 1).unsqueeze(1)), first_only)


class TemporalAdapter(OwnFrame):
    """ST-Adapter (Pan et al., NeurIPS 2022) before the block, without its non-linearity: patches += up(conv(down)).

    The convolution runs over three frames, channel by channel. `up` starts at zero, and so the adapter.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.down = nn.Linear(width, width // 2)
        self.conv = nn.Conv1d(width // 2, width // 2, 3, padding=1, groups=width // 2)
        self.up = nn.Linear(width // 2, width)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(self, block: Block, x: Tensor, frame_mask: Tensor, first_only: bool = False) -> Tensor:
        inner = self.down(x[:, :, 1:])
        before, own, after = self.conv.weight[:, 0].unbind(dim=1)
        assert self.conv.bias is not None
        related = before * from_frame(inner, -1, frame_mask) + own * inner + after * from_frame(inner, 1, frame_mask)
        patches = x[:, :, 1:] + self.up(related + self.conv.bias)
        return self.run(block, torch.cat([x[:, :, :1], patches], dim=2), None, first_only)


def build_variant(temporal: str, width: int, heads: int, channel_shift: Literal["shift", "scrambled"]) -> OwnFrame:
    """Return the variant of one block; `temporal` is its name in the released code, or none."""
    if temporal == "channel_shift":
        return RelatedKeys(partial(shift_channels, scrambled_heads=heads if channel_shift == "scrambled" else 0))
    if temporal.startswith("expand_temporal_view"):
        step = temporal.removeprefix("expand_temporal_view").removeprefix("_step")
        return RelatedKeys(partial(expand_view, steps=int(step or 1)))
    if temporal == "cross_frame_attend":
        return FrameMessages(width, heads)
    if temporal == "stadapt_zeroinit":
        return TemporalAdapter(width)
    return OwnFrame()
