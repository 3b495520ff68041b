"""Visual-Text Adapter: a bottleneck before the MLP in every block of both towers, with CLIP frozen.

    x ← x + a(x),   then x + MLP(LN x)

The row of that name in STOP's comparison, after Houlsby et al., ICML 2019, arXiv 1902.00751. Its code is not public.
Its 11.82 M parameters fit one adapter a block of width 384, and no width of two adapters a block, as Houlsby et al.
have them. The place, the activation and the initial values are our choice: those of `video_text_adapter` without the
convolution.
"""

from functools import partial
from typing import Annotated

from torch import Tensor, nn

from modules.adapters import BottleneckAdapter, encode_frames, encode_text, for_both_towers
from modules.clip import CLIP, Block
from modules.methods.base import Method
from modules.options import Range
from modules.similarity import masked_mean


class VisualTextAdapter(Method):
    """The video is the mean of its frames' normalised embeddings, as in CLIP4Clip. The adapters start at zero."""

    def __init__(
        self,
        clip: CLIP,
        *,
        adapter_width: Annotated[int, "r, the width inside each adapter", Range(1)] = 384,
    ) -> None:
        super().__init__(clip)
        clip.requires_grad_(False)
        self.visual_adapters, self.text_adapters = for_both_towers(
            clip, lambda width: BottleneckAdapter(width, adapter_width, "gelu")
        )

    def encode_video(self, video: Tensor, frame_mask: Tensor) -> Tensor:
        return masked_mean(encode_frames(self.clip.visual, video, partial(_adapt, self.visual_adapters)), frame_mask)

    def encode_text(self, token_ids: Tensor) -> Tensor:
        return encode_text(self.clip.text, token_ids, partial(_adapt, self.text_adapters))


def _adapt(adapters: nn.ModuleList, layer: int, block: Block, x: Tensor, attended: Tensor) -> Tensor:
    return attended + adapters[layer](attended)
