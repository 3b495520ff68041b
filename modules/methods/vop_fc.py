"""VoP^F+C (Huang et al., CVPR 2023, arXiv 2211.12764, section 3): VoP whose visual prompts know the other frames.

    blocks 1..K_s, each frame    [CLS ; static (4) ; context (4) ; patches]
                                 context = FC(BiLSTM(CLS of all frames)), the same nets in all blocks
    blocks K_s+1..N, each clip   [CLS of all frames ; P_l (8) ; patches of all frames], attention over all of it,
                                 after a learned embedding of each frame's place

The paper has no code for it. Texts are those of VoP.

Shapes: B clips, T frames, P patches, S prompts, D width, E joint embedding.
"""

import logging
from typing import Annotated

import torch
from torch import Tensor, nn

from modules.clip import CLIP, Block, KeysValues
from modules.deep_prompts import normal_prompts
from modules.frame_count import check_frames
from modules.methods.vop import PromptedTexts, TextPostfix, TextPromptLength
from modules.options import Range, between
from modules.similarity import masked_mean

log = logging.getLogger("stop")


class VoPFC(PromptedTexts):
    """A clip is the mean of the normalised embeddings of its frames.

    Raises:
        ValueError: if `shallow_layers` is not below the visual blocks of this CLIP. `encode_video` raises it for clips
            of other than `max_frames` frames if there is a frame embedding.
    """

    def __init__(
        self,
        clip: CLIP,
        *,
        prompt_length: Annotated[
            int, "learned tokens in a visual block; in the first blocks the context makes half of them", Range(2)
        ] = 8,
        text_prompt_length: TextPromptLength = 8,
        text_postfix: TextPostfix = "before_end",
        shallow_layers: Annotated[
            int,
            "K_s, first visual blocks, where frames stay apart; 0: two thirds of the blocks, which is 8 of 12",
            Range(0),
        ] = 0,
        max_frames: Annotated[int, "T, frames of a clip", Range(1)] = 12,
        frame_embedding: Annotated[
            bool,
            "also learn the paper's embedding of each frame's place for the last blocks, which its count leaves out",
        ] = False,
    ) -> None:
        super().__init__(clip, text_prompt_length, text_postfix)
        visual = clip.visual
        width, depth = visual.width, len(visual.blocks)
        if not shallow_layers:
            shallow_layers = max(1, 2 * depth // 3)
            log.info("--shallow_layers %d, by the rule for this CLIP's %d visual blocks", shallow_layers, depth)
        between("shallow_layers", shallow_layers, 1, depth - 1, why=f"this CLIP has {depth} visual blocks")
        of_context = prompt_length // 2
        self.static_prompts = normal_prompts(shallow_layers, prompt_length - of_context, width)
        self.deep_prompts = normal_prompts(depth - shallow_layers, prompt_length, width)
        self.context = FrameContext(width, of_context)
        self.frame_embedding = normal_prompts(max_frames, width) if frame_embedding else None

    def encode_video(self, video: Tensor, frame_mask: Tensor) -> Tensor:
        visual, size, shallow = self.clip.visual, video.shape[:2], len(self.static_prompts)
        tokens = visual.embed(video.flatten(0, 1))
        for layer, (block, static) in enumerate(zip(visual.blocks[:shallow], self.static_prompts, strict=True)):
            assert isinstance(block, Block)
            context = self.context(tokens[:, 0].unflatten(0, size), frame_mask).flatten(0, 1)
            prompts = torch.cat([static.to(context.dtype).expand(len(context), -1, -1), context], dim=1)
            # As in VoP, the prompts of the first block join before ln_pre.
            tokens = block(tokens, block.context(prompts if layer else visual.ln_pre(prompts)))
        tokens = tokens.unflatten(0, size)
        if self.frame_embedding is not None:
            check_frames(size[1], len(self.frame_embedding))
            tokens = tokens + self.frame_embedding[:, None]
        classes = self._run_deep(tokens, frame_mask.bool(), visual.blocks[shallow:])
        return masked_mean(visual.pool(classes.flatten(0, 1).unsqueeze(1)).unflatten(0, size), frame_mask)

    def _run_deep(self, tokens: Tensor, frame_mask: Tensor, blocks: nn.ModuleList) -> Tensor:
        """Run the last blocks over whole clips: `[B,T,1+P,D]` -> class tokens `[B,T,D]`. No token sees padding."""
        size = tokens.shape[1:3]
        seen = frame_mask.repeat_interleave(size[1], dim=1)
        seen = torch.cat([seen, seen.new_ones(len(seen), self.deep_prompts.shape[1])], dim=1)[:, None, None]
        x = tokens.flatten(1, 2)
        *middle, last = zip(blocks, self.deep_prompts, strict=True)
        for block, prompts in middle:
            assert isinstance(block, Block)
            x = block(x, block.context(prompts.unsqueeze(0)), seen)
        block, prompts = last
        assert isinstance(block, Block)
        return block.feed_forward(block.run(_classes_attend, block, x, size, block.context(prompts.unsqueeze(0)), seen))


class FrameContext(nn.Module):
    """Makes S prompts for each frame from the class tokens of all frames: a BiLSTM over the frames, then FC.

    The two directions are nets of their own, so that the one that runs backwards can begin at the last real frame.
    """

    def __init__(self, width: int, prompts: int) -> None:
        super().__init__()
        self.onward, self.backward_ = (nn.LSTM(width, width, batch_first=True) for _ in range(2))
        self.fc = nn.Linear(2 * width, prompts * width)
        self.prompts = prompts

    def forward(self, classes: Tensor, frame_mask: Tensor) -> Tensor:
        """Return prompts `[B,T,S,D]` for class tokens `[B,T,D]`; padding, which comes last, changes no real frame's."""
        places = torch.arange(classes.shape[1], device=classes.device)
        last = frame_mask.bool().sum(dim=1, keepdim=True) - 1
        turned = torch.where(places <= last, last - places, places).unsqueeze(-1).expand_as(classes)  # [B,T,D]
        onward, back = self.onward(classes)[0], self.backward_(classes.gather(1, turned))[0]
        both = torch.cat([onward, back.gather(1, turned)], dim=-1)
        return self.fc(both).unflatten(-1, (self.prompts, -1))


def _classes_attend(block: Block, x: Tensor, size: torch.Size, context: KeysValues, seen: Tensor) -> Tensor:
    """Return the class tokens of T frames after a block's attention: `[B,T(1+P),D]` -> `[B,T,D]`; `size` is T, 1+P."""
    normed = block.ln_1(x)
    query = block.attn.query(normed.unflatten(1, size)[:, :, 0])
    gathered = block.attn.attend(query, block.attn.keys_values(normed).followed_by(context), seen)
    return x.unflatten(1, size)[:, :, 0] + block.attn.project_out(gathered)
