"""UPT (Zang et al., "Unified Vision and Language Prompt Learning", arXiv 2210.07225; https://github.com/yuhangzang/UPT,
which has no code) as DGL's table has it: one bank, mixed by a transformer block, gives the prompts of both towers.

It is DGL's shared latent space without DGL's global prompts: U of every block -> one shared block -> 8 text prompts,
through an MLP, and 4 prompts of each frame. They are the same for all inputs. CLIP stays frozen.

Shapes: B clips, T frames, N captions, L words, D width, E joint embedding.
"""

from typing import Annotated

from torch import Tensor

from modules.clip import CLIP
from modules.deep_prompts import encode_frames
from modules.frame_count import check_frames
from modules.methods.base import KEY_BIAS, DeadParameters, Method
from modules.options import Range
from modules.released.shared_latent import LatentPrompts, TransformerLatentSpace, common_depth
from modules.similarity import masked_mean
from modules.text_prompts import Placement, encode_with_both_ends


class UPT(Method):
    """A video is the mean of its frames' normalised embeddings, each with its own prompts.

    Raises:
        ValueError: if the towers differ in depth. `encode_video` raises it for clips of other than `max_frames` frames.
    """

    needs = ("equal depth",)

    def __init__(
        self,
        clip: CLIP,
        *,
        max_frames: Annotated[int, "T, frames of a clip", Range(1)] = 12,
        text_postfix: Annotated[
            Placement,
            "half of the text prompts; before_end: between the last word and END; dead: after the padding, where no "
            "word sees them, as DGL has them",
        ] = "before_end",
    ) -> None:
        super().__init__(clip)
        visual, text = clip.visual, clip.text
        clip.requires_grad_(False)
        self.text_postfix = text_postfix
        heads = clip.architecture.vision_heads
        self.latent = TransformerLatentSpace(common_depth(clip), visual.width, heads, text.width, max_frames)

    def forward(self, video: Tensor, frame_mask: Tensor, token_ids: Tensor | None) -> tuple[Tensor | None, Tensor]:
        prompts = self.latent()  # once for all captions and clips
        text = None if token_ids is None else self._encode_text(token_ids, prompts)
        return text, self._encode_video(video, frame_mask, prompts)

    def encode_video(self, video: Tensor, frame_mask: Tensor) -> Tensor:
        return self._encode_video(video, frame_mask, self.latent())

    def encode_text(self, token_ids: Tensor) -> Tensor:
        return self._encode_text(token_ids, self.latent())

    def _encode_video(self, video: Tensor, frame_mask: Tensor, prompts: LatentPrompts) -> Tensor:
        check_frames(video.shape[1], self.latent.frames)
        return masked_mean(encode_frames(self.clip.visual, video, prompts.frames), frame_mask)

    def _encode_text(self, token_ids: Tensor, prompts: LatentPrompts) -> Tensor:
        return encode_with_both_ends(self.clip.text, prompts.prefix, prompts.postfix, self.text_postfix, token_ids)

    def dead_parameters(self) -> list[DeadParameters]:
        return [DeadParameters("latent.block.attn.in_proj_bias", KEY_BIAS, 1 / 3)]
