"""VPT-deep (Jia et al., "Visual Prompt Tuning", ECCV 2022, arXiv 2203.12119) on every frame of a clip.

The static-prompt baseline: learned tokens join the frozen CLIP's attention in every block, the same for every frame and
clip. Frames are averaged, so their order has no effect.

Shapes: B clips, T frames, N captions, L words, S prompts, D width, E joint embedding.
"""

from typing import Annotated

import torch
from torch import Tensor, nn

from modules.clip import CLIP, Block
from modules.methods.base import Method
from modules.options import Range
from modules.similarity import masked_mean
from modules.text_prompts import encode_with_prefix, text_prompts


class VPT(Method):
    """Section 3.2 of the VPT paper, "deep" type, with CLIP frozen; STOP's table lists it with 0.18 M parameters.

    Every block has its own prompts, and their outputs are dropped before the next block; so they are a context, keys
    and values without queries. The video is the mean of its frames' normalised embeddings, as in CLIP4Clip.
    """

    def __init__(
        self,
        clip: CLIP,
        *,
        prompt_length: Annotated[int, "learned tokens in every visual block", Range(1)] = 20,
        text_prompt_length: Annotated[int, "learned tokens after the start token in every text block", Range(0)] = 0,
    ) -> None:
        super().__init__(clip)
        clip.requires_grad_(False)
        visual = clip.visual
        self.prompts = nn.Parameter(0.02 * torch.randn(len(visual.blocks), prompt_length, visual.width))
        self.text_prompts = text_prompts(clip.text, text_prompt_length)

    def encode_video(self, video: Tensor, frame_mask: Tensor) -> Tensor:
        visual = self.clip.visual
        tokens = visual.embed(video.flatten(0, 1))
        last = visual.blocks[-1]
        for block, prompts in zip(visual.blocks, self.prompts, strict=True):
            assert isinstance(block, Block)
            context = block.context(prompts.unsqueeze(0))
            tokens = block.first_token(tokens, context) if block is last else block(tokens, context)
        return masked_mean(visual.pool(tokens).unflatten(0, video.shape[:2]), frame_mask)

    def encode_text(self, token_ids: Tensor) -> Tensor:
        return encode_with_prefix(self.clip.text, self.text_prompts, token_ids)

    def decays(self, name: str, parameter: nn.Parameter) -> bool:
        """Return False: prompts do not decay."""
        return False
