"""VoP (Huang et al., "VoP: Text-Video Co-operative Prompt Tuning for Cross-Modal Retrieval", CVPR 2023, arXiv
2211.12764): 8 learned tokens in every block of both frozen towers. Released for inference in
https://github.com/modelscope/modelscope, `models/cv/vop_retrieval`.

    images   [CLS ; P_l (8) ; patches]                       P_1 joins before ln_pre, which normalises it
    texts    [START ; 4 of P_l ; words ; 4 of P_l ; END]     the positions, also those of P_1, count all tokens

Shapes: B clips, T frames, N captions, L words, S prompts, D width, E joint embedding.
"""

from typing import Annotated, Literal

import torch
from torch import Tensor

from modules.clip import CLIP, Block
from modules.deep_prompts import encode_frames, normal_prompts
from modules.methods.base import Method
from modules.options import Range
from modules.similarity import masked_mean, scaled_product, unit

RELEASED_NAMES = {
    "visual_prompts": "visual_prompt_learner.visual_prompts",
    "text_prompts": "text_prompt_learner.text_prompts",
}
TextPromptLength = Annotated[int, "learned tokens in every text block, half of them after the start token", Range(2)]
TextPostfix = Annotated[
    Literal["before_end", "released"],
    "the other half; before_end: between the last word and END, wherever that is; released: before the last of "
    "--max_words tokens, and texts are read 4 places behind END, which is right for the longest texts alone",
]


class PromptedTexts(Method):
    """The text side of VoP and of its variants, and its scores: cosines times the length of a clip's vector.

    That vector is the mean of the frames' normalised embeddings and is not normalised again.
    """

    def __init__(self, clip: CLIP, text_prompt_length: int, text_postfix: str) -> None:
        super().__init__(clip)
        clip.requires_grad_(False)
        self.text_postfix = text_postfix
        self.text_prompts = normal_prompts(len(clip.text.blocks), text_prompt_length, clip.text.width)

    def encode_text(self, token_ids: Tensor) -> Tensor:
        """Embed captions: int64 `[N,L]` -> `[N,E]`.

        Raises:
            ValueError: if words and prompts together are more than this CLIP reads.
        """
        text, (captions, length), count = self.clip.text, token_ids.shape, self.text_prompts.shape[1]
        if length + count > text.context_length:
            raise ValueError(
                f"This CLIP reads at most {text.context_length} tokens, not {length} words and {count} prompts: lower "
                "--max_words or --text_prompt_length."
            )
        ends, before = text.end_positions(token_ids), count // 2
        behind = ends if self.text_postfix == "before_end" else torch.full_like(ends, length - 1)
        of_words = torch.arange(length, device=token_ids.device).expand(captions, -1)
        places = of_words + before * (of_words > 0) + (count - before) * (of_words >= behind.unsqueeze(1))
        prefix = torch.arange(1, before + 1, device=token_ids.device).expand(captions, -1)
        postfix = torch.arange(before, count, device=token_ids.device) + behind.unsqueeze(1)
        of_prompts = torch.cat([prefix, postfix], dim=1).unsqueeze(-1).expand(-1, -1, text.width)
        words = text.token_embedding(token_ids)
        tokens = words.new_zeros(captions, length + count, text.width)
        tokens = tokens.scatter(1, places.unsqueeze(-1).expand(-1, -1, text.width), words)
        for layer, (block, prompts) in enumerate(zip(text.blocks, self.text_prompts, strict=True)):
            assert isinstance(block, Block)
            tokens = tokens.scatter(1, of_prompts, prompts.to(tokens.dtype).expand(captions, -1, -1))
            if layer == 0:
                tokens = tokens + text.positional_embedding[: length + count]
            if block is text.blocks[-1]:
                # END's place if the postfix is before END, and the slot 4 behind it where the release has padding
                tokens = block.feed_forward(block.attend_from(tokens, ends + count))
            else:
                tokens = block(tokens, causal=True)
        return text.pool(tokens.squeeze(1))

    def similarity(self, text: Tensor, video: Tensor) -> Tensor:
        return scaled_product(unit(text), video.float(), self.clip.logit_scale)


class VoP(PromptedTexts):
    """The base method: prompts that are the same for every frame, clip and caption (0.1 M parameters)."""

    needs = ("END",)

    def __init__(
        self,
        clip: CLIP,
        *,
        prompt_length: Annotated[int, "learned tokens in every visual block", Range(1)] = 8,
        text_prompt_length: TextPromptLength = 8,
        text_postfix: TextPostfix = "before_end",
    ) -> None:
        super().__init__(clip, text_prompt_length, text_postfix)
        visual = clip.visual
        self.visual_prompts = normal_prompts(len(visual.blocks), prompt_length, visual.width)

    def encode_video(self, video: Tensor, frame_mask: Tensor) -> Tensor:
        visual = self.clip.visual
        prompts = [visual.ln_pre(self.visual_prompts[0]), *self.visual_prompts[1:]]
        return masked_mean(encode_frames(visual, video, prompts), frame_mask)

    def released_name(self, name: str) -> str | None:
        return RELEASED_NAMES.get(name) or super().released_name(name)
