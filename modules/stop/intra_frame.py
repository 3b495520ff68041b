"""Intra-frame spatial prompting, the first prompting stage of STOP (arXiv 2503.15973, Figure 2b).

Shapes: B clips, T frames, P = G*G patches, D width; tokens stand in C sequences a clip of L = 1 + P*T/C tokens
(`modules.stop.dynamics`). `h_i` are the patch tokens of frame i, `patches_of(x, T)[:, i]`. The equation numbers are
those of
this stage. [D] marks a decision of ours where the paper is silent, with its reason.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from modules.clip import Block
from modules.dropout import PromptDropout
from modules.precision import pad_for_tensor_cores
from modules.stop.dynamics import DynamicsNet, FrameTiming, PlaceGain, at_least_fp32, layer_norm, patches_of
from modules.stop.frame_changes import Look, look

STILL = 1e-3  # a frame whose N_s features have a smaller mean square than this counts as still, the more the smaller
FLAT = 1e-3  # saliencies of a frame that differ by less than this are hardly ranked


@dataclass(frozen=True)
class SpatialPrompting:
    """What the stage found and did; all `[B,T,P]` but the sequences `[B,C,L,D]`."""

    x: Tensor  # h^s in the place of h
    region_mask: Tensor  # r, exactly N_s ones in a real frame; its gradient is that of the saliency unless hard
    attention_map: Tensor  # A
    dynamics_map: Tensor  # M, sums to 1 over a frame where anything moves, else 0
    saliency: Tensor  # W_s


@torch.no_grad()
def attention_map(block: Block, normal: Tensor, frames: int) -> Tensor:
    """Eq. 1, A_i = Attn(h_cls, h_i): how the block's own frozen attention spreads over the patches of each frame.

    Softmax over the P patches of q_cls . k_ij / sqrt(d_head) in each head, then the mean over heads. [D] Without
    gradient: the map is a measurement by the frozen CLIP.

    Args:
        normal: the sequences after `layer_norm`, `[B,C,L,D]`, of T frames.

    Returns:
        `[B,T,P]`, every frame sums to 1.
    """
    attention = block.attn
    query = attention.query(normal[:, :, 0], block.ln_1)  # [B,C,D]
    query = query.unflatten(-1, (attention.heads, -1)) * (query.shape[-1] / attention.heads) ** -0.5
    key_weight = attention.projection(block.ln_1)[0].chunk(3)[1].unflatten(0, (attention.heads, -1))  # [heads,d,D]
    # q . (W x + b) = (W^T q) . x + q . b: the query is carried back to the width of the tokens, so that no token is
    # projected (D/heads times fewer operations). q . b is the same for all patches and drops out of the softmax.
    carried = torch.einsum("bchd,hdw->bchw", query, key_weight).expand(-1, frames, -1, -1)
    scores = torch.einsum(
        "bthw,btpw->btph", pad_for_tensor_cores(carried, -2), patches_of(normal, frames).to(carried.dtype)
    )
    return at_least_fp32(scores[..., : attention.heads]).softmax(dim=2).mean(dim=-1)


def salient_patches(saliency: Tensor, n_regions: int) -> Tensor:
    """The N_s patches of each frame with the largest saliencies, ties to the lower index: `[B,T,P]` -> int64
    `[B,T,N_s]`."""
    return saliency.sort(dim=-1, descending=True, stable=True).indices[..., :n_regions]


def region_mask(saliency: Tensor, patches: Tensor, frame_mask: Tensor, *, hard: bool) -> Tensor:
    """Eq. 4: r, one at the chosen patches, int64 `[B,T,N_s]`, of frames that are real, bool `[B,T]`; `[B,T,P]` like the
    saliency.

    [D] Straight-through unless `hard`: the value is the mask's, the gradient that of the `rescaled` saliency. As
    published the mask has no gradient and N_s can never learn.
    """
    if hard or not saliency.requires_grad:
        return _hard_mask(saliency, patches, frame_mask)
    return _StraightThrough.apply(saliency, patches, frame_mask)


def _hard_mask(saliency: Tensor, patches: Tensor, frame_mask: Tensor) -> Tensor:
    ones = frame_mask.unsqueeze(-1).expand_as(patches).to(saliency.dtype)
    # Not in place: what a traced autograd.Function writes into so loses its gradient in torch 2.11.
    return torch.zeros_like(saliency).scatter(-1, patches, ones)


class _StraightThrough(torch.autograd.Function):
    """The hard mask, with the gradient of `rescaled`, whose values are not needed."""

    @staticmethod
    def forward(ctx, saliency: Tensor, patches: Tensor, frame_mask: Tensor) -> Tensor:  # type: ignore[override]
        ctx.save_for_backward(saliency, frame_mask)
        return _hard_mask(saliency, patches, frame_mask)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[override]
        saliency, frame_mask = ctx.saved_tensors
        low, high = saliency.aminmax(dim=-1, keepdim=True)
        span = high - low
        gradient = gradient * frame_mask.unsqueeze(-1) / span.clamp_min(FLAT)
        # A larger span makes all smaller; where it is held at FLAT it does nothing.
        by_span = (gradient * (saliency - low)).sum(dim=-1, keepdim=True) * (span >= FLAT) / span.clamp_min(FLAT)
        at_low, at_high = saliency == low, saliency == high  # equal ones share
        gradient = gradient - at_low * ((gradient.sum(dim=-1, keepdim=True) - by_span) / at_low.sum(-1, keepdim=True))
        return gradient - at_high * (by_span / at_high.sum(-1, keepdim=True)), None, None


def add_to_patches(x: Tensor, patches: Tensor, added: Tensor) -> Tensor:
    """Sequences `[B,C,L,D]`, int64 `[B,T,n]` and `[B,T,n,D]`, one for each of these patches -> `[B,C,L,D]`."""
    count, frames = x.shape[1], patches.shape[1]
    in_sequence = torch.arange(frames, device=x.device) % (frames // count)  # each frame's number in its sequence
    first = 1 + (x.shape[2] - 1) // (frames // count) * in_sequence  # the place of its first patch there
    places = (first[:, None] + patches).unflatten(1, (count, -1)).flatten(2)
    added = added.unflatten(1, (count, -1)).flatten(2, 3)
    return x.scatter_add(2, places.unsqueeze(-1).expand_as(added), added)


def rescaled(saliency: Tensor) -> Tensor:
    """Each frame's saliencies moved and stretched to 0..1: `[B,T,P]` -> `[B,T,P]`; a flat frame stays near 0."""
    low, high = saliency.amin(dim=-1, keepdim=True), saliency.amax(dim=-1, keepdim=True)
    return (saliency - low) / (high - low).clamp_min(FLAT)


class IntraFramePrompter(nn.Module):
    """Chooses the N_s patches of each frame that matter and move, and adds a prompt made from three frames there.

    Args:
        width: D.
        grid: G.
        n_regions: N_s, patches of a frame that get a prompt.
        alpha: weight of the attention map in the saliency; 1 - alpha is the dynamics map's.
        bottleneck: c_s, channels inside P_s.
        dropout: of the prompts, in training.
        hard_region_mask: the published mask, through which N_s gets no gradient; else straight-through.
        random_regions: choose patches blindly (an ablation).
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
        self.n_regions, self.alpha = n_regions, alpha
        self.hard_region_mask = hard_region_mask
        self.dynamics = None if random_regions else DynamicsNet(width, sees="tokens")  # N_s
        if self.dynamics is not None and hard_region_mask:
            self.dynamics.requires_grad_(
                False
            )  # nothing reaches it, and DDP refuses trainable tensors without gradient
        self.prompter: SpatialPromptNet | StaticSpatialPrompt = (  # P_s
            StaticSpatialPrompt(width, grid) if static_prompts else SpatialPromptNet(width, grid, bottleneck)
        )
        self.dropout = PromptDropout(dropout)

    def forward(self, block: Block, x: Tensor, timeline: FrameTiming) -> SpatialPrompting:
        """Prompt the patches that are about to enter `block`: h_cls and h, `[B,C,L,D]`; padding frames influence
        nothing."""
        normal = layer_norm(x)
        attention = attention_map(block, normal, timeline.frames)  # eq. 1
        seen = look(normal, timeline, dynamics=self.dynamics, **self.prompter.looks())
        if seen.energy is None:
            motion = torch.zeros_like(attention)
            saliency = self._random_saliency(attention)
        else:
            motion = distribution(seen.energy)  # eq. 2
            saliency = self.alpha * attention + (1 - self.alpha) * motion  # eq. 3
        patches = salient_patches(saliency.detach(), self.n_regions)  # eq. 4
        region = region_mask(saliency, patches, timeline.frame_mask, hard=self.hard_region_mask)
        prompts: FactoredPrompts = self.prompter(seen, timeline)
        # Eq. 5, h^s = h + r * p^s: prompts are made where r is 1 alone. [D] What r's gradient sees is p^s without
        # dropout.
        added = self.dropout(prompts.at(patches))
        if timeline.padded:
            added = added * timeline.frame_mask[:, :, None, None]
        prompted = add_to_patches(x, patches, added.to(x.dtype))
        if region.requires_grad:
            prompted = _RegionGradient.apply(prompted, region, *prompts.detached())
        return SpatialPrompting(prompted, region, attention, motion, saliency)

    def _random_saliency(self, like: Tensor) -> Tensor:
        # One choice for all frames of a clip, so that it adds no change of its own between them.
        if self.training:
            return torch.rand_like(like[:, :1]).expand_as(like)
        # The same for every clip, whatever its batch.
        generator = torch.Generator().manual_seed(0)
        return torch.rand(like.shape[-1], generator=generator).to(like).expand_as(like)


def distribution(energy: Tensor) -> Tensor:
    """Eq. 2: M_ij from the mean over channels of h~_ijk^2, `[B,T,P]` -> `[B,T,P]`.

    [D] Divided by its sum over the frame, so that M is a distribution like A and alpha weighs like with like in every
    layer. A frame without any change has M = 0 and is left to the attention map; the floor `STILL` keeps rounding noise
    from being blown up to a map there, and its gradient from exploding.
    """
    return energy / energy.sum(dim=-1, keepdim=True).clamp_min(STILL * energy.shape[-1])


class FactoredPrompts(NamedTuple):
    """p^s = weight . hidden + bias for every patch, not multiplied out, since few patches get theirs."""

    hidden: Tensor  # [B,T,P,c]
    weight: Tensor  # [D,c]
    bias: Tensor | None  # [D]

    def at(self, patches: Tensor) -> Tensor:
        """Of the patches int64 `[B,T,n]` of every frame: `[B,T,n,D]`."""
        index = patches.unsqueeze(-1).expand(-1, -1, -1, self.hidden.shape[-1])
        return F.linear(self.hidden.gather(2, index), self.weight, self.bias)

    def detached(self) -> "FactoredPrompts":
        """The same without gradient."""
        bias = None if self.bias is None else self.bias.detach()
        return FactoredPrompts(self.hidden.detach(), self.weight.detach(), bias)


class _RegionGradient(torch.autograd.Function):
    """Hands on h^s, and on the way back gives the region mask the gradient of r * p^s, at every patch: by the chain
    rule that of h^s times p^s, which is hidden times what the weight carries back, without any p^s."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx, prompted: Tensor, region: Tensor, hidden: Tensor, weight: Tensor, bias: Tensor | None
    ) -> Tensor:
        ctx.save_for_backward(hidden, weight, bias)
        ctx.dtype = region.dtype
        return prompted.view_as(prompted)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, Tensor, None, None, None]:  # type: ignore[override]
        hidden, weight, bias = ctx.saved_tensors
        if bias is not None:  # one more row of the weight, for a hidden value of one
            weight = torch.cat([weight, bias.unsqueeze(1)], dim=1)
            hidden = F.pad(hidden, (0, 1), value=1.0)
        weight, hidden = pad_for_tensor_cores(weight, -1), pad_for_tensor_cores(hidden, -1)
        carried = F.linear(gradient.to(hidden.dtype), weight.t().to(hidden.dtype))
        of_region = (patches_of(carried, hidden.shape[1]) * hidden).sum(dim=-1)
        return gradient, of_region.to(ctx.dtype), None, None, None


class SpatialPromptNet(nn.Module):
    """P_s, Figure 2b: Conv3d -> ReLU -> Conv3d -> Linear -> ReLU -> Linear; dropout follows in the prompter.

    [D] The first convolution is 3x1x1 from D to the bottleneck, which makes it see exactly frames i-1, i, i+1; the
    second is 1x3x3 inside the bottleneck. It sees LayerNormed tokens, because CLIP's have a few channels hundreds of
    times as large as the rest. The frame's place in the clip enters before the first ReLU, see `PlaceGain`; it scales
    what the neighbours add by differing from the frame, so that all frames of a still clip get the same prompts. The
    last Linear starts at zero: training starts from frozen CLIP.
    """

    def __init__(self, width: int, grid: int, bottleneck: int) -> None:
        super().__init__()
        self.grid = grid
        # The 3x1x1 convolution as a Linear on the frame and one on what the two beside it differ by, which is the same.
        self.own = nn.Linear(width, bottleneck)
        self.beside = nn.Linear(2 * width, bottleneck, bias=False)
        self.place = PlaceGain(bottleneck)
        self.spatial = nn.Conv2d(bottleneck, bottleneck, kernel_size=3, padding=1)
        self.hidden = nn.Linear(bottleneck, bottleneck)
        self.out = nn.Linear(bottleneck, width)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def looks(self) -> dict[str, Tensor]:
        """The arguments of `look` that it asks for."""
        # One product for all: narrow ones reach half the rate. What neighbours differ by is as well taken behind it.
        return {"of_tokens": torch.cat([self.own.weight, *self.beside.weight.chunk(2, dim=1)])}

    def forward(self, seen: Look, timeline: FrameTiming) -> FactoredPrompts:
        """What `look` gave -> p^s."""
        assert seen.tokens is not None
        channels = len(self.own.bias)
        own, both = patches_of(seen.tokens, timeline.frames).split([channels, 2 * channels], dim=-1)
        change = both[:, 1:] - both[:, :-1]
        if timeline.padded:
            change = change * timeline.gap_mask[:, :, None, None]
        before, after = change.chunk(2, dim=-1)  # of the frame after a gap, and of the one before it
        beside = F.pad(after, (0, 0, 0, 0, 0, 1)) - F.pad(before, (0, 0, 0, 0, 1, 0))
        x = (own + self.own.bias + self.place(beside, timeline.frame_place)).relu()
        hidden = self.hidden(convolve_frames(self.spatial, x, self.grid)).relu()
        return FactoredPrompts(hidden, self.out.weight, self.out.bias)


def convolve_frames(conv: nn.Conv2d, tokens: Tensor, grid: int) -> Tensor:
    """A 1x3x3 convolution, that is a 2-D one on every frame: `[B,T,P,c]` -> `[B,T,P,c']`."""
    images = tokens.flatten(0, 1).unflatten(1, (grid, grid)).permute(0, 3, 1, 2)
    return conv(images).permute(0, 2, 3, 1).flatten(1, 2).unflatten(0, tokens.shape[:2])


class StaticSpatialPrompt(nn.Module):
    """The ablation of P_s: one learned prompt a patch position, the same for every frame and clip; starts at zero."""

    def __init__(self, width: int, grid: int) -> None:
        super().__init__()
        self.prompt = nn.Parameter(torch.zeros(grid * grid, width))

    def looks(self) -> dict[str, Tensor]:
        """It looks at nothing."""
        return {}

    def forward(self, seen: Look, timeline: FrameTiming) -> FactoredPrompts:
        """p^s, patch by patch a row of the learned prompts."""
        which = torch.eye(len(self.prompt), dtype=self.prompt.dtype, device=self.prompt.device)
        return FactoredPrompts(which.expand(*timeline.frame_mask.shape, -1, -1), self.prompt.t(), None)
