"""DGL (Yang et al., AAAI 2024, arXiv 2401.10588; https://github.com/knightyxp/DGL): learned prompts from a space that
both towers share, and four global prompts that attend to the whole clip.

The prompts do not depend on the input. CLIP stays frozen.

Shapes: B clips, T frames, P patches, D width, G = 4 global prompts, F = 4 prompts of a frame, R = B(G + T(1+P)) tokens
of all clips, N captions, L words, E joint embedding.
"""

from collections.abc import Sequence
from functools import partial
from typing import Annotated, Literal

import torch
from torch import Tensor, nn

from modules.clip import CLIP, Block, KeysValues
from modules.dynamics import hold_last_frame
from modules.methods.base import DeadParameters, Method
from modules.shared_latent import (
    LatentPrompts,
    LinearLatentSpace,
    TransformerLatentSpace,
    round_to_half,
    uniform_prompts,
)
from modules.text_prompts import encode_with_context, seen_after_start, seen_from_end

GLOBAL_PROMPTS = 4  # G; the first of them becomes the clip's embedding
RELEASED_NAMES = {  # starts of our tensors' names and of theirs
    "global_prompts": "clip.visual.prompt_embeddings",
    "latent.prompts": "clip.unified_prompt_embedding.weight",
    "latent.prefix.": "clip.prefix_text_prompt_proj_layer.",
    "latent.postfix.": "clip.postfix_text_prompt_proj_layer.",
    "latent.block.": "clip.PromptTransformer.resblocks.0.",
    "latent.to_text.": "clip.unified_prompt_mlp.",
}
KEY_BIAS = "a third of it, the keys': the same for all keys of a query, and softmax removes it"


class DGL(Method):
    """Sections 3.2 and 3.3: shared latent space and global-local attention, as released.

    Raises:
        ValueError: for an option outside its range, and at a clip of other than `max_frames` frames where the shared
            latent space is `transformer`, which has prompts for each frame.
    """

    def __init__(
        self,
        clip: CLIP,
        *,
        shared_latent_space: Annotated[
            Literal["linear", "transformer"], "how text and frame prompts come from one space"
        ] = "transformer",
        max_frames: Annotated[int, "T, frames of a clip"] = 12,
        text_postfix: Annotated[
            Literal["dead", "before_end"],
            "dead: as released, behind the padding, where no word sees them; before_end: between the last word and END",
        ] = "dead",
    ) -> None:
        super().__init__(clip)
        visual, text = clip.visual, clip.text
        layers = len(visual.blocks)
        if shared_latent_space not in ("linear", "transformer"):
            raise ValueError(f"shared_latent_space={shared_latent_space!r} is not one of: linear, transformer")
        if text_postfix not in ("dead", "before_end"):
            raise ValueError(f"text_postfix={text_postfix!r} is not one of: dead, before_end")
        if max_frames < 1:
            raise ValueError(f"max_frames={max_frames} is not 1 or more")
        if len(text.blocks) != layers:
            raise ValueError(
                f"a shared latent space needs towers of equal depth; this CLIP has {layers} visual and "
                f"{len(text.blocks)} text blocks"
            )
        clip.requires_grad_(False)
        self.text_postfix = text_postfix
        self.global_prompts = uniform_prompts(1, GLOBAL_PROMPTS, visual.width)
        heads = clip.architecture.vision_heads
        self.latent: LinearLatentSpace | TransformerLatentSpace = (
            LinearLatentSpace(layers, visual.width, text.width)
            if shared_latent_space == "linear"
            else TransformerLatentSpace(layers, visual.width, heads, text.width, max_frames)
        )
        round_to_half(self.latent)

    def forward(self, video: Tensor, frame_mask: Tensor, token_ids: Tensor) -> tuple[Tensor, Tensor]:
        prompts = self.latent()  # once for all captions and clips
        return self._encode_text(token_ids, prompts), self._encode_video(video, frame_mask, prompts)

    def encode_video(self, video: Tensor, frame_mask: Tensor) -> Tensor:
        """`[B,T,3,H,W]` -> `[B,E]`. Padding frames count as the last real frame once more: the release knows no
        padding, its loader repeats that frame."""
        return self._encode_video(video, frame_mask, self.latent())

    def encode_text(self, token_ids: Tensor) -> Tensor:
        return self._encode_text(token_ids, self.latent())

    def _encode_video(self, video: Tensor, frame_mask: Tensor, prompts: LatentPrompts) -> Tensor:
        video = hold_last_frame(video.flatten(3), frame_mask.bool()).view_as(video)
        tokens = self.clip.visual.embed(video.flatten(0, 1)).unflatten(0, video.shape[:2])
        return self._run_visual(tokens, prompts.frames.unsqueeze(1))

    def _run_visual(self, tokens: Tensor, prompts: Tensor) -> Tensor:
        """The prompted tower: tokens `[B,T,1+P,D]`, frame prompts `[blocks,B or 1,T or 1,F,D]` -> `[B,E]`."""
        frames = tokens.shape[1]
        if prompts.shape[2] not in (1, frames):
            raise ValueError(f"the clip has {frames} frames, and this model was made for max_frames={prompts.shape[2]}")
        # All clips' global prompts, then all their frames: so both kinds of queries are slices that need no copy.
        globals_ = self.global_prompts.expand(len(tokens), -1, -1).to(tokens.dtype)
        x = torch.cat([globals_.flatten(0, 1), tokens.flatten(0, 2)])
        last = len(self.clip.visual.blocks) - 1
        for layer, block in enumerate(self.clip.visual.blocks):
            assert isinstance(block, Block)
            attend = partial(global_local_attention, block, size=tokens.shape[:3], first_only=layer == last)
            mixed = block.run(attend, x, prompts[layer])
            if layer == last:
                x = x[: len(tokens) * GLOBAL_PROMPTS : GLOBAL_PROMPTS]
            x = self.feed_forward("visual", layer, block, x + mixed)
        return self.clip.visual.pool(x.unsqueeze(1))

    def _encode_text(self, token_ids: Tensor, prompts: LatentPrompts) -> Tensor:
        context, seen = prompts.prefix, seen_after_start(token_ids, prompts.prefix.shape[1])
        if self.text_postfix == "before_end":
            context = torch.cat([context, prompts.postfix], dim=1)
            seen_late = seen_from_end(token_ids, prompts.postfix.shape[1])
            seen = torch.cat([seen.expand(len(seen_late), -1, -1, -1), seen_late], dim=-1)
        else:
            # Left out of the tower. Its gradient is zero, not none: weight decay goes on as in the release.
            context = context + 0 * prompts.postfix.sum()
        return encode_with_context(self.clip.text, context, seen, token_ids, partial(self.feed_forward, "text"))

    def feed_forward(self, tower: Literal["visual", "text"], layer: int, block: Block, x: Tensor) -> Tensor:
        """The second half of a block, a seam for adapters: `[...,D]` -> `[...,D]`."""
        return block.feed_forward(x)

    def decays(self, name: str, parameter: nn.Parameter) -> bool:
        """The releases exempt what has `bias` in its name and nothing else: learned prompts and norms decay."""
        return "bias" not in name

    def dead_parameters(self) -> list[DeadParameters]:
        """The postfix's own projection (a transformer's postfix shares all its tensors with what is alive), and the key
        biases of the transformer."""
        if isinstance(self.latent, TransformerLatentSpace):
            return [DeadParameters("latent.block.attn.in_proj_bias", KEY_BIAS, 1 / 3)]
        if self.text_postfix == "before_end":
            return []
        return [DeadParameters("latent.postfix", "behind the padding, where the causal mask hides it; it only decays")]

    def released_name(self, name: str) -> str:
        if name == "latent.prompts" and isinstance(self.latent, LinearLatentSpace):
            return "clip.visual_prompt_embedding"
        for ours, theirs in RELEASED_NAMES.items():
            if name.startswith(ours):
                return theirs + name.removeprefix(ours)
        return super().released_name(name)


def global_local_attention(
    block: Block, x: Tensor, prompts: Tensor, size: Sequence[int], *, first_only: bool
) -> Tensor:
    """What the attention of a frozen block adds to clips: a global prompt sees its whole clip, a frame's tokens see the
    global prompts and their own frame (section 3.3).

    Every block brings its own frame prompts, so that what a block makes of them is never used: they are seen, and ask
    nothing. The two kinds of queries are two attentions over the same keys, arranged once.

    Args:
        x: `[R,D]`, the global prompts clip by clip, then class token and patches, frame by frame.
        prompts: `[B or 1,T or 1,F,D]`.
        size: B, T, 1 + P.
        first_only: only for the first global prompt of each clip, all that is read behind the last block.

    Returns:
        `[R,D]`, or `[B,D]` with `first_only`; without the residual.
    """
    attention, (batch, frames, length) = block.attn, size
    parts = [batch * GLOBAL_PROMPTS, batch * frames * length]  # to be split, as slices fill all they leave with zeros
    normed = block.ln_1(x)
    if first_only:
        q, (k, v) = attention.query(normed[: parts[0] : GLOBAL_PROMPTS]), attention.keys_values(normed)
    else:
        q, k, v = attention.project(normed)

    def by_frame(part: Tensor, of_prompts: Tensor) -> Tensor:  # [R,D], [B or 1 * T or 1,F,D] -> [B,T,G+1+P+F,D]
        of_globals, of_frames = part.split(parts)
        of_globals = of_globals.unflatten(0, (batch, 1, GLOBAL_PROMPTS)).expand(-1, frames, -1, -1)
        of_prompts = of_prompts.unflatten(0, prompts.shape[:2]).expand(batch, frames, -1, -1)
        return torch.cat([of_globals, of_frames.unflatten(0, size), of_prompts], dim=2)

    of_prompts = attention.keys_values(block.ln_1(prompts.flatten(0, 1)))
    seen = KeysValues(by_frame(k, of_prompts.keys), by_frame(v, of_prompts.values))
    # Side by side all frames' keys are all keys, the global prompts T times, of which one counts.
    once = torch.ones(frames, seen.keys.shape[2], dtype=torch.bool, device=x.device)
    once[1:, :GLOBAL_PROMPTS].zero_()
    by_globals, *by_frames = [q] if first_only else q.split(parts)
    of_clips = KeysValues(*(part.flatten(1, 2) for part in seen))
    found = attention.find(by_globals.unflatten(0, (batch, -1)), of_clips, once.flatten()[None, None, None])
    found = found.flatten(0, 1)
    if by_frames:
        of_frames = KeysValues(*(part.flatten(0, 1) for part in seen))
        found_by_frames = attention.find(by_frames[0].unflatten(0, (batch * frames, length)), of_frames)
        found = torch.cat([found, found_by_frames.flatten(0, 1)])
    return attention.project_out(found)
