"""Efficient Prompt (Ju et al., "Prompting Visual-Language Models for Efficient Video Understanding", ECCV 2022, arXiv
2112.04478; https://github.com/ju-chen/Efficient-Prompt): learned tokens around the words, and a small transformer over
the embeddings of the frames. CLIP stays frozen.

    text    [START ; E_1..E_16 ; words ; E_i..E_i+15 ; END]    row p of the table E stands at place p
    video   mean over t of Blocks(v + e)_t                     v_t = CLIP(frame t), e_t learned
    score   cos(text, video) / 0.07

The released code classifies actions; captions in the place of their names are retrieval.

Shapes: B clips, T frames, N captions, L words, D text width, E joint embedding.
"""

import math
from collections.abc import Mapping
from typing import Annotated

import torch
from torch import Tensor, nn

from modules.clip import CLIP, Block
from modules.frame_count import check_frames
from modules.methods.base import KEY_BIAS, DeadParameters, Method
from modules.options import Range

RELEASED_NAMES = {
    "text_table": "embedding.weight",
    "frame_table": "temporalEmbedding.weight",
    "temporal.": "temporalModelling.resblocks.",
}


class EfficientPrompt(Method):
    """Section 3 of the paper, with the temporal blocks.

    Raises:
        ValueError: if the joint embedding cannot be split into `tfm_heads` heads. `encode_text` raises it if words and
            prompts are more than this CLIP reads, `encode_video` for clips of other than `max_frames` frames.
    """

    def __init__(
        self,
        clip: CLIP,
        *,
        prefix: Annotated[int, "learned tokens after the start token", Range(1)] = 16,
        postfix: Annotated[int, "learned tokens between the last word and END", Range(1)] = 16,
        tfm_layers: Annotated[int, "transformer blocks over the frames", Range(1)] = 2,
        tfm_heads: Annotated[int, "their heads", Range(1)] = 8,
        max_frames: Annotated[int, "T, frames of a clip", Range(1)] = 12,
        tau: Annotated[float, "the constant temperature: cosines are divided by it", Range(0, above=True)] = 0.07,
    ) -> None:
        super().__init__(clip)
        clip.requires_grad_(False)
        width, text = clip.visual.proj.shape[1], clip.text
        if width % tfm_heads:
            raise ValueError(
                f"--tfm_heads {tfm_heads} does not divide the {width} numbers of this CLIP's embeddings; pass a divisor"
            )
        with torch.no_grad():
            clip.logit_scale.fill_(math.log(1 / tau))
        self.prefix, self.postfix = prefix, postfix
        self.text_table = nn.Parameter(0.01 * torch.randn(text.context_length, text.width))
        self.frame_table = nn.Parameter(0.01 * torch.randn(max_frames, width))
        self.temporal = nn.ModuleList(Block(width, tfm_heads, "quick_gelu") for _ in range(tfm_layers))
        for block in self.temporal:
            assert isinstance(block, Block)
            block.attn.draw_as_torch()
            block.mlp.c_fc.reset_parameters()
            block.mlp.c_proj.reset_parameters()

    def encode_video(self, video: Tensor, frame_mask: Tensor) -> Tensor:
        """Embed clips: `[B,T,3,H,W]` -> `[B,E]`. Padding is no key and has no part in the mean."""
        check_frames(video.shape[1], len(self.frame_table))
        real = frame_mask.bool()
        x = self.clip.visual(video.flatten(0, 1)).unflatten(0, video.shape[:2]) + self.frame_table
        for block in self.temporal:
            x = block(x, mask=real[:, None, None])
        return (x * real.unsqueeze(-1)).sum(dim=1) / real.sum(dim=1, keepdim=True)

    def encode_text(self, token_ids: Tensor) -> Tensor:
        text = self.clip.text
        tokens, ends = self.prompted(token_ids)
        tokens = tokens + text.positional_embedding[: tokens.shape[1]]
        *blocks, last = text.blocks
        for block in blocks:
            tokens = block(tokens, causal=True)
        assert isinstance(last, Block)
        return text.pool(last.feed_forward(last.attend_from(tokens, ends)).squeeze(1))

    def prompted(self, token_ids: Tensor) -> tuple[Tensor, Tensor]:
        """Return the tokens of captions with their prompts, without positions, `[N,prefix+L+postfix,D]`, and the places
        of END, `[N]`. Behind END the table goes on, where END does not see it.

        Raises:
            ValueError: if there are more tokens than this CLIP reads.
        """
        text, added = self.clip.text, self.prefix + self.postfix
        length = token_ids.shape[1] + added
        if length > text.context_length:
            raise ValueError(
                f"This CLIP reads at most {text.context_length} tokens, not {token_ids.shape[1]} words and {added} "
                "prompts: lower --max_words, --prefix or --postfix."
            )
        ends = text.end_positions(token_ids) + added
        places = torch.arange(length, device=token_ids.device).expand(len(token_ids), -1)
        end = places == ends.unsqueeze(1)
        inside = (places > self.prefix) & (places < (ends - self.postfix).unsqueeze(1))
        # Which word stands at a place; at places of prompts the number means nothing.
        word = torch.where(places > self.prefix, places - self.prefix, 0) - self.postfix * end
        words = text.token_embedding(token_ids.gather(1, word.clamp(max=token_ids.shape[1] - 1)))
        is_word = (inside | end | (places == 0)).unsqueeze(-1)
        return torch.where(is_word, words, self.text_table[:length].to(words.dtype)), ends

    def dead_parameters(self) -> list[DeadParameters]:
        """Return the key biases of the temporal blocks, and the rows of the table that stand at no place."""
        rows = len(self.text_table)
        names = [f"temporal.{n}.attn.in_proj_bias" for n in range(len(self.temporal))]
        reason = (
            "START and END stand at the first and the last place; with --max_words below "
            f"{rows - self.prefix - self.postfix} more of the last rows are behind END. Weight decay alone changes them"
        )
        return [DeadParameters("text_table", reason, 2 / rows), *(DeadParameters(n, KEY_BIAS, 1 / 3) for n in names)]

    def released_name(self, name: str) -> str | None:
        """Return the release's name; its scores have no `logit_scale` of CLIP's."""
        if name == "clip.logit_scale":
            return None
        for ours, theirs in RELEASED_NAMES.items():
            if name.startswith(ours):
                return theirs + name.removeprefix(ours)
        released = super().released_name(name)
        return released and released.replace("clip.", "clipmodel.", 1)

    def released_tensors(self, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
        tensors = super().released_tensors(state_dict)
        tensors.pop("clipmodel.logit_scale", None)
        return tensors
