"""The cross-frame part of a STAN layer: every location of the grid by itself, over the frames of its clip.

Shapes: B clips, T frames, L patches of a frame, D width. Patch tokens are `[B,T,L,D]`, and `frame_mask` is bool
`[B,T]`, true where the frame is real. What becomes of padding frames means nothing, and real frames do not see them.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from modules.attention import Attention
from modules.stan.drop_path import DropPath

REDUCTION = 8  # of the width inside the convolution, as in the paper


class TemporalAttention(nn.Module):
    """Self-attention over frames (STAN-self), for each location l:

        h[:,l] <- h[:,l] + fc(DropPath(MHA(LN(h[:,l]))))

    `fc` starts at zero, and so does what the layer adds. Its bias stays where DropPath drops a row, as released.
    """

    def __init__(self, width: int, heads: int, drop_path: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.attn = Attention(width, heads)
        self.drop_path = DropPath(drop_path)
        self.fc = nn.Linear(width, width)
        for projection in (self.attn.in_proj_weight, self.attn.in_proj_bias, *self.attn.out_proj.parameters()):
            nn.init.uniform_(projection, -(width**-0.5), width**-0.5)  # torch's own of a linear layer
        nn.init.zeros_(self.fc.weight)
        nn.init.zeros_(self.fc.bias)

    def forward(self, h: Tensor, frame_mask: Tensor) -> Tensor:
        """Relate frames: `[B,T,L,D]` -> `[B,T,L,D]`."""
        clips, _, patches, _ = h.shape
        rows = self.norm(h).transpose(1, 2).flatten(0, 1)  # [B L, T, D]
        seen = frame_mask.repeat_interleave(patches, dim=0)[:, None, None]
        added = self.fc(self.drop_path(self.attn(rows, mask=seen)))
        return h + added.unflatten(0, (clips, patches)).transpose(1, 2)


class TemporalConvolution(nn.Module):
    """The convolution of the paper (STAN-conv), 3 x 1 x 1 over time, height and width, at an eighth of the width:

        h <- h + up(GELU(conv(down(h))))

    `up` starts at zero, like the last layer of the self-attention; the paper does not say how it starts.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        inner = max(1, width // REDUCTION)
        self.down = nn.Linear(width, inner)
        self.conv = nn.Conv3d(inner, inner, kernel_size=(3, 1, 1), padding=(1, 0, 0))
        self.up = nn.Linear(inner, width)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(self, h: Tensor, frame_mask: Tensor) -> Tensor:
        """Relate frames: `[B,T,L,D]` -> `[B,T,L,D]`. Padding frames are zeros, like what lies beyond a clip's ends."""
        lowered = self.down(h).masked_fill(~frame_mask[:, :, None, None], 0)
        grid = lowered.permute(0, 3, 1, 2).unsqueeze(-1)  # [B, D / 8, T, L, 1]: the kernel does not see the grid's form
        mixed = F.gelu(self.conv(grid)).squeeze(-1).permute(0, 2, 3, 1)
        return h + self.up(mixed)
