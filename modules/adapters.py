"""Adapters: narrow networks that are trained beside the frozen layers of a transformer.

    bottleneck    a(u) = s (W_up φ(W_down u + b_d) + b_u)       Houlsby et al., ICML 2019, arXiv 1902.00751
    ST-Adapter    a(u) = W_up conv(W_down u + b_d) + b_u        Pan et al., NeurIPS 2022, arXiv 2206.13559

Both give what is to be added to u or to the output of the layer beside them. A fresh one gives zero, so that training
starts with the frozen model.

`encode_frames` and `encode_text` run CLIP's towers with adapters anywhere in their blocks.

Shapes: B clips, T frames, P patches in a square grid, N captions, L words, D width, R width of the bottleneck, E joint
embedding.
"""

import math
from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from modules.backbones import ACTIVATIONS
from modules.clip import CLIP, Block, TextTransformer, VisionTransformer

Activation = Literal["relu", "gelu", "quick_gelu"]
Draw = Literal["kaiming", "xavier"]
# A block's number, the block, and tokens before and after its attention, residual included -> what follows attention.
AfterAttention = Callable[[int, Block, Tensor, Tensor], Tensor]
# A block's number, the block, and its tokens after attention -> its output.
FeedForward = Callable[[int, Block, Tensor], Tensor]


def activation(name: Activation) -> Callable[[Tensor], Tensor]:
    """Return a function that applies an activation to each value of a tensor."""
    if name == "relu":
        return F.relu
    function, scale = ACTIVATIONS[name]
    return function if scale == 1 else lambda x: function(scale * x) / scale


class BottleneckAdapter(nn.Module):
    """The bottleneck a(u): [..., D] -> [..., D]. W_up and b_u start at zero.

    Args:
        scale: s.
        draw: how W_down is drawn. kaiming: U(-1/√D, 1/√D), as torch draws linear layers; xavier: U(-v, v) with
            v = √(6 / (D + R)).
        bias_std: b_d is drawn from a normal distribution with this deviation; 0: it starts at zero.
    """

    def __init__(
        self,
        width: int,
        bottleneck: int,
        phi: Activation = "relu",
        *,
        scale: float = 1.0,
        draw: Draw = "kaiming",
        bias_std: float = 0.0,
    ) -> None:
        super().__init__()
        self.scale = scale
        self.down = nn.Linear(width, bottleneck)
        self.phi = activation(phi)
        self.up = nn.Linear(bottleneck, width)
        if draw == "xavier":
            nn.init.xavier_uniform_(self.down.weight)
        nn.init.normal_(self.down.bias, std=bias_std)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(self, u: Tensor) -> Tensor:
        hidden = self.phi(self.down(u))
        if self.scale == 1:
            return self.up(hidden)
        # The weights are smaller than the tokens, so s is cheaper here than as a factor of the output.
        return F.linear(hidden, self.scale * self.up.weight, self.scale * self.up.bias)


def for_both_towers(clip: CLIP, make: Callable[[int], nn.Module]) -> tuple[nn.ModuleList, nn.ModuleList]:
    """Return an adapter for each block of the vision tower and of the text tower; `make` builds one for a width D."""
    visual, text = clip.visual, clip.text
    return (
        nn.ModuleList(make(visual.width) for _ in visual.blocks),
        nn.ModuleList(make(text.width) for _ in text.blocks),
    )


class SpaceTimeAdapter(nn.Module):
    """ST-Adapter, equation 5 without a non-linearity, as in its released code: the patches of a clip's frames,
    [B, T, P, D] -> [B, T, P, D]. Each of R channels has a convolution of its own over time and both sides of the grid.

    A clip ends with its last real frame: padding counts as zero, like what is outside the clip and outside the grid.
    The convolution starts at zero, and so does b_u, as in the release.

    Args:
        kernel: frames, rows and columns that the convolution covers, odd numbers.
        conv_bias: whether each channel of the convolution has a bias, which starts at zero.
    """

    def __init__(self, width: int, bottleneck: int, kernel: tuple[int, int, int], *, conv_bias: bool) -> None:
        super().__init__()
        self.down = nn.Linear(width, bottleneck)
        self.conv = nn.Conv3d(bottleneck, bottleneck, kernel, padding="same", groups=bottleneck, bias=conv_bias)
        self.up = nn.Linear(bottleneck, width)
        nn.init.zeros_(self.conv.weight)
        for part in (self.down, self.conv, self.up):
            if part.bias is not None:
                nn.init.zeros_(part.bias)

    def forward(self, patches: Tensor, frame_mask: Tensor) -> Tensor:
        """Return a(u) of patches [B, T, P, D]; `frame_mask` is bool [B, T]."""
        grid = math.isqrt(patches.shape[2])
        hidden = self.down(patches) * frame_mask[:, :, None, None]
        cube = hidden.unflatten(2, (grid, grid)).permute(0, 4, 1, 2, 3)  # [B, R, T, rows, columns]
        return self.up(self.conv(cube).permute(0, 2, 3, 4, 1).flatten(2, 3))


def after_attention(layer: int, block: Block, x: Tensor, attended: Tensor) -> Tensor:
    """Return what CLIP's second half reads: the tokens after attention."""
    return attended


def feed_forward(layer: int, block: Block, x: Tensor) -> Tensor:
    """Run CLIP's second half of a block."""
    return block.feed_forward(x)


def encode_frames(
    visual: VisionTransformer,
    video: Tensor,
    after_attention: AfterAttention = after_attention,
    feed_forward: FeedForward = feed_forward,
) -> Tensor:
    """Embed every frame: float [B, T, 3, H, W], normalised -> [B, T, E], not of unit length.

    The functions get the tokens of all frames, [B·T, 1 + P, D]; in the last block their class tokens, [B·T, 1, D],
    because nothing else is read after it.
    """
    tokens = visual.embed(video.flatten(0, 1))
    for layer, block in enumerate(visual.blocks):
        assert isinstance(block, Block)
        if block is visual.blocks[-1]:
            x, attended = tokens[:, :1], block.attend_first(tokens)
        else:
            x, attended = tokens, block.attend(tokens)
        tokens = feed_forward(layer, block, after_attention(layer, block, x, attended))
    return visual.pool(tokens).unflatten(0, video.shape[:2])


def encode_text(
    text: TextTransformer,
    token_ids: Tensor,
    after_attention: AfterAttention = after_attention,
    feed_forward: FeedForward = feed_forward,
) -> Tensor:
    """Embed captions: int64 [N, L] -> [N, E]; in the last block the functions get the END tokens, [N, 1, D]."""
    tokens, ends = text.embed(token_ids), text.end_positions(token_ids)
    for layer, block in enumerate(text.blocks):
        assert isinstance(block, Block)
        if block is text.blocks[-1]:
            rows = torch.arange(len(tokens), device=tokens.device)
            x, attended = tokens[rows, ends].unsqueeze(1), block.attend_from(tokens, ends)
        else:
            x, attended = tokens, block.attend(tokens, causal=True)
        tokens = feed_forward(layer, block, after_attention(layer, block, x, attended))
    return text.pool(tokens.squeeze(1))
