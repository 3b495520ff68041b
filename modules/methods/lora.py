"""LoRA (Hu et al., ICLR 2022, arXiv 2106.09685) on both of CLIP's towers, the rest of CLIP frozen.

A video is the mean of its frames, as in CLIP4Clip. This is TempMe (`modules.methods.tempme`) without merging of tokens.

Shapes: B clips, T frames, E joint embedding.
"""

from typing import Annotated

from torch import Tensor, nn

from modules.clip import CLIP
from modules.lora import add_lora, released_lora_name
from modules.methods.base import Method
from modules.options import Range
from modules.similarity import masked_mean


class LoRAMethod(Method):
    """CLIP frozen, its temperature too, with low-rank additions to the queries, keys and values of every block."""

    def __init__(
        self, clip: CLIP, *, lora_dim: Annotated[int, "rank of LoRA's additions to queries, keys, values", Range(1)] = 8
    ) -> None:
        super().__init__(clip)
        clip.requires_grad_(False)
        self.visual_lora = add_lora(clip.visual.blocks, lora_dim)
        self.text_lora = add_lora(clip.text.blocks, lora_dim)

    def encode_video(self, video: Tensor, frame_mask: Tensor) -> Tensor:
        return masked_mean(self.clip.visual(video.flatten(0, 1)).unflatten(0, video.shape[:2]), frame_mask)

    def decays(self, name: str, parameter: nn.Parameter) -> bool:
        """Return True: as in the released code of TempMe, all that is trained decays."""
        return True

    def released_name(self, name: str) -> str | None:
        return released_lora_name(name) or super().released_name(name)
