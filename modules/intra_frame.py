"""Intra-frame spatial prompting, the first prompting stage of STOP (arXiv 2503.15973, Figure 2b).

Shapes: B clips, T frames, P = G*G patches, D width; tokens stand in C sequences a clip of L = 1 + P*T/C tokens
(`modules.dynamics`). `h_i` are the patch tokens of frame i, `patches_of(x, T)[:, i]`. The equation numbers are those of
this stage. [D] marks a decision of ours where the paper is silent, with its reason.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from modules.clip import Block
from modules.dynamics import DynamicsNet, PlaceGain, at_least_fp32, changes, layer_norm, patches_of

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
def attention_map(block: Block, class_token: Tensor, normal: Tensor) -> Tensor:
    """Eq. 1, A_i = Attn(h_cls, h_i): how the block's own frozen attention spreads over the patches of each frame.

    Softmax over the P patches of q_cls . k_ij / sqrt(d_head) in each head, then the mean over heads. [D] Without
    gradient: the map is a measurement by the frozen CLIP.

    Args:
        class_token: `[B,C,D]`.
        normal: the tokens after `layer_norm`, `[B,T,P,D]`.

    Returns:
        `[B,T,P]`, every frame sums to 1.
    """
    heads, width = block.attn.heads, normal.shape[-1]
    query = block.attn.query(block.ln_1(class_token))  # [B,heads,C,d]
    key_weight = block.attn.in_proj_weight[width : 2 * width].unflatten(0, (heads, -1))  # [heads,d,D]
    # q . (W x + b) = (W^T q) . x + q . b: the query is carried back to the width of the tokens, so that no token is
    # projected (D/heads times fewer operations), and past the gain of the block's LayerNorm, so that none is normalised
    # again. q . b and the LayerNorm's bias are the same for all patches and drop out of the softmax.
    carried = torch.einsum("bhcd,hdw->bchw", query, key_weight) * (block.ln_1.weight * query.shape[-1] ** -0.5)
    carried = carried.expand(-1, normal.shape[1], -1, -1)
    scores = torch.einsum("bthw,btpw->bthp", carried, normal)
    return at_least_fp32(scores).softmax(dim=-1).mean(dim=2)


def salient_patches(saliency: Tensor, n_regions: int) -> Tensor:
    """The N_s patches of each frame with the largest saliencies, ties to the lower index: `[B,T,P]` -> int64
    `[B,T,N_s]`."""
    return saliency.sort(dim=-1, descending=True, stable=True).indices[..., :n_regions]


def region_mask(saliency: Tensor, patches: Tensor) -> Tensor:
    """Eq. 4: ones, of the saliency's shape `[B,T,P]` and dtype, at the chosen patches, int64 `[B,T,N_s]`."""
    return torch.zeros_like(saliency).scatter_(-1, patches, 1.0)


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
        self.dynamics = None if random_regions else DynamicsNet(width, grid, sees="tokens")  # N_s
        if self.dynamics is not None and hard_region_mask:
            self.dynamics.requires_grad_(
                False
            )  # nothing reaches it, and DDP refuses trainable tensors without gradient
        self.prompter: nn.Module = (  # P_s
            StaticSpatialPrompt(width, grid) if static_prompts else SpatialPromptNet(width, grid, bottleneck)
        )
        self.dropout = nn.Dropout(dropout)

    def forward(self, block: Block, x: Tensor, frame_mask: Tensor) -> SpatialPrompting:
        """Prompt the patches that are about to enter `block`.

        Args:
            x: h_cls and h, `[B,C,L,D]`.
            frame_mask: bool `[B,T]`, padding last; padding frames influence nothing.
        """
        normal = layer_norm(x)
        attention = attention_map(block, x[:, :, 0], patches_of(normal, frame_mask.shape[1]))  # eq. 1
        if self.dynamics is None:
            motion = torch.zeros_like(attention)
            saliency = self._random_saliency(attention)
        else:
            motion = distribution(self.dynamics(changes(normal, frame_mask)))  # eq. 2
            saliency = self.alpha * attention + (1 - self.alpha) * motion  # eq. 3
        patches = salient_patches(saliency.detach(), self.n_regions)  # eq. 4
        region = region_mask(saliency, patches)
        if not self.hard_region_mask:
            # [D] Straight-through: the value is the hard mask's, the gradient the saliency's. As published the mask has
            # no gradient and N_s can never learn.
            weight = rescaled(saliency)
            region = region + (weight - weight.detach())
        region = region * frame_mask.unsqueeze(-1)
        prompts: FactoredPrompts = self.prompter(normal, frame_mask)
        # Eq. 5, h^s = h + r * p^s: prompts are made where r is 1 alone. [D] What r's gradient sees is p^s without
        # dropout.
        added = self.dropout(prompts.at(patches)) * frame_mask[:, :, None, None]
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

    def forward(self, normal: Tensor, frame_mask: Tensor) -> FactoredPrompts:
        """LayerNormed sequences `[B,C,L,D]` and bool `[B,T]` -> p^s."""
        # One product for all; what neighbours differ by is as well taken behind it, where tokens are narrow.
        weight = torch.cat([self.own.weight, *self.beside.weight.chunk(2, dim=1)])
        own, before, after = F.linear(normal, weight).split(len(self.own.bias), dim=-1)
        beside = changes(after, frame_mask)[:, 1:] - changes(before, frame_mask)[:, :-1]
        own = patches_of(own, frame_mask.shape[1])
        x = (own + self.own.bias + self.place(beside, frame_mask)).relu()
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

    def forward(self, normal: Tensor, frame_mask: Tensor) -> FactoredPrompts:
        """`[B,C,L,D]`, bool `[B,T]` -> p^s, patch by patch a row of the learned prompts."""
        which = torch.eye(len(self.prompt), dtype=normal.dtype, device=normal.device)
        return FactoredPrompts(which.expand(*frame_mask.shape, -1, -1), self.prompt.t(), None)
