"""Intra-frame spatial prompting, the first prompting stage of STOP (arXiv 2503.15973, Figure 2b).

    A_i    = Attn(h_cls, h_i)                                                  eq. 1
    M_ij   = 1/D sum_k h~_ijk^2,  h~ = N_s(h_1, ..., h_T)                      eq. 2
    W_s    = alpha A + (1 - alpha) M                                           eq. 3
    r_ij   = 1 for the N_s largest W_s,ij of frame i, else 0                   eq. 4
    h^s_i  = h_i + r_i * p^s_i,  p^s_i = P_s(h_{i-1}, h_i, h_{i+1})            eq. 5

Shapes: B clips, T frames, P = G*G patches, D width, c channels inside P_s. Tokens stand in C sequences of L
(`modules.stop.tokens`); h_i, the patch tokens of frame i, is `patches_of(x, T)[:, i]`. [D] marks a decision of ours
where the paper is silent, with its reason.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from modules.clip import Block
from modules.dropout import PromptDropout
from modules.precision import pad_for_tensor_cores
from modules.stop.dynamics import DynamicsNet
from modules.stop.frame_changes import frame_changes
from modules.stop.timing import FrameTiming, PlaceGain
from modules.stop.tokens import Merging, add_to_patches, at_least_fp32, convolve_frames, layer_norm, patches_of

STILL = 1e-3  # below this mean square of its N_s features, a frame gradually counts as still
FLAT = 1e-3  # saliencies of a frame that differ by less than this are hardly ranked


@dataclass(frozen=True)
class SpatialPrompting:
    """The results of the stage; all `[B,T,P]` except the sequences `[B,C,L,D]`."""

    x: Tensor  # h^s in the place of h
    region_mask: Tensor  # r, exactly N_s ones in a real frame; has the gradient of the saliency unless hard
    attention_map: Tensor  # A
    dynamics_map: Tensor  # M, sums to 1 over a frame where anything moves, else 0
    saliency: Tensor  # W_s


class IntraFramePrompter(nn.Module):
    """Chooses the N_s patches of each frame that matter and move, and adds a prompt made from three frames to them.

    Args:
        width: D.
        grid: G.
        n_regions: N_s, patches of a frame that get a prompt.
        alpha: weight of the attention map in the saliency; the dynamics map gets 1 - alpha.
        bottleneck: c_s, channels inside P_s.
        dropout: of the prompts, in training.
        hard_region_mask: the published mask, through which N_s gets no gradient; else straight-through.
        random_regions: choose patches at random (an ablation).
        static_prompts: a learned prompt for each patch position instead of P_s (an ablation).
    """

    def __init__(
        self,
        width: int,
        grid: int,
        *,
        n_regions: int,
        alpha: float,
        bottleneck: int,
        dropout: float,
        hard_region_mask: bool = False,
        random_regions: bool = False,
        static_prompts: bool = False,
    ) -> None:
        super().__init__()
        self.n_regions, self.alpha, self.hard_region_mask = n_regions, alpha, hard_region_mask
        self.dynamics = None if random_regions else DynamicsNet(width, sees="tokens")  # N_s
        if self.dynamics is not None and hard_region_mask:
            self.dynamics.requires_grad_(False)  # DDP refuses trainable tensors that get no gradient
        self.prompter: SpatialPromptNet | StaticSpatialPrompt = (  # P_s
            StaticSpatialPrompt(width, grid) if static_prompts else SpatialPromptNet(width, grid, bottleneck)
        )
        self.dropout = PromptDropout(dropout)

    def forward(self, block: Block, x: Tensor, timing: FrameTiming, merging: Merging | None = None) -> SpatialPrompting:
        """Prompt the patches of h_cls and h, `[B,C,L,D]`, that are about to enter `block`.

        Padding frames influence nothing. Where patches have merged, as `merging` says, all but `x` is still by patch.
        """
        normal = layer_norm(x)
        attention = attention_map(block, normal, timing.frames, merging)  # eq. 1
        if self.dynamics is None:
            motion, saliency = torch.zeros_like(attention), self._random_saliency(attention)
        else:
            motion = dynamics_map(self.dynamics(frame_changes(normal, timing, merging)))  # eq. 2
            saliency = self.alpha * attention + (1 - self.alpha) * motion  # eq. 3
        patches = salient_patches(saliency.detach(), self.n_regions)
        region = region_mask(saliency, patches, timing.frame_mask, hard=self.hard_region_mask)  # eq. 4
        prompts: FactoredPrompts = self.prompter(normal, timing, merging)
        # Eq. 5. Prompts are made only where r is 1. [D] The gradient of r sees p^s without dropout.
        added = self.dropout(prompts.at(patches))
        if timing.padded:
            added = added * timing.frame_mask[:, :, None, None]
        prompted = add_to_patches(x, patches, added.to(x.dtype), merging)
        if region.requires_grad:
            shares = None if merging is None else merging.shares
            prompted = _RegionGradient.apply(prompted, region, shares, *prompts.detached())
        return SpatialPrompting(prompted, region, attention, motion, saliency)

    def _random_saliency(self, like: Tensor) -> Tensor:
        # All frames of a clip share one choice, so that the choice itself changes nothing between them.
        if self.training:
            return torch.rand_like(like[:, :1]).expand_as(like)
        # In evaluation every clip, in any batch, gets the same choice.
        generator = torch.Generator().manual_seed(0)
        return torch.rand(like.shape[-1], generator=generator).to(like).expand_as(like)


@torch.no_grad()
def attention_map(block: Block, normal: Tensor, frames: int, merging: Merging | None = None) -> Tensor:
    """Eq. 1, A_i = Attn(h_cls, h_i): how the block's own frozen attention spreads over the patches of each frame.

    Softmax over the P patches of q_cls . k_ij / sqrt(d_head) in each head, then the mean over heads. [D] Without
    gradient: the map is a measurement by the frozen CLIP, or by the one that LoRA has changed so far.

    Args:
        normal: the sequences after `layer_norm`, `[B,C,L,D]`, of T frames.
        merging: which patches have merged, if any.

    Returns:
        `[B,T,P]`, every frame sums to 1.
    """
    attention = block.attn
    query = attention.query(normal[:, :, 0], block.ln_1)  # [B,C,D]
    query = query.unflatten(-1, (attention.heads, -1)) * (query.shape[-1] / attention.heads) ** -0.5
    key_weight = attention.key_weight(block.ln_1).unflatten(0, (attention.heads, -1))  # [heads,d,D]
    # q . (W x + b) = (W^T q) . x + q . b. We carry the query back to the width of the tokens, so that no token has to
    # be projected (D/heads times fewer operations). q . b is the same for all patches and drops out of the softmax.
    carried = torch.einsum("bchd,hdw->bchw", query, key_weight).expand(-1, frames, -1, -1)
    scores = torch.einsum(
        "bthw,btpw->btph", pad_for_tensor_cores(carried, -2), patches_of(normal, frames).to(carried.dtype)
    )
    if merging is not None:
        scores = merging.spread(scores)
    return at_least_fp32(scores[..., : attention.heads]).softmax(dim=2).mean(dim=-1)


def dynamics_map(energy: Tensor) -> Tensor:
    """Eq. 2: M_ij from the mean over channels of h~_ijk^2, `[B,T,P]` -> `[B,T,P]`.

    [D] We divide by the sum over the frame, so that M is a distribution like A, and alpha weighs the same in every
    layer. A frame without any change has M = 0 and is left to the attention map. There the floor `STILL` keeps rounding
    noise from becoming a map, and its gradient from exploding.
    """
    return energy / energy.sum(dim=-1, keepdim=True).clamp_min(STILL * energy.shape[-1])


def salient_patches(saliency: Tensor, n_regions: int) -> Tensor:
    """Return the N_s patches of each frame with the largest saliency: `[B,T,P]` -> int64 `[B,T,N_s]`.

    Ties go to the lower index.
    """
    return saliency.sort(dim=-1, descending=True, stable=True).indices[..., :n_regions]


def region_mask(saliency: Tensor, patches: Tensor, frame_mask: Tensor, *, hard: bool) -> Tensor:
    """Eq. 4: r, one at the chosen patches, int64 `[B,T,N_s]`, of real frames, bool `[B,T]`; else zero: `[B,T,P]`.

    [D] Straight-through unless `hard`: the value is that of the mask, the gradient that of the `rescaled` saliency. As
    published the mask has no gradient, and N_s can never learn.
    """
    real = frame_mask.unsqueeze(-1)
    mask = torch.zeros_like(saliency).scatter(-1, patches, real.expand_as(patches).to(saliency.dtype))
    if hard or not saliency.requires_grad:
        return mask
    soft = rescaled(saliency) * real
    return mask + (soft - soft.detach())


def rescaled(saliency: Tensor) -> Tensor:
    """Shift and stretch each frame's saliencies to 0..1: `[B,T,P]` -> `[B,T,P]`; a flat frame stays near 0."""
    low, high = saliency.amin(dim=-1, keepdim=True), saliency.amax(dim=-1, keepdim=True)
    return (saliency - low) / (high - low).clamp_min(FLAT)


class SpatialPromptNet(nn.Module):
    """P_s, Figure 2b: Conv3d -> ReLU -> Conv3d -> Linear -> ReLU -> Linear; dropout follows in the prompter.

    [D] The first convolution is 3x1x1 from D to the bottleneck, so that it sees exactly frames i-1, i, i+1. The second
    is 1x3x3 inside the bottleneck. P_s sees LayerNormed tokens, because a few channels of CLIP's are hundreds of times
    larger than the rest. The frame's place in the clip enters before the first ReLU, see `PlaceGain`: it scales only
    the difference to the neighbours, so that all frames of a still clip get the same prompts. The last Linear starts at
    zero: training starts from frozen CLIP.
    """

    def __init__(self, width: int, grid: int, bottleneck: int) -> None:
        super().__init__()
        self.grid = grid
        # The 3x1x1 convolution, written as one Linear of the frame and one of its differences to both neighbours.
        self.own = nn.Linear(width, bottleneck)
        self.beside = nn.Linear(2 * width, bottleneck, bias=False)
        self.place = PlaceGain(bottleneck)
        self.spatial = nn.Conv2d(bottleneck, bottleneck, kernel_size=3, padding=1)
        self.hidden = nn.Linear(bottleneck, bottleneck)
        self.out = nn.Linear(bottleneck, width)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, normal: Tensor, timing: FrameTiming, merging: Merging | None = None) -> "FactoredPrompts":
        """Make p^s from LayerNormed sequences `[B,C,L,D]`."""
        channels = len(self.own.bias)
        # One product for both Linears: narrow ones reach half the rate. Differences commute with it and follow.
        projected = F.linear(normal, torch.cat([self.own.weight, *self.beside.weight.chunk(2, dim=1)]))
        own, both = patches_of(projected, timing.frames, merging).split([channels, 2 * channels], dim=-1)
        change = both[:, 1:] - both[:, :-1]
        if timing.padded:
            change = change * timing.gap_mask[:, :, None, None]
        before, after = change.chunk(2, dim=-1)  # for the frame after a gap, and for the one before it
        beside = F.pad(after, (0, 0, 0, 0, 0, 1)) - F.pad(before, (0, 0, 0, 0, 1, 0))
        x = (own + self.own.bias + self.place(beside, timing.frame_place)).relu()
        hidden = self.hidden(convolve_frames(self.spatial, x, self.grid)).relu()
        return FactoredPrompts(hidden, self.out.weight, self.out.bias)


class StaticSpatialPrompt(nn.Module):
    """The ablation of P_s: one learned prompt for each patch position, for every frame and clip; starts at zero."""

    def __init__(self, width: int, grid: int) -> None:
        super().__init__()
        self.prompt = nn.Parameter(torch.zeros(grid * grid, width))

    def forward(self, normal: Tensor, timing: FrameTiming, merging: Merging | None = None) -> "FactoredPrompts":
        """Return p^s, for each patch one row of the learned prompts."""
        which = torch.eye(len(self.prompt), dtype=self.prompt.dtype, device=self.prompt.device)
        return FactoredPrompts(which.expand(*timing.frame_mask.shape, -1, -1), self.prompt.t(), None)


class FactoredPrompts(NamedTuple):
    """p^s = weight . hidden + bias for every patch, not multiplied out, since few patches get a prompt."""

    hidden: Tensor  # [B,T,P,c]
    weight: Tensor  # [D,c]
    bias: Tensor | None  # [D]

    def at(self, patches: Tensor) -> Tensor:
        """Return the prompts of n patches of every frame, int64 `[B,T,n]`: `[B,T,n,D]`."""
        index = patches.unsqueeze(-1).expand(-1, -1, -1, self.hidden.shape[-1])
        return F.linear(self.hidden.gather(2, index), self.weight, self.bias)

    def detached(self) -> "FactoredPrompts":
        """Return the same prompts without gradient."""
        bias = None if self.bias is None else self.bias.detach()
        return FactoredPrompts(self.hidden.detach(), self.weight.detach(), bias)


class _RegionGradient(torch.autograd.Function):
    """Returns h^s unchanged; backward, gives the region mask the gradient of eq. 5's r * p^s at every patch.

    By the chain rule that is the gradient of h^s times p^s. It is computed as hidden times what the weight carries
    back, so that p^s is never multiplied out for all patches. Plain autograd on eq. 5 with all of p^s takes 7 % more
    CPU time for this stage (88 instead of 82 ms, forward and backward) and keeps 20 % more for backward (43 instead of
    36 MB), with 4 clips of 12 frames through ViT-B/32, fp32, one thread.
    """

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any,
        prompted: Tensor,
        region: Tensor,
        shares: Tensor | None,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
    ) -> Tensor:
        ctx.save_for_backward(shares, hidden, weight, bias)
        ctx.dtype = region.dtype
        return prompted.view_as(prompted)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        shares, hidden, weight, bias = ctx.saved_tensors
        if bias is not None:  # one more row of the weight, for a hidden value of one
            weight = torch.cat([weight, bias.unsqueeze(1)], dim=1)
            hidden = F.pad(hidden, (0, 1), value=1.0)
        weight, hidden = pad_for_tensor_cores(weight, -1), pad_for_tensor_cores(hidden, -1)
        carried = F.linear(gradient.to(hidden.dtype), weight.t().to(hidden.dtype))
        carried = patches_of(carried, hidden.shape[1])
        if shares is not None:  # a patch has the gradient of its token, times its share in it
            carried = shares.to(carried.dtype) @ carried
        of_region = (carried * hidden).sum(dim=-1)
        return gradient, of_region.to(ctx.dtype), None, None, None, None
