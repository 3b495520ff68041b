"""STDD: Spatiotemporal Dynamic Duo (AAAI 2025, arXiv 2412.09895; github.com/Mia-YatingYu/STDD), the vision side.

CLIP's vision tower is fine-tuned whole, and each of its blocks gets a temporal branch without parameters: space-time
cross attention (`modules.stdd.cross_attention`). A clip is the embeddings of its frames; nothing pools them inside.

Shapes: B clips, T frames, N patches, D width, E joint embedding, A visual blocks, C texts.
"""

import logging
from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

import torch
from torch import Tensor

from modules.clip import CLIP, Block
from modules.frame_rows import FrameRows
from modules.methods.base import KEY_BIAS, DeadParameters, Method
from modules.options import OnlyWith, Range, between
from modules.quoting import some
from modules.similarity import masked_mean, scaled_product, unit
from modules.stdd.cross_attention import cross_attend, rows_of_kept
from modules.stdd.distillation import Distillation
from modules.stdd.masks import (
    check_masks,
    dropped_of_window,
    evaluation_shifts,
    kept_places,
    shift_masks,
    to_window_order,
    training_shifts,
)
from modules.stdd.mixing import parse_scales
from modules.stdd.variants import build_variant
from modules.weight_names import NOT_WEIGHTS, to_openai_key

log = logging.getLogger("stop")

MODEL = "model."  # prefix of the trained CLIP in the released code's checkpoints
RELEASED_ADAPTER = {"down.": "stadapt_down_1.", "conv.": "stadapt_conv3d_1.", "up.": "stadapt_up_1."}

Temporal = Literal[
    "stcross_attend",
    "none",
    "expand_temporal_view",
    "expand_temporal_view_step2",
    "expand_temporal_view_step3",
    "channel_shift",
    "cross_frame_attend",
    "stadapt_zeroinit",
]

STCA = OnlyWith("temporal", ("stcross_attend",))

LINEAR_CONNECT = (
    "is Open-VCLIP's training on weights between CLIP's and the trained ones, which STDD's release keeps switched off "
    "and this project does not have: average the weights of epochs afterwards"
)


class STDD(Method):
    """The vision tower and the temperature are trained, the text tower is frozen, as in the released code.

    In training the masks of STCA are drawn from torch's own random state on the device of the video. In evaluation
    nothing is drawn, unless `shuffle_eval` is set.

    Raises:
        ValueError: with STCA, if this CLIP's grid of patches is odd or `fold` exceeds its width, or if `scales` is no
            list of whole numbers.
    """

    needs = ("class token", "class pool", "unturned tokens")

    is_dot_product = False
    not_offered: ClassVar = dict.fromkeys(("linear_connect", "linear_connect_climb"), LINEAR_CONNECT)

    def __init__(
        self,
        clip: CLIP,
        *,
        temporal: Annotated[Temporal, "how frames see each other; names of the released code"] = "stcross_attend",
        rate: Annotated[float, "share of patches to drop, rounded down to quarters", Range(0, 0.99), STCA] = 0.5,
        fold: Annotated[int, "F: 1/F of channels come from earlier frames, as many from later", Range(2), STCA] = 32,
        scales: Annotated[str, "how many frames away channels come from, such as 1,2", STCA] = "1,2",
        spatial_repeat: Annotated[bool, "in training, all windows of a clip shift their mask alike", STCA] = True,
        shuffle_train: Annotated[bool, "in training, the order of masks over frames is random", STCA] = True,
        shuffle_eval: Annotated[bool, "in evaluation, it is random too: drawn once for all clips", STCA] = False,
        shuffle_seed: Annotated[int, "seed of that order", Range(0, 2**63 - 1), OnlyWith("shuffle_eval")] = 0,
        channel_shift: Annotated[
            Literal["shift", "scrambled"],
            "as intended, or as in the released code",
            OnlyWith("temporal", ("channel_shift",)),
        ] = "shift",
        clamp_logit_scale: Annotated[bool, "keep the scale of scores at 100 or below; the release has no limit"] = True,
        distill: Annotated[
            Literal["none", "intended"],
            "intended: a term in the loss that holds frames near those of the CLIP that training begins with, as in "
            "the paper; none: no such term, because that of the released code has no gradient",
        ] = "none",
        distill_ratio: Annotated[float, "weight of that term", Range(0), OnlyWith("distill", ("intended",))] = 2.0,
    ) -> None:
        super().__init__(clip)
        visual = clip.visual
        clip.requires_grad_(False)
        visual.requires_grad_(True)
        clip.logit_scale.requires_grad_(True)
        self.crossing = temporal == "stcross_attend"
        self.scales, self.fold, self.dropped = parse_scales(scales), fold, dropped_of_window(rate)
        self.spatial_repeat, self.shuffle_train = spatial_repeat, shuffle_train
        self.seed = shuffle_seed if shuffle_eval else None
        self.clamp_logit_scale = clamp_logit_scale
        self._injected: tuple[Tensor, int] | None = None  # masks, and how many patches each window drops
        if self.crossing:
            if visual.grid % 2:
                raise ValueError(
                    f"--temporal stcross_attend needs an even grid of patches, and this CLIP's is {visual.grid} x "
                    f"{visual.grid}: take a CLIP such as ViT-B/16, whose grid is 14 x 14, or another --temporal"
                )
            between("fold", fold, 2, visual.width, why="the width of this CLIP's visual tower")
        self.distillation = Distillation(clip, distill_ratio) if distill == "intended" and distill_ratio else None
        heads = clip.architecture.vision_heads
        variants = () if self.crossing else visual.blocks
        self.temporal = torch.nn.ModuleList(
            build_variant(temporal, visual.width, heads, channel_shift) for _ in variants
        )

    def inject_masks(self, masks: Tensor | None) -> None:
        """Use these masks of STCA in the place of drawn ones, until others or None are given.

        Args:
            masks: bool `[A,B,T,N]` in window order (`modules.stdd.masks`), true where a patch is dropped; clips of
                another number or length are refused then.

        Raises:
            ValueError: if they do not fit this CLIP, if their windows drop different numbers of patches, or if
                `temporal` is not stcross_attend, which alone has masks.
        """
        if masks is None:
            self._injected = None
        elif not self.crossing:
            raise ValueError("only --temporal stcross_attend has masks")
        else:
            self._injected = masks, check_masks(masks, len(self.clip.visual.blocks), self.clip.visual.grid**2)

    def encode_frames(self, video: Tensor, frame_mask: Tensor | None = None) -> Tensor:
        """Embed every frame: `[B,T,3,H,W]` -> `[B,T,E]`, not normalised.

        A clip ends with its last real frame: with `frame_mask`, bool `[B,T]`, real frames have the embeddings of the
        clip without its padding. Those of padding mean nothing.
        """
        visual = self.clip.visual
        if frame_mask is None:
            frame_mask = torch.ones(video.shape[:2], dtype=torch.bool, device=video.device)
        x = visual.embed(video.flatten(0, 1)).unflatten(0, video.shape[:2])
        kept = self._kept(frame_mask) if self.crossing else None
        if kept is not None:
            x = torch.cat([x[:, :, :1], to_window_order(x[:, :, 1:], visual.grid)], dim=2)
        for layer, block in enumerate(visual.blocks):
            assert isinstance(block, Block)
            is_last = layer == len(visual.blocks) - 1
            if kept is None:
                x = self.temporal[layer](block, x, frame_mask, is_last)
            else:
                rows = rows_of_kept(kept[layer], visual.grid**2)
                x = cross_attend(block, x, frame_mask, rows, scales=self.scales, fold=self.fold, first_only=is_last)
        return visual.pool(x.flatten(0, 1)).unflatten(0, video.shape[:2])

    def _kept(self, frame_mask: Tensor) -> Tensor:
        """Return the places of the patches that the branch of every block keeps, int64 `[A,B,T,N']`."""
        layers, patches = len(self.clip.visual.blocks), self.clip.visual.grid**2
        if self._injected is not None:
            masks, dropped = self._injected
            if masks.shape[1:3] != frame_mask.shape:
                raise ValueError(
                    f"the injected masks are for {list(masks.shape[1:3])} clips and frames, and the video has "
                    f"{list(frame_mask.shape)}"
                )
            return kept_places(masks.to(frame_mask.device), dropped)
        windows = patches // 4
        if self.training:
            shifts = training_shifts(
                layers, frame_mask, windows, shuffle=self.shuffle_train, spatial_repeat=self.spatial_repeat
            )
        else:
            shifts = evaluation_shifts(layers, frame_mask, self.seed)
        return kept_places(shift_masks(shifts, windows, self.dropped), self.dropped)

    def encode_video(self, video: Tensor, frame_mask: Tensor) -> FrameRows:
        frame_mask = frame_mask.bool()
        return FrameRows.without_padding(self.encode_frames(video, frame_mask), frame_mask)

    def regulariser(self, video: Tensor, rows: FrameRows) -> Tensor | None:
        return None if self.distillation is None else self.distillation(video, rows)

    def unsaved_tensors(self) -> dict[str, Tensor]:
        return {} if self.distillation is None else self.distillation.unsaved_tensors()

    def similarity(self, text: Tensor, video: FrameRows) -> Tensor:
        """Score every text with every clip: `[C,E]` and B clips -> fp32 `[C,B]`.

        The score is the mean over a clip's real frames of exp(logit_scale) times the cosine of frame and text.
        """
        return self.similarity_of_prepared(self.prepare(text), self.prepare(video))

    def averages_texts(self) -> bool:
        return True  # a class's row of the matrix is the mean of its normalised texts

    def prepare(self, rows: Tensor | FrameRows) -> Tensor:
        """Return unit vectors of texts, and of a clip the mean of those of its real frames: `[C,E]`, `[B,E]`."""
        return masked_mean(rows.frames.float(), rows.frame_mask) if isinstance(rows, FrameRows) else unit(rows)

    def similarity_of_prepared(self, text: Tensor, video: Tensor) -> Tensor:
        return scaled_product(text, video, self.clip.logit_scale)

    def decays(self, name: str, parameter: torch.nn.Parameter) -> bool:
        """Return False for 1-D tensors and biases: as in the released code, the temperature (0-D) decays."""
        return parameter.dim() != 1 and not name.endswith(".bias")

    def dead_parameters(self) -> list[DeadParameters]:
        """Return the key biases of the attention over frames of cross_frame_attend."""
        parts = [name for name, _ in self.trainable_parameters() if name.endswith("message_attn.in_proj_bias")]
        return [DeadParameters(name, KEY_BIAS, 1 / 3) for name in parts]

    def released_name(self, name: str) -> str | None:
        if name.startswith("clip."):
            return to_openai_key(name.removeprefix("clip."))
        if name.startswith("temporal."):
            _, layer, tensor = name.split(".", 2)
            for ours, theirs in RELEASED_ADAPTER.items():
                tensor = tensor.replace(ours, theirs)
            return f"visual.transformer.resblocks.{layer}.{tensor}"
        return None

    def released_tensors(self, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the tensors below `model.`, or all if none is, as in files of CLIP's own keys.

        What lies beside `model.` served training alone: `raw_model.`, the frozen CLIP, and the residual of the
        distillation. The log names it.
        """
        theirs = super().released_tensors(state_dict)
        inside = {key.removeprefix(MODEL): tensor for key, tensor in theirs.items() if key.startswith(MODEL)}
        if beside := [key for key in theirs if inside and not key.startswith(MODEL)]:
            log.info("the checkpoint has %d tensors that served its training alone (%s)", len(beside), some(beside, 5))
        return {key: tensor for key, tensor in (inside or theirs).items() if key not in NOT_WEIGHTS}

    @torch.no_grad()
    def after_step(self) -> None:
        if self.clamp_logit_scale:
            super().after_step()
