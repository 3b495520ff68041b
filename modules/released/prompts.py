"""The two prompters and the adapter of STOP's released code, which differ from those of its paper.

They follow what that code computes. The prompters of the paper are in `modules/stop/intra_frame.py` and
`modules/stop/inter_frame.py`; docs/paper_vs_release.md compares the two. Where the release has a fault, an option fixes
it, and the default keeps it.

Shapes: B clips, T frames, G = H / patch size = 7, P = G*G patches, D width, F = 4 prompts of a frame.

Source: https://github.com/zhoujiahuan1991/CVPR2025-STOP at commit a47eb22 (the HEAD side of its merge conflicts).
"""

import torch
from torch import Tensor, nn

from modules.released.convolution import convolve, convolve_in_frequency
from modules.released.shared_latent import FRAME_PROMPTS
from modules.stop.intra_frame import rescaled
from modules.stop.tokens import at_least_fp32

SCALE = 0.05  # of both kinds of prompts


class PixelPrompter(nn.Module):
    """`TemporalPrompt.forward` in the release: a prompt for every pixel, doubled where a mask of the frame is one.

        video + 0.05 dropout(MLP(convolutions(video))) (1 + mask)

    The mask ranks 49 scores of a frame. They were meant for its 7x7 patches, but rows and columns are split as 32x7: a
    score is the mean over all pixels whose row and column leave the same remainders modulo 7. The mask becomes a comb
    over the whole frame, the same in every patch (`region_mask="comb"`; `"patches"` fixes it). Its comparison has no
    gradient, so the scorer is never trained (`hard_region_mask=False` gives it the gradient of the scores).

    Args:
        grid: G.
        n_regions: n; scores above the (n+1)-th largest of a frame are in the mask.
        dropout: of the prompts, applied three times.
    """

    def __init__(self, grid: int, *, n_regions: int, region_mask: str, hard_region_mask: bool, dropout: float) -> None:
        super().__init__()
        self.grid, self.n_regions = grid, n_regions
        self.region_mask, self.hard_region_mask = region_mask, hard_region_mask
        kernel = (3, 11, 11)
        self.conv1 = nn.Conv3d(3, 9, kernel)
        self.conv2 = nn.Conv3d(9, 9, kernel)
        self.act2 = nn.PReLU()
        self.conv3 = nn.Conv3d(9, 9, kernel)
        self.act3 = nn.PReLU()
        self.conv4 = nn.Conv3d(9, 16, kernel)
        self.dropout = nn.Dropout(dropout)
        self.mlp = nn.Sequential(nn.Linear(16, 16), nn.PReLU(), nn.Linear(16, 3))
        self.scorer = nn.Conv3d(3, 1, (5, 11, 11))

    def forward(self, video: Tensor) -> tuple[Tensor, Tensor]:
        """Return the prompted video, `[B,T,3,H,W]` as it came, and the mask `[B,T,G,G]`."""
        prompt = self.dropout(self._prompt(video).movedim(2, -1))
        prompt = self.dropout(self.dropout(self.mlp(prompt).movedim(-1, 2)))
        mask = self._mask(video)
        repeats = video.shape[-1] // self.grid
        if self.region_mask == "comb":
            of_pixels = mask.tile(repeats, repeats)
        else:
            of_pixels = mask.repeat_interleave(repeats, -2).repeat_interleave(repeats, -1)
        return video + SCALE * prompt * (1 + of_pixels.unsqueeze(2)), mask

    def _prompt(self, video: Tensor) -> Tensor:
        x = convolve(self.conv1, video)
        x = self.act2(convolve(self.conv2, x))
        x = self.act3(convolve(self.conv3, x))
        return convolve(self.conv4, x)

    def _mask(self, video: Tensor) -> Tensor:
        if not self.hard_region_mask:
            scores = self._scores(video)
            weight = rescaled(scores.flatten(2)).view_as(scores)
            return above_threshold(scores.detach(), self.n_regions) + (weight - weight.detach())
        with torch.no_grad():
            mask = above_threshold(self._scores(video), self.n_regions)
        # A zero gradient, since DistributedDataParallel does not allow none; weight decay leaves it out too.
        return mask + 0 * sum(parameter.sum() for parameter in self.scorer.parameters())

    def _scores(self, video: Tensor) -> Tensor:
        """Score the patches: `[B,T,3,H,W]` -> `[B,T,G,G]`."""
        response = at_least_fp32(convolve(self.scorer, video).squeeze(2))
        if self.region_mask == "comb":
            return response.unflatten(-1, (-1, self.grid)).unflatten(-3, (-1, self.grid)).mean(dim=(-4, -2))
        return response.unflatten(-1, (self.grid, -1)).unflatten(-3, (self.grid, -1)).mean(dim=(-3, -1))


def above_threshold(scores: Tensor, n_regions: int) -> Tensor:
    """Return ones where a frame's score exceeds its (n+1)-th largest, `[B,T,G,G]`; fewer than n if scores are equal."""
    threshold = scores.flatten(2).topk(n_regions + 1).values[..., -1]
    return (scores > threshold[..., None, None]).to(scores.dtype)


class InterFramePrompt(nn.Module):
    """`get_inter_frame_prompt` in the release: prompts that are added to DGL's frame prompts, the same in all blocks.

        0.05 MLP(convolutions(attention(tokens))) (1 + rate)

    Attention is over all patches of a clip. The 3-D convolutions run over time, the index of the patch and the index of
    the feature, as if the latter two were an image. The rate of a frame is its score, stretched to 0..1 over the whole
    batch, so a clip's embedding depends on its batch (`norm="batch"`; `"clip"` fixes it). The mask of the pixel
    prompter counts remainders modulo 7, but is used here as if it counted patches.

    Raises:
        ValueError: in `forward`, if all frames of the batch have the same score, which cannot be stretched; the release
            goes on with NaN. In training the result is NaN here too, and the training loop looks for it: a check here
            would make the host wait for a GPU.
    """

    def __init__(self, width: int, heads: int, patches: int, *, norm: str) -> None:
        super().__init__()
        self.norm = norm
        self.attention = nn.MultiheadAttention(width, heads, batch_first=True)
        self.conv1 = nn.Conv3d(1, 9, (3, 15, 25))
        self.act1 = nn.PReLU()
        self.conv2 = nn.Conv3d(9, 1, (3, 15, 25))
        self.mlp = nn.Sequential(nn.Linear(patches, 16), nn.PReLU(), nn.Linear(16, FRAME_PROMPTS))
        self.scorer = nn.Conv3d(1, 1, (5, 11, 11))

    def forward(self, tokens: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Return prompts `[B,T,F,D]` and rates `[B,T]`, 0 to 1, from tokens `[B,T,P,D]` and mask `[B,T,G,G]`."""
        flat = tokens.flatten(1, 2)
        mixed = self.attention(flat, flat, flat, need_weights=False)[0].view_as(tokens).unsqueeze(2)
        rate = self._rate(convolve_in_frequency(self.scorer, mixed).squeeze(2), mask.flatten(2))
        x = self.act1(convolve_in_frequency(self.conv1, mixed))
        x = convolve_in_frequency(self.conv2, x).squeeze(2)  # [B,T,P,D]
        prompts = self.mlp(x.transpose(2, 3)).transpose(2, 3)
        return SCALE * prompts * (1 + rate)[:, :, None, None].to(prompts.dtype), rate

    def _rate(self, response: Tensor, mask: Tensor) -> Tensor:
        scores = (response.mean(dim=-1) * (1 + mask)).mean(dim=-1)  # [B,T]
        if self.norm == "clip":
            low, high = scores.amin(dim=1, keepdim=True), scores.amax(dim=1, keepdim=True)
            return torch.where(high > low, (scores - low) / torch.where(high > low, high - low, 1.0), 0.0)
        low, high = scores.amin(), scores.amax()
        if not self.training and not low.is_meta and not high > low:
            raise ValueError(
                "all frames of this batch have the same score, and stretching them to 0..1 divides zero by zero; give "
                "it more or other clips, or pass --inter_frame_norm clip"
            )
        return (scores - low) / (high - low)


class ParallelAdapter(nn.Module):
    """`LoRA` in the release, a bottleneck beside a block's MLP: `[...,D]` -> `[...,D]`. It does not start at zero."""

    def __init__(self, width: int, bottleneck: int = 32, scale: float = 0.1) -> None:
        super().__init__()
        self.down = nn.Linear(width, bottleneck)
        self.act = nn.PReLU()
        self.up = nn.Linear(bottleneck, width)
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * self.up(self.act(self.down(x)))
