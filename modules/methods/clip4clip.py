"""CLIP4Clip (Luo et al., Neurocomputing 2022, arXiv 2104.08860; github.com/ArrowLuo/CLIP4Clip): CLIP on every frame,
then a similarity calculator over the frame embeddings, everything fine-tuned.

Shapes: B clips, T frames, E joint embedding.
"""

from typing import Annotated, Literal

import torch
from torch import nn

from modules.clip import CLIP
from modules.methods.base import Method
from modules.similarity import masked_mean


class CLIP4Clip(Method):
    """Section 3.3, parameter-free type: a video is the mean of its frames' normalised embeddings.

    Trained are, as in the released code, the transformer blocks from `freeze_layer_num` on, both final LayerNorms, both
    projections and the temperature. The embeddings (patches, tokens, class token, positions) and `ln_pre` stay as CLIP
    has them.

    Raises:
        ValueError: for a `freeze_layer_num` outside 0..number of blocks (frozen blocks count in both towers).
    """

    def __init__(
        self,
        clip: CLIP,
        *,
        sim_header: Annotated[Literal["meanP"], "how frame embeddings become one video embedding"] = "meanP",
        freeze_layer_num: Annotated[int, "the first blocks of both towers that stay frozen"] = 0,
    ) -> None:
        super().__init__(clip)
        if sim_header != "meanP":
            raise ValueError(f"sim_header={sim_header!r} is not one of: meanP")
        depth = max(len(clip.visual.blocks), len(clip.text.blocks))
        if not 0 <= freeze_layer_num <= depth:
            raise ValueError(f"freeze_layer_num={freeze_layer_num} is outside 0..{depth}, the blocks of this CLIP")
        clip.requires_grad_(False)
        for blocks in (clip.visual.blocks, clip.text.blocks):
            for block in list(blocks)[freeze_layer_num:]:
                block.requires_grad_(True)
        clip.visual.ln_post.requires_grad_(True)
        clip.text.ln_final.requires_grad_(True)
        clip.visual.proj.requires_grad_(True)
        clip.text.text_projection.requires_grad_(True)
        clip.logit_scale.requires_grad_(True)

    def encode_frames(self, video: torch.Tensor) -> torch.Tensor:
        """CLIP's image embedding of every frame: `[B,T,3,H,W]` -> `[B,T,E]`, not normalised."""
        return self.clip.visual(video.flatten(0, 1)).unflatten(0, video.shape[:2])

    def encode_video(self, video: torch.Tensor, frame_mask: torch.Tensor) -> torch.Tensor:
        return masked_mean(self.encode_frames(video), frame_mask)

    def decays(self, name: str, parameter: nn.Parameter) -> bool:
        """The released code exempts biases only; LayerNorm weights and the temperature decay there, and so here."""
        return not name.endswith("bias")
