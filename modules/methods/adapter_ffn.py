"""Adapter-FFN: a bottleneck beside the MLP in every block of both towers, with CLIP frozen.

    x + MLP(LN x) + s a(x)

The row of that name in VoP's comparison (Huang et al., CVPR 2023, arXiv 2211.12764, section 4.1) and in STOP's. It is
AdaptFormer (Chen et al., NeurIPS 2022, arXiv 2205.13535, section 3.2), whose scale s we take, because VoP states none.
"""

from functools import partial
from typing import Annotated, Literal

from torch import Tensor, nn

from modules.adapters import BottleneckAdapter, encode_frames, encode_text, for_both_towers
from modules.clip import CLIP, Block
from modules.methods.base import Method
from modules.options import Range
from modules.similarity import masked_mean


class AdapterFFN(Method):
    """The video is the mean of its frames' normalised embeddings, as in CLIP4Clip. The adapters start at zero."""

    def __init__(
        self,
        clip: CLIP,
        *,
        adapter_width: Annotated[int, "r, the width inside each adapter", Range(1)] = 64,
        adapter_scale: Annotated[float, "s, the factor of each adapter's output", Range(0, above=True)] = 0.1,
        adapter_input: Annotated[
            Literal["tokens", "normed"], "what an adapter reads: the tokens, or as the MLP their LayerNorm"
        ] = "tokens",
    ) -> None:
        super().__init__(clip)
        clip.requires_grad_(False)
        self.normed = adapter_input == "normed"
        self.visual_adapters, self.text_adapters = for_both_towers(
            clip, lambda width: BottleneckAdapter(width, adapter_width, scale=adapter_scale)
        )

    def encode_video(self, video: Tensor, frame_mask: Tensor) -> Tensor:
        halves = partial(self._feed_forward, self.visual_adapters)
        return masked_mean(encode_frames(self.clip.visual, video, feed_forward=halves), frame_mask)

    def encode_text(self, token_ids: Tensor) -> Tensor:
        halves = partial(self._feed_forward, self.text_adapters)
        return encode_text(self.clip.text, token_ids, feed_forward=halves)

    def _feed_forward(self, adapters: nn.ModuleList, layer: int, block: Block, x: Tensor) -> Tensor:
        return block.feed_forward(x) + adapters[layer](block.ln_2(x) if self.normed else x)
