"""DGL (Yang et al., AAAI 2024, arXiv 2401.10588; https://github.com/knightyxp/DGL): the prompts of both towers come
from one shared space, and four global prompts attend to the whole clip.

The prompts do not depend on the input. CLIP stays frozen.

[D] The release reads a clip by its first global prompt, as CLIP reads an image by its class token. A tower whose pool
reads all tokens reads the global prompts and the tokens of all frames.

Shapes: B clips, T frames, P patches, D width, G = 4 global prompts, F = 4 prompts of a frame, R = B(G + T(C+P)) tokens
of all clips, C = 1 class token of a frame or none, N captions, L words, E joint embedding.
"""

from collections.abc import Sequence
from functools import partial
from typing import Annotated, Literal

import torch
from torch import Tensor, nn

from modules.clip import CLIP, Block, KeysValues
from modules.deep_prompts import uniform_prompts
from modules.frame_count import check_frames
from modules.methods.base import KEY_BIAS, DeadParameters, Method
from modules.options import Range
from modules.released.padding import hold_last_frame
from modules.released.shared_latent import (
    LatentPrompts,
    LinearLatentSpace,
    TransformerLatentSpace,
    common_depth,
    round_to_half,
)
from modules.text_prompts import Placement, encode_with_both_ends

GLOBAL_PROMPTS = 4  # G; the first of them becomes the clip's embedding
RELEASED_NAMES = {  # prefixes of our tensors' names, and of theirs
    "global_prompts": "clip.visual.prompt_embeddings",
    "latent.prompts": "clip.unified_prompt_embedding.weight",
    "latent.prefix.": "clip.prefix_text_prompt_proj_layer.",
    "latent.postfix.": "clip.postfix_text_prompt_proj_layer.",
    "latent.block.": "clip.PromptTransformer.resblocks.0.",
    "latent.to_text.": "clip.unified_prompt_mlp.",
}


class DGL(Method):
    """Sections 3.2 and 3.3: shared latent space and global-local attention, as released.

    Raises:
        ValueError: if the towers differ in depth. `encode_video` raises it for clips of other than `max_frames` frames
            if the shared latent space is `transformer`, which has prompts for each frame.
    """

    needs = ("equal depth",)

    def __init__(
        self,
        clip: CLIP,
        *,
        shared_latent_space: Annotated[
            Literal["linear", "transformer"], "how text and frame prompts come from one space"
        ] = "transformer",
        max_frames: Annotated[int, "T, frames of a clip", Range(1)] = 12,
        text_postfix: Annotated[
            Placement,
            "dead: as released, after the padding, where no word sees them; before_end: between the last word and END",
        ] = "dead",
    ) -> None:
        super().__init__(clip)
        visual, text = clip.visual, clip.text
        layers = common_depth(clip)
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

    def forward(self, video: Tensor, frame_mask: Tensor, token_ids: Tensor | None) -> tuple[Tensor | None, Tensor]:
        prompts = self.latent()  # once for all captions and clips
        text = None if token_ids is None else self._encode_text(token_ids, prompts)
        return text, self._encode_video(video, frame_mask, prompts)

    def encode_video(self, video: Tensor, frame_mask: Tensor) -> Tensor:
        """Embed clips, `[B,T,3,H,W]` -> `[B,E]`. The last real frame replaces padding frames, because the
        loader of the release repeats that frame and has no padding."""
        return self._encode_video(video, frame_mask, self.latent())

    def encode_text(self, token_ids: Tensor) -> Tensor:
        return self._encode_text(token_ids, self.latent())

    def _encode_video(self, video: Tensor, frame_mask: Tensor, prompts: LatentPrompts) -> Tensor:
        video = hold_last_frame(video.flatten(3), frame_mask.bool()).view_as(video)
        tokens = self.clip.visual.embed(video.flatten(0, 1)).unflatten(0, video.shape[:2])
        return self._run_visual(tokens, prompts.frames.unsqueeze(1))

    def _run_visual(self, tokens: Tensor, prompts: Tensor) -> Tensor:
        """Run the prompted tower: tokens `[B,T,C+P,D]`, frame prompts `[blocks,B or 1,T or 1,F,D]` -> `[B,E]`."""
        visual, frames = self.clip.visual, tokens.shape[1]
        if prompts.shape[2] != 1:
            check_frames(frames, prompts.shape[2])
        # The global prompts of all clips, then all frames: both kinds of queries are then slices that need no copy.
        globals_ = self.global_prompts.expand(len(tokens), -1, -1).to(tokens.dtype)
        x = torch.cat([globals_.flatten(0, 1), tokens.flatten(0, 2)])
        for layer, block in enumerate(visual.blocks):
            assert isinstance(block, Block)
            first_only = visual.reads_first_token and block is visual.blocks[-1]
            attend = partial(global_local_attention, block, size=tokens.shape[:3], first_only=first_only)
            mixed = block.run(attend, x, prompts[layer])
            if first_only:
                x = x[: len(tokens) * GLOBAL_PROMPTS : GLOBAL_PROMPTS]
            x = self.feed_forward("visual", layer, block, x + mixed)
        if visual.reads_first_token:
            return visual.pool(x.unsqueeze(1))
        of_globals, of_frames = x.split([len(tokens) * GLOBAL_PROMPTS, tokens[..., 0].numel()])
        return visual.pool(torch.cat([part.unflatten(0, (len(tokens), -1)) for part in (of_globals, of_frames)], dim=1))

    def _encode_text(self, token_ids: Tensor, prompts: LatentPrompts) -> Tensor:
        feed_forward = partial(self.feed_forward, "text")
        prefix, postfix = prompts.prefix, prompts.postfix
        return encode_with_both_ends(self.clip.text, prefix, postfix, self.text_postfix, token_ids, feed_forward)

    def feed_forward(self, tower: Literal["visual", "text"], layer: int, block: Block, x: Tensor) -> Tensor:
        """Run the second half of a block: `[...,D]` -> `[...,D]`. A subclass can add adapters here."""
        return block.feed_forward(x)

    def decays(self, name: str, parameter: nn.Parameter) -> bool:
        """Return False only for tensors with `bias` in their name, as in the releases: prompts and norms decay."""
        return "bias" not in name

    def dead_parameters(self) -> list[DeadParameters]:
        """Return the key biases of the transformer space, or the linear space's projection of the postfix.

        The postfix of the transformer space has no separate tensors.
        """
        if isinstance(self.latent, TransformerLatentSpace):
            return [DeadParameters("latent.block.attn.in_proj_bias", KEY_BIAS, 1 / 3)]
        if self.text_postfix == "before_end" or not self.clip.text.causal:
            return []
        return [
            DeadParameters(
                "latent.postfix", "after the padding, where the causal mask hides it; weight decay alone changes it"
            )
        ]

    def released_name(self, name: str) -> str | None:
        if name == "latent.prompts" and isinstance(self.latent, LinearLatentSpace):
            return "clip.visual_prompt_embedding"
        for ours, theirs in RELEASED_NAMES.items():
            if name.startswith(ours):
                return theirs + name.removeprefix(ours)
        return super().released_name(name)


def global_local_attention(
    block: Block, x: Tensor, prompts: Tensor, size: Sequence[int], *, first_only: bool
) -> Tensor:
    """Return the output of a frozen block's attention for clips: a global prompt sees its whole clip, and the tokens of
    a frame see the global prompts and their own frame (section 3.3).

    Every block has its own frame prompts, and their outputs are never used: they are keys and values only, without
    queries. The two kinds of queries are two attentions over the same keys.

    Args:
        x: `[R,D]`, the global prompts clip by clip, then class token, if there is one, and patches, frame by frame.
        prompts: `[B or 1,T or 1,F,D]`.
        size: B, T, C + P.
        first_only: compute only the first global prompt of each clip; after the last block nothing else is read.

    Returns:
        `[R,D]`, or `[B,D]` with `first_only`; without the residual.
    """
    attention, (batch, frames, length) = block.attn, size
    normed = block.ln_1(x)
    rows = attention.project_parts(normed, first=1 if first_only else 0)  # no queries where few rows need them
    *queries, keys, values = rows.split(attention.width, dim=1)
    keys, *queries = (_turned(block, part, size) for part in (keys, *queries))
    of_prompts = attention.keys_values(block.ln_1(prompts))
    keys, values = (_by_frame(*pair, size) for pair in zip((keys, values), of_prompts, strict=True))
    # The keys of all frames side by side hold the global prompts T times; only the first counts.
    once = torch.ones(frames, keys.shape[2], dtype=torch.bool, device=x.device)
    once[1:, :GLOBAL_PROMPTS].zero_()
    of_clips = KeysValues(keys.flatten(1, 2), values.flatten(1, 2))
    mask = once.flatten()[None, None, None]
    if first_only:
        by_globals = attention.query(normed[: batch * GLOBAL_PROMPTS : GLOBAL_PROMPTS])
        return attention.project_out(attention.attend(by_globals.unflatten(0, (batch, -1)), of_clips, mask)[:, 0])
    by_globals, by_frames = queries[0].split([batch * GLOBAL_PROMPTS, batch * frames * length])
    of_frames = KeysValues(keys.flatten(0, 1), values.flatten(0, 1))
    gathered = [
        attention.attend(by_globals.unflatten(0, (batch, -1)), of_clips, mask).flatten(0, 1),
        attention.attend(by_frames.unflatten(0, (batch * frames, length)), of_frames).flatten(0, 1),
    ]
    return attention.project_out(torch.cat(gathered))


def _turned(block: Block, rows: Tensor, size: Sequence[int]) -> Tensor:
    """Turn queries or keys `[R,D]` of patches by their places, in a tower with rotary positions."""
    if block.attn.rotary is None:
        return rows
    batch, frames, length = size
    of_globals, of_tokens = rows.split([batch * GLOBAL_PROMPTS, batch * frames * length])
    turned = block.attn.rotary(of_tokens.unflatten(0, (batch * frames, length)))
    return torch.cat([of_globals, turned.flatten(0, 1)])


def _by_frame(rows: Tensor, of_prompts: Tensor, size: Sequence[int]) -> Tensor:
    """Arrange keys (or values) `[R,D]` and those of the prompts by frame: `[B,T,G+C+P+F,D]`."""
    batch, frames, length = size
    of_globals, of_tokens = rows.split([batch * GLOBAL_PROMPTS, batch * frames * length])
    of_globals = of_globals.unflatten(0, (batch, 1, GLOBAL_PROMPTS)).expand(-1, frames, -1, -1)
    return torch.cat([of_globals, of_tokens.unflatten(0, size), of_prompts.expand(batch, frames, -1, -1)], dim=2)
