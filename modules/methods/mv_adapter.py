"""MV-Adapter: Multimodal Video Adapter (Jin et al., CVPR 2024, arXiv 2301.07868; github.com/zhangbw17/MV-Adapter at
commit 08a61f3), the configuration for MSR-VTT.

    y = MLP(LN x),   x ← x + y + a(y)      in every block of both towers, with CLIP frozen

The adapters a are in `modules.mv_adapter.parts`. The video is the mean of its frames' normalised embeddings, as in
CLIP4Clip.

Shapes: B clips, T frames, N captions, L words, D width, E joint embedding.
"""

from collections.abc import Mapping
from typing import Annotated

import torch
from torch import Tensor, nn

from modules.clip import CLIP, Block
from modules.frame_count import check_frames
from modules.methods.base import KEY_BIAS, DeadParameters, Method
from modules.mv_adapter.parts import SHARED, TextAdapter, VideoAdapter
from modules.options import Range, between
from modules.similarity import masked_mean
from modules.weight_names import join_queries_keys_values

TOWERS = {"visual_adapters": "clip.visual.transformer.resblocks.", "text_adapters": "clip.transformer.resblocks."}
RELEASED_PARTS = {
    "calibration.context.": "conv_rf_c.g.",
    "calibration.squeeze.": "conv_rf_c.a.",
    "calibration.excite.": "conv_rf_c.b.",
    "of_shared.": "md_proj.",
}


class MVAdapter(Method):
    """CLIP with adapters that start at zero, so that training starts with CLIP.

    Raises:
        ValueError: if `adapter_width` is no multiple of 4 or a tower has fewer than `shared_blocks` blocks.
            `encode_video` raises it for clips of other than `max_frames` frames, `encode_text` for texts of more than
            `max_words` tokens.
    """

    needs = ("class token", "END")

    def __init__(
        self,
        clip: CLIP,
        *,
        adapter_width: Annotated[int, "width inside each adapter, a multiple of 4", Range(4)] = 64,
        adapter_scale: Annotated[float, "factor of each adapter's output", Range(0, above=True)] = 0.1,
        shared_blocks: Annotated[
            int, "the last blocks of both towers whose adapters share a learned factor", Range(0)
        ] = 2,
        train_clip_biases: Annotated[
            bool, "as released: all biases of CLIP are trained too, at --lr times --coef_lr, and decay"
        ] = False,
        max_frames: Annotated[int, "T, frames of a clip", Range(1)] = 12,
        max_words: Annotated[int, "most tokens of a text, START and END included", Range(3, 77)] = 32,
    ) -> None:
        super().__init__(clip)
        visual, text = clip.visual, clip.text
        if adapter_width % 4:
            raise ValueError(f"--adapter_width {adapter_width} is not a multiple of 4")
        depth = min(len(visual.blocks), len(text.blocks))
        between("shared_blocks", shared_blocks, 0, depth, why="the blocks of this CLIP's shorter tower")
        clip.requires_grad_(False)
        self.max_frames, self.max_words, self.clip_biases = max_frames, max_words, train_clip_biases
        if train_clip_biases:
            for tower in (visual, text):
                for name, parameter in tower.named_parameters():
                    parameter.requires_grad_(name.endswith("bias"))
        self.visual_adapters, self.text_adapters = nn.ModuleList(), nn.ModuleList()
        for tower, adapters, kind, places in (
            (visual, self.visual_adapters, VideoAdapter, max_frames),
            (text, self.text_adapters, TextAdapter, max_words),
        ):
            first = len(tower.blocks) - shared_blocks
            adapters.extend(
                kind(tower.width, adapter_width, places, adapter_scale, layer >= first)
                for layer in range(len(tower.blocks))
            )
        self.shared = nn.ParameterList(torch.zeros(SHARED) for _ in range(shared_blocks))

    def encode_frames(self, video: Tensor, frame_mask: Tensor) -> Tensor:
        """Embed every frame, which sees the real frames of its clip: `[B,T,3,H,W]` -> `[B,T,E]`, not normalised."""
        check_frames(video.shape[1], self.max_frames)
        visual, real = self.clip.visual, frame_mask.bool()
        x = visual.embed(video.flatten(0, 1))
        for layer, block in enumerate(visual.blocks):
            assert isinstance(block, Block)
            class_only = visual.reads_first_token and block is visual.blocks[-1]
            x = block.attend(x)
            y = block.run(_mlp, block, x)
            of_clips = y.unflatten(0, real.shape)
            added = self.visual_adapters[layer](of_clips, real, self._shared(layer, visual.blocks), class_only)
            if class_only:
                x, y = x[:, :1], y[:, :1]
            x = x + y + added.flatten(0, 1)
        return visual.pool(x).unflatten(0, real.shape)

    def encode_video(self, video: Tensor, frame_mask: Tensor) -> Tensor:
        return masked_mean(self.encode_frames(video, frame_mask), frame_mask)

    def encode_text(self, token_ids: Tensor) -> Tensor:
        """Encode captions. What stands behind END has no effect, so a text may have fewer tokens than `max_words`."""
        if token_ids.shape[1] > self.max_words:
            raise ValueError(
                f"the text has {token_ids.shape[1]} tokens, and this model was made for max_words={self.max_words}"
            )
        text = self.clip.text
        x, ends = text.embed(token_ids), text.end_positions(token_ids)
        rows = torch.arange(len(x), device=x.device)
        for layer, block in enumerate(text.blocks):
            assert isinstance(block, Block)
            is_last = block is text.blocks[-1]
            x = block.attend(x, causal=True)
            y = block.run(_mlp, block, x)
            added = self.text_adapters[layer](y, self._shared(layer, text.blocks), ends if is_last else None)
            if is_last:
                x, y = x[rows, ends].unsqueeze(1), y[rows, ends].unsqueeze(1)
            x = x + y + added
        return text.pool(x.squeeze(1))

    def _shared(self, layer: int, blocks: nn.ModuleList) -> Tensor | None:
        """Return the factor of a block; the last block of both towers has the last one, the one before it ..."""
        number = layer - len(blocks) + len(self.shared)
        return self.shared[number] if number >= 0 else None

    def decays(self, name: str, parameter: nn.Parameter) -> bool:
        """Return False for the biases of adapters alone, as in the release: norms, tokens and CLIP's biases decay."""
        return name.startswith("clip.") or not name.endswith("bias")

    def dead_parameters(self) -> list[DeadParameters]:
        names = [f"{adapters}.{n}.block" for adapters in TOWERS for n in range(len(getattr(self, adapters)))]
        if self.clip_biases:
            blocks = {"clip.visual": self.clip.visual.blocks, "clip.text": self.clip.text.blocks}
            names += [f"{tower}.blocks.{n}" for tower in blocks for n in range(len(blocks[tower]))]
        return [DeadParameters(f"{name}.attn.in_proj_bias", KEY_BIAS, 1 / 3) for name in names]

    def released_name(self, name: str) -> str | None:
        start, _, rest = name.partition(".")
        if start == "shared":
            return f"clip.prompt.{rest}"
        if start not in TOWERS:
            return super().released_name(name)
        layer, _, part = rest.partition(".")
        for ours, theirs in RELEASED_PARTS.items():
            part = part.replace(ours, theirs)
        return f"{TOWERS[start]}{layer}.mlp.adapter.{part}"

    def released_tensors(self, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the release's tensors with OpenAI's names of norms, and with queries, keys and values in one."""
        tensors = super().released_tensors(state_dict)
        tensors = {k.replace(".attn.ln.", ".ln_1.").replace(".mlp.ln.", ".ln_2."): v for k, v in tensors.items()}
        joined = join_queries_keys_values(tensors)
        return {key.replace(".{q,k,v}_proj.", ".in_proj_"): tensor for key, tensor in joined.items()}


def _mlp(block: Block, x: Tensor) -> Tensor:
    return block.mlp(block.ln_2(x))
