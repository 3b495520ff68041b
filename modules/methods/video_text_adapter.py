"""Video-Text Adapter: ST-Adapter in the vision tower, a bottleneck in the text tower, both before the MLP of every
block, with CLIP frozen.

    x ← x + a(x),   then x + MLP(LN x)

The row of that name in STOP's comparison, after Pan et al., "ST-Adapter", NeurIPS 2022, arXiv 2206.13559 (code:
github.com/linziyi96/st-adapter at commit b914b38). The table's 11.94 M parameters need a kernel of 3 x 3 x 3 without
bias; the released model has 3 x 1 x 1 with bias (11.84 M).

Shapes: B clips, T frames, P patches, D width.
"""

from functools import partial
from typing import Annotated, Literal

import torch
from torch import Tensor, nn

from modules.adapters import BottleneckAdapter, SpaceTimeAdapter, encode_frames, encode_text
from modules.clip import CLIP, Block
from modules.methods.base import DeadParameters, Method
from modules.options import Range
from modules.similarity import masked_mean


class VideoTextAdapter(Method):
    """The video is the mean of its frames' normalised embeddings, as in CLIP4Clip. The adapters start at zero.

    The visual adapters change patches, not class tokens, as in the release. After the last block only class tokens are
    read, so its adapter has no effect. We keep it for the count, and do not compute it. A tower whose pool reads all
    tokens has no such adapter.
    """

    def __init__(
        self,
        clip: CLIP,
        *,
        adapter_width: Annotated[int, "r, the width inside each adapter", Range(1)] = 384,
        kernel: Annotated[
            Literal["3x3x3", "3x1x1"], "frames, rows and columns that each visual adapter's convolution covers"
        ] = "3x3x3",
        conv_bias: Annotated[bool, "the convolution has a bias, as in ST-Adapter's release"] = False,
    ) -> None:
        super().__init__(clip)
        clip.requires_grad_(False)
        visual, text = clip.visual, clip.text
        size = (3, 3, 3) if kernel == "3x3x3" else (3, 1, 1)
        self.visual_adapters = nn.ModuleList(
            SpaceTimeAdapter(visual.width, adapter_width, size, conv_bias=conv_bias) for _ in visual.blocks
        )
        self.text_adapters = nn.ModuleList(BottleneckAdapter(text.width, adapter_width, "gelu") for _ in text.blocks)

    def encode_video(self, video: Tensor, frame_mask: Tensor) -> Tensor:
        frames = encode_frames(self.clip.visual, video, partial(self._adapt_frames, frame_mask.bool()))
        return masked_mean(frames, frame_mask)

    def encode_text(self, token_ids: Tensor) -> Tensor:
        return encode_text(self.clip.text, token_ids, self._adapt_words)

    def _adapt_frames(self, frame_mask: Tensor, layer: int, block: Block, x: Tensor, attended: Tensor) -> Tensor:
        adapter, first = self.visual_adapters[layer], self.clip.visual.class_tokens
        if f"visual_adapters.{layer}" == self._without_effect:
            # A zero gradient, since DistributedDataParallel does not allow none.
            return attended + 0 * sum(parameter.sum() for parameter in adapter.parameters())
        added = adapter(attended[:, first:].unflatten(0, frame_mask.shape), frame_mask).flatten(0, 1)
        return torch.cat([attended[:, :first], attended[:, first:] + added], dim=1)

    def _adapt_words(self, layer: int, block: Block, x: Tensor, attended: Tensor) -> Tensor:
        return attended + self.text_adapters[layer](attended)

    def decays(self, name: str, parameter: nn.Parameter) -> bool:
        """Return what other methods do, but False for the adapter without effect."""
        of_no_use = self._without_effect
        return super().decays(name, parameter) and not (of_no_use and name.startswith(f"{of_no_use}."))

    @property
    def _without_effect(self) -> str | None:
        return f"visual_adapters.{len(self.visual_adapters) - 1}" if self.clip.visual.reads_first_token else None

    def dead_parameters(self) -> list[DeadParameters]:
        reason = "it changes the patches of the last block, and only class tokens are read after it"
        return [DeadParameters(self._without_effect, reason)] if self._without_effect else []
