"""Inter-frame temporal prompting, the second prompting stage of STOP (arXiv 2503.15973, Figure 2c).

    dh_i   = h^s_i - h^s_{i-1},  i = 2, ..., T                                 eq. 1
    h~^s   = N_t(dh_2, ..., dh_T)                                              eq. 2
    W_t,i  = 1/(P D) sum_j (1 + beta r_ij) sum_k (h~^s_ijk)^2                  eq. 3
    N_t,i  = ceil(eta W_t,i)                                                   eq. 4
    p^t    = P_t(dh_2, ..., dh_T), of which gap i uses the first N_t,i         eq. 5

    the prompted sequence: [h_cls, h^s_1, p^t_1, h^s_2, p^t_2, ..., h^s_T]     Figure 2

Shapes: B clips, T frames, T-1 gaps between neighbouring frames, P = G*G patches, D width, eta slots in a gap, c_t
channels inside P_t. Tokens stand in C sequences of L (`modules.stop.tokens`), with S tokens in the context of a
sequence. In code frames and gaps count from 0: gap i lies between frames i and i+1. [D] marks a decision of ours where
the paper is silent, with its reason.
"""

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from modules.clip import Attention, Block, KeysValues
from modules.dropout import PromptDropout
from modules.precision import pad_for_tensor_cores
from modules.stop.dynamics import DynamicsNet
from modules.stop.frame_changes import FrameChanges, frame_changes
from modules.stop.timing import FrameTiming, PlaceGain
from modules.stop.tokens import Merging, convolve_frames

# [D] A change of at most this share of the clip's largest (or of the noise floor) is rounding noise and gets no prompt,
# N_t = 0. Eq. 4 taken literally gives a prompt to any W_t above 0: two equal frames would get one because of the last
# bit of a sum.
NEGLIGIBLE = 1e-3


@dataclass(frozen=True)
class TemporalPrompting:
    """The results of the stage."""

    prompts: Tensor  # p^t, [B,T-1,eta,D]
    valid: Tensor  # bool [B,T-1,eta]: the first N_t slots of each gap
    frame_variation: Tensor  # W_t, [B,T-1], in 0..1 after normalising
    prompts_per_gap: Tensor  # N_t, int64 [B,T-1], in 0..eta


class InterFramePrompter(nn.Module):
    """Measures how much changes between neighbouring frames and makes that many prompts for the gap between them.

    Args:
        width: D.
        grid: G.
        eta: most prompts in a gap.
        beta: how much more a change in a salient region counts.
        bottleneck: c_t, channels inside P_t, a multiple of `heads`.
        heads: of the attention inside P_t.
        dropout: of the prompts, in training.
        noise_floor: the change, as mean square of LayerNormed tokens, that camera noise makes on a still clip.
        uniform: eta prompts in every gap, whatever changes (an ablation).
        static_prompts: the learned slot tokens alone, without P_t (an ablation).
    """

    def __init__(
        self,
        width: int,
        grid: int,
        *,
        eta: int,
        beta: float,
        bottleneck: int,
        heads: int,
        dropout: float,
        noise_floor: float,
        uniform: bool = False,
        static_prompts: bool = False,
    ) -> None:
        super().__init__()
        self.eta, self.beta, self.noise_floor, self.uniform = eta, beta, noise_floor, uniform
        self.dynamics = DynamicsNet(width, sees="changes")  # N_t
        self.prompter = None if static_prompts else TemporalPromptNet(width, grid, eta, bottleneck, heads)  # P_t
        if static_prompts:
            # N_t learns only through the prompts that its variation scales.
            self.dynamics.requires_grad_(False)
        # [D] The slots start as N(0, 0.2^2): small beside a token, so that what P_t adds soon turns them.
        self.slots = nn.Parameter(0.2 * torch.randn(eta, width))
        self.dropout = PromptDropout(dropout)

    def forward(
        self, normal: Tensor, region_mask: Tensor, timing: FrameTiming, merging: Merging | None = None
    ) -> TemporalPrompting:
        """Make the prompts of every gap. A gap before a padding frame gets none.

        Args:
            normal: h^s and class tokens after `layer_norm`, `[B,C,L,D]` of T >= 2 frames.
            region_mask: r, `[B,T,P]`.
            merging: which patches have merged, if any.
        """
        changes = frame_changes(normal, timing, merging)  # eq. 1
        energy = self.dynamics(changes)  # eq. 2
        if timing.padded:
            energy = energy * timing.gap_mask.unsqueeze(-1)
        variation = normalised_variation(
            frame_variation(energy, region_mask[:, 1:], self.beta), self.noise_floor
        )  # eq. 3
        if self.uniform:
            count = self.eta * timing.gap_mask.long()
        else:
            count = prompts_per_gap(variation.detach(), self.eta)  # eq. 4
        prompts: Tensor = self.slots.expand(*timing.gap_mask.shape, -1, -1)
        if self.prompter is not None:
            prompts = prompts + self.dropout(self.prompter(changes, 1 + variation, timing))  # eq. 5
        # A comparison of floats: for one of integers torch 2.14's compiler makes wrong code on CPUs.
        valid = torch.arange(self.eta, device=count.device, dtype=variation.dtype) < count.unsqueeze(-1)
        return TemporalPrompting(prompts, valid, variation, count)


def frame_variation(energy: Tensor, region_mask: Tensor, beta: float) -> Tensor:
    """Eq. 3: W_t,i = 1/(P D) sum_j (1 + beta r_ij) sum_k (h~^s_ijk)^2. A change counts more where it is salient.

    Args:
        energy: 1/D sum_k (h~^s_ijk)^2, `[B,T-1,P]`.
        region_mask: r of the later frame of each gap, `[B,T-1,P]`.

    Returns:
        `[B,T-1]`.
    """
    return ((1 + beta * region_mask) * energy).mean(dim=-1)


def normalised_variation(variation: Tensor, noise_floor: float) -> Tensor:
    """Return W_t as a share of the clip's largest, `[B,T-1]` -> `[B,T-1]` in 0..1.

    [D] The counts of eq. 4 then depend neither on the scale of features nor on other clips. If the largest is below the
    noise floor, the floor takes its place: otherwise a still clip with camera noise would count as full of change.
    """
    return variation / variation.amax(dim=1, keepdim=True).clamp_min(noise_floor)


def prompts_per_gap(variation: Tensor, eta: int) -> Tensor:
    """Eq. 4: N_t,i = ceil(eta W_t,i), `[B,T-1]` in 0..1 -> int64 `[B,T-1]` in 0..eta; 0 where W_t is `NEGLIGIBLE`."""
    count = (eta * variation).ceil()
    return torch.where(variation > NEGLIGIBLE, count, torch.zeros_like(count)).long()


class TemporalPromptNet(nn.Module):
    """P_t, Figure 2c: Attention -> Conv3d -> ReLU -> Conv3d -> Linear; the frame variation enters the Linear.

    [D] All of it works inside a bottleneck of c_t channels: self-attention over the P patches of a gap, a 3x1x1 and a
    1x3x3 convolution, a Linear over the token axis from P to eta. The result is scaled by 1 + W_t, which is how N_t
    gets its gradient. The gap's place in the clip enters before the ReLU, see `PlaceGain`.

    [D] The attention has a residual connection, and the weights start at He's scale without biases. A fresh attention
    is a plain mean over the patches: after it, 1 % of the differences between clips was left (measured after the
    Linear over tokens, as deviation over root mean square). The Linear over tokens starts as random weights around a
    mean over the patches; around zero, the sign of what changed would depend on where it changed. The last Linear
    starts at zero, so the prompts begin as the slot tokens alone: random prompts that change with the clip would
    disturb the frozen blocks before they are of use.
    """

    def __init__(self, width: int, grid: int, eta: int, bottleneck: int, heads: int) -> None:
        super().__init__()
        self.grid = grid
        self.down = nn.Linear(width, bottleneck)
        self.attention = Attention(bottleneck, heads)
        self.attention.draw_as_torch()
        self.temporal = nn.Linear(3 * bottleneck, bottleneck)  # 3x1x1: a Linear over three gaps side by side
        self.place = PlaceGain(bottleneck)
        self.spatial = nn.Conv2d(bottleneck, bottleneck, kernel_size=3, padding=1)
        self.to_slots = nn.Linear(grid * grid, eta)
        self.up = nn.Linear(bottleneck, width)
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(parameter)
        for layer in (self.down, self.spatial):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="linear")
        nn.init.kaiming_normal_(self.temporal.weight, nonlinearity="relu")
        scale = (2 * grid * grid) ** -0.5  # half of the mean square is the mean's, half the random part's
        nn.init.normal_(self.to_slots.weight, mean=scale, std=scale)
        nn.init.zeros_(self.up.weight)

    def forward(self, changes: FrameChanges, gain: Tensor, timing: FrameTiming) -> Tensor:
        """Make the prompts `[B,T-1,eta,D]` from dh and the gain 1 + W_t, `[B,T-1]`."""
        x = (changes.linear(self.down.weight) + self.down.bias).flatten(0, 1)
        x = (x + self.attention(x)).unflatten(0, gain.shape)
        if timing.padded:
            x = x * timing.gap_mask[:, :, None, None]  # biases have filled the gaps before padding frames
        x = F.pad(x, (0, 0, 0, 0, 1, 1))
        x = self.temporal(torch.cat([x[:, :-2], x[:, 1:-1], x[:, 2:]], dim=-1))
        x = self.place(x, timing.gap_place).relu()
        x = convolve_frames(self.spatial, x, self.grid)
        slots = pad_for_tensor_cores(self.to_slots.weight, -1) @ pad_for_tensor_cores(x, -2)  # [B,T-1,eta,c_t]
        x = slots + self.to_slots.bias[:, None]
        return self.up(x * gain[:, :, None, None].to(x.dtype))


def insert(
    attention: Literal["joint", "frame"],
    block: Block,
    frame_mask: Tensor,
    patches: int,
    prompting: TemporalPrompting | None,
) -> tuple[KeysValues | None, Tensor | None]:
    """Insert the prompts in one sequence per clip (`insert_joint`) or in one per frame (`insert_by_frame`)."""
    if attention == "joint":
        return insert_joint(block, frame_mask, patches, prompting)
    return insert_by_frame(block, patches, prompting)


def insert_joint(
    block: Block, frame_mask: Tensor, patches: int, prompting: TemporalPrompting | None
) -> tuple[KeysValues | None, Tensor]:
    """Insert the prompts in one sequence per clip, Figure 2: `[h_cls, h^s_1, p^t_1, h^s_2, ..., h^s_T]`.

    Attention does not depend on the order of its keys, and a prompt's own output is thrown away after the block. So the
    prompts follow the tokens as a context: keys and values only, no queries and no MLP.

    Args:
        frame_mask: bool `[B,T]`.
        patches: P, or S where patches have merged.
        prompting: None for a block without temporal prompts.

    Returns:
        For a block on `[B,L,D]`: the context, S = (T-1)*eta, or None; the mask, bool `[B,1,1,L+S]`.
    """
    visible = visible_tokens(frame_mask, patches)
    if prompting is None:
        return None, visible
    seen = prompting.valid.flatten(1)[:, None, None]
    return block.context(prompting.prompts.flatten(1, 2)), torch.cat([visible, seen], dim=-1)


def visible_tokens(frame_mask: Tensor, patches: int) -> Tensor:
    """Return which tokens of one sequence per clip are real, its class token and P patches of each frame: bool `[B,T]`
    -> bool `[B,1,1,1+T*P]`."""
    class_token = torch.ones_like(frame_mask[:, :1])
    return torch.cat([class_token, frame_mask.repeat_interleave(patches, dim=1)], dim=1)[:, None, None]


def insert_by_frame(
    block: Block, patches: int, prompting: TemporalPrompting | None
) -> tuple[KeysValues | None, Tensor | None]:
    """Insert the prompts in one sequence per frame: class token, patches, and the prompts of the two gaps beside it.

    The prompts are a context, as in `insert_joint`. A gap's prompts are projected once for both frames.

    Args:
        patches: P, or S where patches have merged.
        prompting: None for a block without temporal prompts.

    Returns:
        For a block on `[B*T,1+P,D]`: the context, S = 2*eta, or None; the mask, bool `[B*T,1,1,1+P+S]`, or None.
    """
    if prompting is None:
        return None, None
    gaps = prompting.valid.shape[1]

    def beside(by_gap: Tensor) -> Tensor:  # [B,T-1,eta,any] -> [B*T,2*eta,any]
        # An empty gap before the first frame and after the last one.
        padded = F.pad(by_gap, (0, 0, 0, 0, 1, 1))
        return torch.cat([padded[:, :-1], padded[:, 1:]], dim=2).flatten(0, 1)

    projected = block.context(prompting.prompts.flatten(1, 2))
    context = KeysValues(*(beside(part.unflatten(1, (gaps, -1))) for part in projected))
    visible = beside(prompting.valid.unsqueeze(-1)).squeeze(-1)
    own = torch.ones(len(visible), 1 + patches, dtype=torch.bool, device=visible.device)
    return context, torch.cat([own, visible], dim=1)[:, None, None]
