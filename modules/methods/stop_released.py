"""STOP as its authors released it: DGL with a prompter on the pixels, one between the frames, and adapters.

The numbers of the paper came from this model. It differs from the model in the paper in nearly every line;
docs/paper_vs_release.md lists the differences. It keeps the faults of the release. Each has an option that fixes it.

Shapes: B clips, T frames, P patches, D width, G = 4 global prompts, F = 4 prompts of a frame.

Source: Liu et al., CVPR 2025 (arXiv 2503.15973); https://github.com/zhoujiahuan1991/CVPR2025-STOP at commit a47eb22.
"""

from typing import Annotated, Literal

import torch
from torch import Tensor, nn

from modules.clip import CLIP, Block
from modules.methods.base import KEY_BIAS, DeadParameters
from modules.methods.dgl import DGL
from modules.options import Range, between
from modules.released.padding import hold_last_frame
from modules.released.prompts import InterFramePrompt, ParallelAdapter, PixelPrompter
from modules.released.shared_latent import LatentPrompts, round_to_half
from modules.released_weights import load_released_state_dict

__all__ = ["STOPReleased", "load_released_state_dict"]

RELEASED_NAMES = {  # the parts that DGL lacks; in the release all are below clip.visual.TemporalPrompt
    "pixel.conv1.": "Conv.0.",
    "pixel.conv2.": "Conv.1.",
    "pixel.act2.": "Conv.2.",
    "pixel.conv3.": "Conv.3.",
    "pixel.act3.": "Conv.4.",
    "pixel.conv4.": "Conv.5.",
    "pixel.mlp.": "MLP.",
    "pixel.scorer.": "Cal_Net.",
    "inter.attention.": "Attention.",
    "inter.conv1.": "InterConv.0.",
    "inter.act1.": "InterConv.1.",
    "inter.conv2.": "InterConv.2.",
    "inter.mlp.": "InterMLP.",
    "inter.scorer.": "Cal_Net_Inter.",
}
RELEASED_ADAPTER = {"down": "0", "act": "1", "up": "2"}


class STOPReleased(DGL):
    """The released model.

    Raises:
        ValueError: if `n_regions` is not below the number of patches, if regions do not divide this CLIP's pictures,
            and where DGL raises it. `encode_video` raises it for a batch whose frames all have the same score (see
            `InterFramePrompt`).
    """

    def __init__(
        self,
        clip: CLIP,
        *,
        shared_latent_space: Annotated[
            Literal["linear", "transformer"], "how text and frame prompts come from one space"
        ] = "transformer",
        max_frames: Annotated[int, "T, frames of a clip", Range(1)] = 12,
        adapters: Annotated[bool, "bottlenecks beside the MLPs of all blocks (LoRA in the released code)"] = True,
        n_regions: Annotated[
            int, "scores of a frame that enter the region mask (eta in the released code)", Range(1)
        ] = 6,
        prompt_dropout: Annotated[float, "dropout of the pixel prompts, applied three times", Range(0, 0.99)] = 0.5,
        inter_frame_norm: Annotated[
            Literal["batch", "clip"], "frame scores are stretched to 0..1 over each clip, or as released over the batch"
        ] = "batch",
        region_mask: Annotated[
            Literal["comb", "patches"], "comb: as released, pixels by remainder modulo the grid; patches: as intended"
        ] = "comb",
        hard_region_mask: Annotated[bool, "as released: no gradient through the region mask"] = True,
        text_postfix: Annotated[
            Literal["dead", "before_end"],
            "dead: as released, after the padding, where no word sees them; before_end: between the last word and END",
        ] = "dead",
    ) -> None:
        super().__init__(
            clip, shared_latent_space=shared_latent_space, max_frames=max_frames, text_postfix=text_postfix
        )
        visual, text = clip.visual, clip.text
        if visual.image_size % visual.grid:
            raise ValueError(
                f"stop_released divides pictures into {visual.grid} x {visual.grid} regions, and those of this CLIP "
                f"have {visual.image_size} pixels a side: take one whose image size is a multiple of its patch size"
            )
        between("n_regions", n_regions, 1, visual.grid**2 - 1, why="one less than the patches of a frame")
        self.pixel = PixelPrompter(
            visual.grid,
            n_regions=n_regions,
            region_mask=region_mask,
            hard_region_mask=hard_region_mask,
            dropout=prompt_dropout,
        )
        self.inter = InterFramePrompt(
            visual.width, clip.architecture.vision_heads, visual.grid**2, norm=inter_frame_norm
        )
        depth = len(visual.blocks) if adapters else 0
        self.visual_adapters = nn.ModuleList(ParallelAdapter(visual.width) for _ in range(depth))
        self.text_adapters = nn.ModuleList(ParallelAdapter(text.width) for _ in range(depth))
        for part in (self.pixel, self.inter, self.visual_adapters, self.text_adapters):
            round_to_half(part)

    def _encode_video(self, video: Tensor, frame_mask: Tensor, prompts: LatentPrompts) -> Tensor:
        video = hold_last_frame(video.flatten(3), frame_mask.bool()).view_as(video)
        video, mask = self.pixel(video)
        tokens = self.clip.visual.embed(video.flatten(0, 1)).unflatten(0, video.shape[:2])
        between_frames, _ = self.inter(tokens[:, :, self.clip.visual.class_tokens :], mask)
        return self._run_visual(tokens, prompts.frames.unsqueeze(1) + between_frames)

    @torch.no_grad()
    def prompt_maps(self, video: Tensor) -> tuple[Tensor, Tensor]:
        """Return the region mask `[B,T,G,G]` and the rates of the inter-frame prompts `[B,T]`, of whole clips."""
        video, mask = self.pixel(video)
        tokens = self.clip.visual.embed(video.flatten(0, 1)).unflatten(0, video.shape[:2])
        return mask, self.inter(tokens[:, :, self.clip.visual.class_tokens :], mask)[1]

    def feed_forward(self, tower: Literal["visual", "text"], layer: int, block: Block, x: Tensor) -> Tensor:
        """Run a block's MLP and the adapter beside it, which reads the tokens before their LayerNorm."""
        adapters = self.visual_adapters if tower == "visual" else self.text_adapters
        out = block.feed_forward(x)
        return out + adapters[layer](x) if adapters else out

    def decays(self, name: str, parameter: nn.Parameter) -> bool:
        """Return what DGL does, but False for tensors that the released optimiser skips for lack of a gradient."""
        skipped = self.pixel.hard_region_mask and name.startswith("pixel.scorer.")
        return super().decays(name, parameter) and not skipped

    def dead_parameters(self) -> list[DeadParameters]:
        dead = super().dead_parameters()
        if self.pixel.hard_region_mask:
            dead.append(
                DeadParameters(
                    "pixel.scorer", "used in a comparison, which has no gradient; it keeps its initial values"
                )
            )
        return [
            *dead,
            DeadParameters("inter.scorer.bias", "it adds the same to all frames, and stretching to 0..1 removes that"),
            DeadParameters(
                "inter.mlp.2.bias", "it adds the same to all features of a prompt, and LayerNorm removes that"
            ),
            DeadParameters("inter.attention.in_proj_bias", KEY_BIAS, 1 / 3),
        ]

    def released_name(self, name: str) -> str | None:
        for ours, theirs in RELEASED_NAMES.items():
            if name.startswith(ours):
                return f"clip.visual.TemporalPrompt.{theirs}{name.removeprefix(ours)}"
        for start, blocks in (("visual_adapters.", "visual.transformer"), ("text_adapters.", "transformer")):
            if name.startswith(start):
                layer, part, tensor = name.removeprefix(start).split(".")
                return f"clip.{blocks}.resblocks.{layer}.LoRA.{RELEASED_ADAPTER[part]}.{tensor}"
        return super().released_name(name)
