"""VPT-deep (Jia et al., "Visual Prompt Tuning", ECCV 2022, arXiv 2203.12119; https://github.com/KMnP/vpt) on every
frame of a clip, and by default likewise in the text tower.

The static-prompt baseline: learned tokens join the frozen CLIP's attention in every block, the same for every frame,
clip and caption. Frames are averaged, so their order has no effect.

Shapes: B clips, T frames, N captions, L words, S prompts, D width, E joint embedding.
"""

from collections.abc import Mapping
from typing import Annotated, Literal

import torch
from torch import Tensor, nn

from modules.clip import CLIP
from modules.deep_prompts import encode_frames, normal_prompts, uniform_prompts
from modules.methods.base import Method
from modules.options import Range
from modules.similarity import masked_mean
from modules.text_prompts import encode_with_prefix, text_prompts

FIRST, DEEP = "prompt_embeddings", "deep_prompt_embeddings"  # the release's names: of block 0 [1,S,D], of the others


class VPT(Method):
    """Section 3.2 of the VPT paper, "deep" type, with CLIP frozen; STOP's table lists it with 0.18 M parameters.

    12 prompts in each block of both towers of ViT-B/32 are as many parameters, 184,320, as 20 prompts in each visual
    block. The table's result fits prompts in both towers; prompts for images alone score five points less elsewhere.

    The video is the mean of its frames' normalised embeddings, as in CLIP4Clip.
    """

    newer = ("prompt_init",)

    def __init__(
        self,
        clip: CLIP,
        *,
        prompt_length: Annotated[
            int, "learned tokens in every visual block; VPT on images alone has 20", Range(1)
        ] = 12,
        text_prompt_length: Annotated[
            int, "learned tokens after the start token in every text block; 0 in VPT on images alone", Range(0)
        ] = 12,
        prompt_init: Annotated[
            Literal["normal", "uniform"],
            "initial values of the visual prompts; normal: deviation 0.02; uniform: as VPT draws them, by patch size "
            "and width",
        ] = "normal",
    ) -> None:
        super().__init__(clip)
        clip.requires_grad_(False)
        visual = clip.visual
        shape = len(visual.blocks), prompt_length, visual.width
        self.prompts = (
            normal_prompts(*shape) if prompt_init == "normal" else uniform_prompts(*shape, patch_size=visual.patch_size)
        )
        self.text_prompts = text_prompts(clip.text, text_prompt_length)

    def encode_video(self, video: Tensor, frame_mask: Tensor) -> Tensor:
        return masked_mean(encode_frames(self.clip.visual, video, self.prompts), frame_mask)

    def encode_text(self, token_ids: Tensor) -> Tensor:
        return encode_with_prefix(self.clip.text, self.text_prompts, token_ids)

    def decays(self, name: str, parameter: nn.Parameter) -> bool:
        """Return False: prompts do not decay."""
        return False

    def released_name(self, name: str) -> str | None:
        """Return the release's name; it has no text prompts, so its tensors fit `text_prompt_length` 0 alone."""
        return name if name in ("prompts", "text_prompts") else super().released_name(name)

    def released_tensors(self, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the release's tensors, the prompts of its first block and of the others as one."""
        tensors = super().released_tensors(state_dict)
        parts = [tensors[name] for name in (FIRST, DEEP) if name in tensors]
        if len(parts) == 2 and parts[0].shape[1:] == parts[1].shape[1:]:
            del tensors[FIRST], tensors[DEEP]
            tensors["prompts"] = torch.cat(parts)
        return tensors
