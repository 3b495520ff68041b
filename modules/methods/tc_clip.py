"""TC-CLIP (Kim et al., "Leveraging Temporal Contextualization for Video Action Recognition", ECCV 2024, arXiv
2404.09490; github.com/naver-ai/tc-clip): the frames of a block attend to a summary of the whole clip, and the prompts
of a text attend to the summary of the video it is compared with.

Shapes: B clips, T frames, N texts, L words, K context tokens, P learned tokens, D width, E joint embedding.
"""

from collections.abc import Mapping
from typing import Annotated, NamedTuple

import torch
from torch import Tensor, nn

from modules.clip import CLIP, Block
from modules.methods.base import KEY_BIAS, DeadParameters, Method
from modules.options import Range
from modules.precision import without_autocast
from modules.rows import map_rows
from modules.similarity import unit
from modules.tc_clip.context import Context, attend, bias_table, summarise
from modules.tc_clip.prompts import (
    OF_TEMPLATE,
    PromptGeneration,
    TextRows,
    finish,
    prompt_states,
    states_before_last,
    with_prompts,
)
from modules.weight_names import join_queries_keys_values, to_openai_key

GENERATION = "text_encoder.prompt_generation_layer.0."
AT_ONCE = 1 << 24  # values inside the MLP of the last text block at once; 64 MB


class VideoRows(NamedTuple):
    """B clips: `video` float `[B,E]`, the mean of real frames, and `prompts` float `[B,P,D]` of the text tower."""

    video: Tensor
    prompts: Tensor


class TCCLIP(Method):
    """CLIP, fine-tuned whole but for the word embeddings, with temporal contextualisation in every visual block and
    video-conditional prompts before the last text block.

    The row of a text is its states before the last block; `similarity` runs that block for every pair. The row of a
    video has the prompts it gives, since they are the same for all texts (`modules.tc_clip.prompts`).

    Raises:
        ValueError: if `seed_share` of this CLIP's patches is less than one patch, or `prompt_heads` does not divide
            the width of its text tower.
    """

    needs = ("class token", "class pool", "unturned tokens", "END", "CLIP's words")

    is_dot_product = False

    def __init__(
        self,
        clip: CLIP,
        *,
        context_tokens: Annotated[
            int, "K, what the seeds of a clip are merged to; a clip with fewer seeds keeps them all", Range(1)
        ] = 96,
        seed_share: Annotated[
            float,
            "share of a frame's patches that are seeds, rounded down: 58 of 196 at ViT-B/16",
            Range(0, 1, above=True),
        ] = 0.3,
        tome_r: Annotated[int, "tokens that may go in one round of merging", Range(1)] = 100,
        prompt_heads: Annotated[
            int, "heads that attend from prompts to the context; 0: as many as in the text tower", Range(0)
        ] = 0,
    ) -> None:
        super().__init__(clip)
        visual, text = clip.visual, clip.text
        clip.requires_grad_(True)
        text.token_embedding.requires_grad_(False)
        self.context_tokens, self.tome_r = context_tokens, tome_r
        self.seeds = int(seed_share * visual.grid**2)
        if not self.seeds:
            raise ValueError(
                f"--seed_share {seed_share:g} of the {visual.grid**2} patches of this CLIP is not one patch: pass at "
                f"least {1 / visual.grid**2:.3g}"
            )
        heads = prompt_heads or clip.architecture.text_heads
        if text.width % heads:
            raise ValueError(
                f"--prompt_heads {heads} does not divide {text.width}, the width of this CLIP's text tower"
            )
        self.bias = nn.ParameterList(bias_table(clip.architecture.vision_heads) for _ in list(visual.blocks)[1:])
        self.generation = PromptGeneration(text, clip.architecture.embed_dim, heads).requires_grad_(True)
        ids = torch.tensor(OF_TEMPLATE, device=text.token_embedding.weight.device)
        self.ctx = nn.Parameter(text.token_embedding(ids).detach().clone())

    def encode_frames(self, video: Tensor, frame_mask: Tensor) -> tuple[Tensor, Context]:
        """Embed every frame and the clip's context tokens, both not normalised: `[B,T,E]`, and a context `[B,K,E]`."""
        visual, real = self.clip.visual, frame_mask.bool()
        x = visual.embed(video.flatten(0, 1)).unflatten(0, video.shape[:2])
        # --describe works without values, on clips of full length.
        lengths = [x.shape[1]] * len(x) if real.is_meta else real.sum(dim=1).tolist()
        context = None
        for layer, block in enumerate(visual.blocks):
            assert isinstance(block, Block)
            table = self.bias[layer - 1] if layer else None
            x, seeds = attend(block, x, context, table, self.seeds)
            context = summarise(x, seeds, lengths, self.context_tokens, self.tome_r)
            context = context._replace(tokens=block.feed_forward(context.tokens))
            if block is visual.blocks[-1]:
                x = x[:, :, :1]
            x = block.feed_forward(x)
        assert context is not None
        tokens = visual.ln_post(context.tokens) @ visual.proj
        return visual.pool(x.flatten(0, 1)).unflatten(0, video.shape[:2]), context._replace(tokens=tokens)

    def encode_video(self, video: Tensor, frame_mask: Tensor) -> VideoRows:
        frames, context = self.encode_frames(video, frame_mask)
        weight = frame_mask.to(frames.dtype).unsqueeze(-1)
        mean = (frames * weight).sum(dim=1) / weight.sum(dim=1)
        text = self.clip.text
        start = text.token_embedding.weight[-2]
        states = prompt_states(text, start, self.ctx)
        return VideoRows(mean, self.generation(states, context._replace(tokens=context.tokens.detach())))

    def encode_text(self, token_ids: Tensor) -> TextRows:
        embedded, end = with_prompts(self.clip.text, token_ids, self.ctx)
        states = states_before_last(self.clip.text, embedded)
        padding = torch.arange(states.shape[1], device=states.device) > end.unsqueeze(1)
        return TextRows(states.masked_fill(padding.unsqueeze(-1), 0), end)

    def similarity(self, text: TextRows, video: VideoRows) -> Tensor:
        """Score every text with every video: exp(logit_scale) times the cosine, fp32 `[N,B]`."""
        with without_autocast(text.states.device.type):
            vectors, prompts = unit(video.video), video.prompts.float()
            rows = max(1, AT_ONCE // (4 * text.states.shape[-1] * max(1, len(vectors))))
            parts = []
            for first in range(0, len(text.end), rows):
                some = map_rows(lambda own, at=first: own[at : at + rows], text)  # type: ignore[misc]
                assert isinstance(some, TextRows)
                texts = finish(self.clip.text, some._replace(states=some.states.float()), prompts)
                parts.append(torch.einsum("nbe,be->nb", nn.functional.normalize(texts, dim=-1), vectors))
            return self.clip.logit_scale.float().exp() * torch.cat(parts)

    def dead_parameters(self) -> list[DeadParameters]:
        return [DeadParameters("generation.attn.in_proj_bias", KEY_BIAS, 1 / 3)]

    def released_name(self, name: str) -> str | None:
        """Return the released name. The queries, keys and values of the image tower, which are three there, have one
        name with `{q,k,v}` in it."""
        if name == "ctx":
            return "prompt_learner.ctx"
        if name.startswith("bias."):
            layer = int(name.split(".")[1]) + 1
            return f"image_encoder.transformer.resblocks.{layer}.attn.local_global_bias_table"
        if name.startswith("generation."):
            return name.replace("generation.", GENERATION, 1)
        if name in ("clip.logit_scale", "clip.logit_bias"):
            return name.removeprefix("clip.")
        key = to_openai_key(name.removeprefix("clip."))
        if key.startswith("visual."):
            key = key.replace(".in_proj_weight", ".{q,k,v}_proj.weight").replace(".in_proj_bias", ".{q,k,v}_proj.bias")
            return f"image_encoder.{key.removeprefix('visual.')}"
        return None if key.startswith("token_embedding.") else f"text_encoder.{key}"

    def released_tensors(self, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the tensors by `released_name`; the embeddings of START and END beside `ctx` are CLIP's own."""
        return join_queries_keys_values(super().released_tensors(state_dict))
