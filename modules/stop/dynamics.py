"""N_s and N_t, STOP's dynamics nets: light 3-D convolutions that measure change (arXiv 2503.15973, both stages).

Shapes: B clips, T frames, P = G*G patches, D width. [D] marks a decision of ours where the paper is silent.
"""

from typing import Literal

import torch
from torch import Tensor, nn

from modules.stop.frame_changes import FrameChanges


class DynamicsNet(nn.Module):
    """h~ = N(h), a depth-wise 3x3x3 convolution over (T, G, G) without bias; gives its energy, 1/D sum_k h~_k^2.

    The equations of both stages read h~ only through this energy. [D] The paper says "a light 3-D convolution";
    depth-wise, which keeps the D channels apart, is the lightest.

    [D] Both nets give exactly zero where nothing changes, whatever they have learned. N_t sees changes, so having no
    bias is enough. N_s sees tokens (`sees="tokens"`): we subtract the mean over its kernel's three taps in time,
    because otherwise static content soon outweighs motion (measured after training: a fifth instead of four fifths of M
    lay on moving patches).

    Both start from what they are meant to find: N_s from half the difference of the two neighbour frames, N_t from the
    identity.
    """

    def __init__(self, width: int, *, sees: Literal["tokens", "changes"]) -> None:
        super().__init__()
        self.sees = sees
        self.conv = nn.Conv3d(width, width, kernel_size=3, padding=(0, 1, 1), groups=width, bias=False)
        with torch.no_grad():
            self.conv.weight.zero_()
            if sees == "tokens":
                self.conv.weight[:, 0, 0, 1, 1] = -0.5
                self.conv.weight[:, 0, 2, 1, 1] = 0.5
            else:
                self.conv.weight[:, 0, 1, 1, 1] = 1.0

    def forward(self, changes: FrameChanges) -> Tensor:
        """Return the energy 1/D sum_k h~_ijk^2, at least fp32: `[B,T,P]` from N_s, `[B,T-1,P]` from N_t."""
        weight = self.conv.weight
        return changes.energy(taps_on_changes(weight) if self.sees == "tokens" else weight)


def taps_on_changes(weight: Tensor) -> Tensor:
    """Turn N_s's kernels on tokens into the same kernels on changes, `[D,1,3,3,3]` -> `[D,1,2,3,3]`.

    With their mean subtracted, the taps a, b, c in time sum to zero. On tokens they then equal -a on the change before
    a frame and c on the change after it. In this form a still clip gives zero without rounding.
    """
    mean = weight.mean(dim=2)
    return torch.stack([mean - weight[:, :, 0], weight[:, :, 2] - mean], dim=2)
