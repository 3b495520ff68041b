"""Adapter-ATTN: a bottleneck beside attention in every block of both towers, with CLIP frozen.

    x + Attn(LN x) + s a(LN x)

The row of that name in VoP's comparison (Huang et al., CVPR 2023, arXiv 2211.12764, section 4.1) and in STOP's, after
He et al., "Towards a Unified View of Parameter-Efficient Transfer Learning", ICLR 2022, arXiv 2110.04366. VoP states no
scale s; 1 is our choice.
"""

from functools import partial
from typing import Annotated

from torch import Tensor, nn

from modules.adapters import BottleneckAdapter, encode_frames, encode_text, for_both_towers
from modules.clip import CLIP, Block
from modules.methods.base import Method
from modules.options import Range
from modules.similarity import masked_mean


class AdapterATTN(Method):
    """The video is the mean of its frames' normalised embeddings, as in CLIP4Clip. The adapters start at zero."""

    def __init__(
        self,
        clip: CLIP,
        *,
        adapter_width: Annotated[int, "r, the width inside each adapter", Range(1)] = 64,
        adapter_scale: Annotated[float, "s, the factor of each adapter's output", Range(0, above=True)] = 1.0,
    ) -> None:
        super().__init__(clip)
        clip.requires_grad_(False)
        self.visual_adapters, self.text_adapters = for_both_towers(
            clip, lambda width: BottleneckAdapter(width, adapter_width, scale=adapter_scale)
        )

    def encode_video(self, video: Tensor, frame_mask: Tensor) -> Tensor:
        return masked_mean(encode_frames(self.clip.visual, video, partial(_add, self.visual_adapters)), frame_mask)

    def encode_text(self, token_ids: Tensor) -> Tensor:
        return encode_text(self.clip.text, token_ids, partial(_add, self.text_adapters))


def _add(adapters: nn.ModuleList, layer: int, block: Block, x: Tensor, attended: Tensor) -> Tensor:
    return attended + adapters[layer](block.ln_1(x))
