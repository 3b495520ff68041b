"""STOP: Integrated Spatial-Temporal Dynamic Prompting for Video Understanding (CVPR 2025, arXiv 2503.15973).

CLIP stays frozen. Before each of the first `prompt_depth` visual blocks, as in Figure 2,

1. intra-frame spatial prompting (`IntraFramePrompter`): patches that matter and move get a prompt, h^s = h + r * p^s;
2. inter-frame temporal prompting (`InterFramePrompter`): prompts p^t stand between frames, more where more changes.

[D] marks a decision of ours where the paper is silent. The authors' released code is another model (`stop_released`).
`lora_dim` and `merge`, off by default, go beyond the paper: docs/beyond.md.

Shapes: B clips, T frames, P patches, D width, N captions, L tokens of a sequence or a caption, E joint embedding, C
sequences of a clip (`modules.stop.tokens`).
"""

from dataclasses import dataclass
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from modules.backbones import NEEDS
from modules.clip import CLIP, Block
from modules.lora import add_lora
from modules.methods.base import Method
from modules.options import OnlyWith, Range, between
from modules.similarity import masked_mean
from modules.stop.inter_frame import InterFramePrompter, TemporalPrompting, insert, visible_tokens
from modules.stop.intra_frame import IntraFramePrompter, SpatialPrompting
from modules.stop.merging import merge_patches, plan_merging, proportional
from modules.stop.timing import FrameTiming
from modules.stop.tokens import Merging, at_least_fp32, layer_norm, patches_of, sequences
from modules.text_prompts import encode_with_prefix, text_prompts

HEADS = 8  # of the attention inside P_t
INTRA, INTER = OnlyWith("use_intra"), OnlyWith("use_inter")  # not of the widths: scripts set them for all rows
SALIENT = OnlyWith("random_regions", off=True)


@dataclass(frozen=True)
class PromptMaps:
    """The results of both stages before one block, for pictures and tests; None where a stage is off."""

    spatial: SpatialPrompting | None
    temporal: TemporalPrompting | None


class STOP(Method):
    """STOP, section 3 of the paper: intra-frame spatial and inter-frame temporal prompting around a frozen CLIP.

    Raises:
        ValueError: if the CLIP has fewer than `prompt_depth` blocks or `n_regions` patches, if `inter_width` is no
            multiple of 8, or if `merge` is no plan for this CLIP.
    """

    newer = ("lora_dim", "merge", "lora_coef_lr")

    def __init__(
        self,
        clip: CLIP,
        *,
        attention: Annotated[
            Literal["joint", "frame"],
            "frame: a class token per frame, their mean is the clip; joint: one for the whole clip (Figure 2)",
        ] = "frame",
        prompt_depth: Annotated[int, "blocks with prompts, from the first; 0: all", Range(0)] = 0,
        use_intra: Annotated[bool, "intra-frame spatial prompting"] = True,
        use_inter: Annotated[bool, "inter-frame temporal prompting"] = True,
        static_prompts: Annotated[bool, "learned prompts that do not depend on the clip (an ablation)"] = False,
        n_regions: Annotated[int, "N_s, patches of a frame that get a spatial prompt", Range(1), INTRA] = 6,
        random_regions: Annotated[bool, "random patches instead of the most salient ones (an ablation)", INTRA] = False,
        alpha: Annotated[
            float, "share of the attention map in the saliency, beside the dynamics map", Range(0, 1), INTRA, SALIENT
        ] = 0.5,
        hard_region_mask: Annotated[bool, "as published: choosing regions has no gradient", INTRA, SALIENT] = False,
        eta: Annotated[int, "most temporal prompts in a gap between frames", Range(1, 64), INTER] = 4,
        beta: Annotated[float, "how much more a change in a chosen region counts", Range(0), INTRA, INTER] = 1.0,
        uniform_prompts: Annotated[bool, "eta prompts in every gap, whatever changes (an ablation)", INTER] = False,
        noise_floor: Annotated[
            float, "change of LayerNormed tokens (mean square) that is camera noise", Range(1e-9), INTER
        ] = 0.1,
        intra_width: Annotated[int, "c_s, channels inside the spatial prompter", Range(8)] = 88,
        inter_width: Annotated[int, "c_t, channels inside the temporal prompter, a multiple of 8", Range(8)] = 80,
        prompt_dropout: Annotated[float, "dropout of the prompts", Range(0, 0.99)] = 0.1,
        text_prompt_length: Annotated[
            int, "learned tokens after the start token in every text block", Range(0, 64)
        ] = 4,
        lora_dim: Annotated[
            int, "beyond the paper: rank of LoRA on queries, keys, values of both towers; 0: none", Range(0)
        ] = 0,
        merge: Annotated[
            str,
            "beyond the paper: patches of a frame that merge into alike ones before each visual block, one number for "
            "all blocks or one for each, such as 8-0-4-0, each at most half of the tokens that are left",
        ] = "0",
        lora_coef_lr: Annotated[
            float,
            "factor on --lr for LoRA's matrices (docs/beyond.md: 0.1 gains, 1 loses)",
            Range(0),
            OnlyWith("lora_dim"),
        ] = 1.0,
    ) -> None:
        super().__init__(clip)
        visual = clip.visual
        depth, patches = len(visual.blocks), visual.grid**2
        between("prompt_depth", prompt_depth, 0, depth, why="the visual blocks of this CLIP")
        between("n_regions", n_regions, 1, patches, why="the patches of a frame of this CLIP")
        if inter_width % HEADS:
            raise ValueError(f"--inter_width {inter_width} is not a multiple of {HEADS}, the heads of P_t's attention")

        clip.requires_grad_(False)
        self.attention: Literal["joint", "frame"] = attention
        self.no_class = 1 - visual.class_tokens
        self.merged = plan_merging(merge, depth, patches)
        if any(self.merged) and (lacking := clip.architecture.lacks(("class pool", "unturned tokens"))):
            raise ValueError(
                f"--merge {merge} needs {NEEDS[lacking[0]]}, which this backbone does not have; leave it out"
            )
        layers = range(prompt_depth or depth)
        # [D] Each layer has its own networks: Figure 2 draws both stages inside the box marked "x L".
        self.intra = nn.ModuleList(
            IntraFramePrompter(
                visual.width,
                visual.grid,
                n_regions=n_regions,
                alpha=alpha,
                bottleneck=intra_width,
                dropout=prompt_dropout,
                hard_region_mask=hard_region_mask,
                random_regions=random_regions,
                static_prompts=static_prompts,
            )
            for _ in layers
            if use_intra
        )
        self.inter = nn.ModuleList(
            InterFramePrompter(
                visual.width,
                visual.grid,
                eta=eta,
                beta=beta,
                bottleneck=inter_width,
                heads=HEADS,
                dropout=prompt_dropout,
                noise_floor=noise_floor,
                uniform=uniform_prompts,
                static_prompts=static_prompts,
            )
            for _ in layers
            if use_inter
        )
        self.text_prompts = text_prompts(clip.text, text_prompt_length)
        self.lora_coef_lr = lora_coef_lr
        if lora_dim:
            self.visual_lora = add_lora(clip.visual.blocks, lora_dim)
            self.text_lora = add_lora(clip.text.blocks, lora_dim)

    def encode_video(self, video: Tensor, frame_mask: Tensor) -> Tensor:
        return self._encode(video, frame_mask)

    @torch.no_grad()
    def prompt_maps(self, video: Tensor, frame_mask: Tensor) -> list[PromptMaps]:
        """Return what every prompted layer attends to, chooses and inserts, for the clips of a batch."""
        maps: list[PromptMaps] = []
        self._encode(video, frame_mask, maps)
        return maps

    def _encode(self, video: Tensor, frame_mask: Tensor, maps: list[PromptMaps] | None = None) -> Tensor:
        frame_mask = frame_mask.bool()
        visual = self.clip.visual
        x = visual.embed(video.flatten(0, 1)).unflatten(0, video.shape[:2])  # [B,T,1+P,D]: one sequence per frame
        x = self._with_place(x)
        if self.attention == "joint":
            x = sequences(x[:, :1, 0], x[:, :, 1:])  # before the first block all frames have the same class token
        timing = FrameTiming.of(frame_mask, at_least_fp32(x).dtype)
        merging: Merging | None = None
        reader = visual.map_reader()
        for layer, block in enumerate(visual.blocks):
            assert isinstance(block, Block)
            spatial = temporal = normal = None
            if self.merged[layer]:
                x, merging = merge_patches(block, x, timing.frames, self.merged[layer], merging)
            if layer < len(self.intra):
                spatial = self.intra[layer](block, x, timing, merging, reader)
                x = spatial.x  # h^s
            if layer < len(self.inter) and timing.frames > 1:
                normal = layer_norm(x, block.ln_1.eps)  # for the second stage and for the block
                if spatial:
                    region_mask = spatial.region_mask
                else:
                    region_mask = patches_of(torch.zeros_like(x[..., :1]), timing.frames, merging).squeeze(-1)
                temporal = self.inter[layer](normal, region_mask, timing, merging)
            if maps is not None and (spatial or temporal):
                maps.append(PromptMaps(spatial, temporal))
            x = self._run(block, x, normal, timing, temporal, merging)
        embedding = visual.pool(x[:, :, self.no_class :].flatten(0, 1), self._read(x, timing)).unflatten(0, x.shape[:2])
        return embedding[:, 0] if self.attention == "joint" else masked_mean(embedding, frame_mask)

    def _run(
        self,
        block: Block,
        x: Tensor,
        normal: Tensor | None,
        timing: FrameTiming,
        temporal: TemporalPrompting | None,
        merging: Merging | None,
    ) -> Tensor:
        """Run the frozen block on the prompted sequences, `[B,C,L,D]` in and out.

        After the last block, often only the class tokens are read; it then returns `[B,C,1,D]`.
        """
        patches = patches_of(x, timing.frames).shape[2]  # those of a frame that are left
        context, mask = insert(self.attention, block, timing.frame_mask, patches, temporal)
        if merging is not None:
            mask = proportional(mask, merging, x.shape[1])
        none = self.no_class
        rows, mask = x[:, :, none:].flatten(0, 1), None if mask is None else mask[..., none:]
        normal = None if normal is None else normal[:, :, none:].flatten(0, 1)
        rows = self.clip.visual.step(block, rows, context, mask, normal)
        return self._with_place(rows).unflatten(0, x.shape[:2])

    def _with_place(self, tokens: Tensor) -> Tensor:
        """Return tokens [...,L,D] with a first one of zeros, if the tower has no class token: no block sees it."""
        return F.pad(tokens, (0, 0, 1, 0)) if self.no_class else tokens

    def _read(self, x: Tensor, timing: FrameTiming) -> Tensor | None:
        """Return which tokens of sequences `[B,C,L,D]` an attention pool reads, bool `[B*C,1,1,L]`; None: all.

        With joint attention it reads the patches of all real frames at once.
        """
        if self.clip.visual.reads_first_token or self.attention == "frame" or not timing.padded:
            return None
        patches = patches_of(x, timing.frames).shape[2]
        return visible_tokens(timing.frame_mask, patches)[..., self.no_class :]

    def encode_text(self, token_ids: Tensor) -> Tensor:
        """Encode captions `[N,L]` to `[N,E]`: CLIP's frozen text tower with learned tokens after START in every block.

        [D] The methods that STOP builds on train such tokens too.
        """
        return encode_with_prefix(self.clip.text, self.text_prompts, token_ids)

    def decays(self, name: str, parameter: nn.Parameter) -> bool:
        """Matrices and kernels decay; biases and the learned prompt tokens do not."""
        learned_prompt = name.rsplit(".", 1)[-1] in ("slots", "prompt", "text_prompts")
        return parameter.dim() > 1 and not learned_prompt

    def rate_factor(self, name: str) -> float:
        return self.lora_coef_lr if name.startswith(("visual_lora.", "text_lora.")) else super().rate_factor(name)
