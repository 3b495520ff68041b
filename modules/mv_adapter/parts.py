"""The adapters of MV-Adapter: narrow transformers over the frames of a clip, and over the words of a caption.

Shapes: B clips, T frames, P patches, N captions, L words, D width of the tower, R width of the adapter.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from modules.adapters import activation
from modules.clip import Block

HEADS = 2
SHARED = 32  # numbers of a factor that both towers share

act = activation("quick_gelu")


class Calibration(nn.Module):
    """The factors of the class tokens' features: alpha = 1 + V relu(U [o_c + o_p ; G o_cc]). V starts at zero."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.context = nn.Linear(width, width)  # G
        self.squeeze = nn.Linear(2 * width, width // 4)  # U
        self.excite = nn.Linear(width // 4, width, bias=False)  # V
        nn.init.zeros_(self.excite.weight)

    def forward(self, of_clip: Tensor, of_frames: Tensor, frame_mask: Tensor) -> Tensor:
        """Return alpha [B, T, R] for o_cc [B, 1, R], o_c + o_p [B, T, R] and a mask bool [B, T]."""
        of_clip = self.context(of_clip).expand_as(of_frames)
        both = torch.cat([of_frames, of_clip], dim=2) * frame_mask.unsqueeze(2)
        return 1 + self.excite(F.relu(self.squeeze(both)))


class NarrowAdapter(nn.Module):
    """What both towers' adapters have: down, positions and a transformer block at width R, up. `up` starts at zero.

    Args:
        tower: D, on which the deviations of the initial values depend.
        places: rows of the position table.
        shares: whether a factor that both towers share scales the rows of W_down.
    """

    def __init__(self, tower: int, width: int, places: int, scale: float, shares: bool) -> None:
        super().__init__()
        self.scale = scale
        self.positional_embedding = nn.Parameter(0.01 * torch.randn(places, width))
        self.down = nn.Linear(tower, width)
        self.ln_pre = nn.LayerNorm(width)
        self.block = Block(width, HEADS, "quick_gelu")
        self.up = nn.Linear(width, tower)
        self.of_shared = nn.Linear(SHARED, width) if shares else None  # M, c
        for bias in (self.down.bias, self.up.bias):
            nn.init.zeros_(bias)
        nn.init.zeros_(self.up.weight)
        nn.init.normal_(self.block.attn.in_proj_weight, std=tower**-0.5)
        for layer in (self.block.attn.out_proj, self.block.mlp.c_fc, self.block.mlp.c_proj):
            nn.init.normal_(layer.weight, std=(2 * tower) ** -0.5)

    def narrow(self, y: Tensor, shared: Tensor | None) -> Tensor:
        """Return W_down y + b_d, where the shared factor g scales the rows of W_down: diag(M g + c) W_down."""
        if self.of_shared is None or shared is None:
            return self.down(y)
        return F.linear(y, self.of_shared(shared).unsqueeze(1) * self.down.weight, self.down.bias)

    def widen(self, hidden: Tensor) -> Tensor:
        """Return s (W_up h + b_u)."""
        return F.linear(hidden, self.scale * self.up.weight, self.scale * self.up.bias)


class VideoAdapter(NarrowAdapter):
    """The adapter of an image block. A transformer relates the frames of a clip; each frame has two tokens in it, its
    class token and the mean of its patches, and one more token stands for the clip."""

    def __init__(self, tower: int, width: int, frames: int, scale: float, shares: bool) -> None:
        super().__init__(tower, width, 1 + 2 * frames, scale, shares)
        self.cc = nn.Parameter(torch.randn(width) * width**-0.5)
        self.calibration = Calibration(width)

    def forward(self, y: Tensor, frame_mask: Tensor, shared: Tensor | None, class_only: bool) -> Tensor:
        """Return what is added to y, the output of the MLP on class tokens and patches: [B, T, 1 + P, D], or only for
        the class tokens, [B, T, 1, D].

        `frame_mask` is bool [B, T]. Padding is no key and has no part in a real frame's output.
        """
        hidden = act(self.narrow(y, shared))
        tokens = torch.cat([self.cc.expand(len(y), 1, -1), hidden[:, :, 0], hidden[:, :, 1:].mean(dim=2)], dim=1)
        visible = torch.cat([torch.ones_like(frame_mask[:, :1]), frame_mask, frame_mask], dim=1)
        related = self.block(self.ln_pre(tokens + self.positional_embedding), mask=visible[:, None, None])
        of_clip, of_class, of_patches = act(related).split([1, *2 * [frame_mask.shape[1]]], dim=1)  # o_cc, o_c, o_p
        alpha = self.calibration(of_clip, of_class + of_patches, frame_mask)
        of_class = (alpha * of_class).unsqueeze(2)
        return self.widen(of_class if class_only else torch.cat([of_class, hidden[:, :, 1:]], dim=2))


class TextAdapter(NarrowAdapter):
    """The adapter of a text block: a causal transformer block over the words."""

    def __init__(self, tower: int, width: int, words: int, scale: float, shares: bool) -> None:
        super().__init__(tower, width, words, scale, shares)
        nn.init.normal_(self.down.weight, std=(2 * tower) ** -0.5)

    def forward(self, y: Tensor, shared: Tensor | None, ends: Tensor | None) -> Tensor:
        """Return what is added to y, the output of the MLP on words [N, L, D]; with `ends`, int64 [N], only for the
        tokens at these places, [N, 1, D]."""
        tokens = self.ln_pre(self.narrow(y, shared) + self.positional_embedding[: y.shape[1]])
        if ends is None:
            related = self.block(tokens, causal=True)
        else:
            related = self.block.feed_forward(self.block.attend_from(tokens, ends))
        return self.widen(act(related))
