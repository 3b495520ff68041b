"""STAN (Liu et al., CVPR 2023, arXiv 2301.11116; github.com/farewellthree/STAN): CLIP on every frame, and a branch that
reads the outputs of its last blocks and relates the frames of a clip (`modules.stan.branch`); everything is trained.

Shapes: B clips, T frames, L patches of a frame, D width, N visual blocks, K levels, E joint embedding.
"""

import logging
import math
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from modules.clip import CLIP, Block
from modules.methods.base import KEY_BIAS, DeadParameters, Method
from modules.options import Range, between
from modules.stan.branch import Branch, Embeddings, TemporalModule, mean_of_frames
from modules.stan.released import released_key, released_tensors
from modules.stan.time_table import ROWS, check_rows

log = logging.getLogger("stop")

MOST_LEVELS = 4  # K of the released configurations


class STAN(Method):
    """A clip is the mean of its frames' embeddings u_t; they are compared as cosines divided by the constant `tau`.

    Raises:
        ValueError: if `stan_layers` exceeds the blocks of this CLIP's visual tower, or if clips of `max_frames` frames
            have no rows in the time table.
    """

    needs: ClassVar[tuple[str, ...]] = ("class token",)  # the branch has one of the clip, which begins as their mean

    def __init__(
        self,
        clip: CLIP,
        *,
        stan_layers: Annotated[
            int,
            "K, levels of the branch, which reads as many of CLIP's last visual blocks; 0: 4, but on a CLIP of fewer "
            "than five visual blocks one less than these, and at least 1",
            Range(0),
        ] = 0,
        temporal_module: Annotated[
            TemporalModule, "how frames see each other; self: self-attention; conv: the paper's convolution"
        ] = "self",
        stan_embeddings: Annotated[
            Embeddings,
            "where the branch begins; released: class token averaged with CLIP's class embedding, CLIP's own position "
            "table; paper: class token alone, a position table of its own",
        ] = "released",
        level_projection: Annotated[
            bool, "multiply CLIP's features by a learned matrix before they enter later levels, as in the paper"
        ] = False,
        cls_residue: Annotated[
            bool, "in training, later levels get the class tokens of every second frame alone"
        ] = False,
        drop_path: Annotated[
            float,
            "share of attention rows that the last level drops in training; earlier levels drop fewer",
            Range(0, 0.99),
        ] = 0.1,
        max_frames: Annotated[int, "T, frames of a clip", Range(1)] = 12,
        time_frames: Annotated[
            int,
            "frames of a clip that the rows of the time table are for; clips of another number of frames read rows "
            "interpolated between them; 0: row t for frame t",
            Range(0, ROWS),
        ] = 0,
        tau: Annotated[float, "the constant temperature: cosines are divided by it", Range(0, above=True)] = 0.01,
        train_text: Annotated[
            bool, "also train CLIP's text tower; off in recognition: the texts of classes are encoded once"
        ] = True,
        decay_groups: Annotated[
            Literal["matrices", "released"],
            "what --weight_decay applies to; matrices: to tensors of two and more dimensions; released: to all that is "
            "new, biases and norms included, and in CLIP to all but biases and norms",
        ] = "matrices",
    ) -> None:
        super().__init__(clip)
        visual = clip.visual
        depth = len(visual.blocks)
        if not stan_layers:
            stan_layers = max(1, min(MOST_LEVELS, depth - 1))
            log.info("--stan_layers %d, by the rule for this CLIP's %d visual blocks", stan_layers, depth)
        between("stan_layers", stan_layers, 1, depth, why="the visual blocks of this CLIP")
        check_rows(max_frames, time_frames)
        self.tapped_from = depth - stan_layers  # the first block, from 0, whose output the branch reads
        self.rows_used = time_frames or max_frames  # of the time table
        self.decay_groups = decay_groups
        clip.requires_grad_(False)
        visual.requires_grad_(True)
        clip.text.requires_grad_(train_text)
        with torch.no_grad():
            clip.logit_scale.fill_(math.log(1 / tau))
        blocks = [block for block in visual.blocks if isinstance(block, Block)]
        self.branch = Branch(
            blocks[self.tapped_from :],
            visual.positional_embedding,
            temporal=temporal_module,
            embeddings=stan_embeddings,
            projected=level_projection,
            cls_residue=cls_residue,
            drop_path=drop_path,
            time_frames=time_frames,
        )

    def encode_frames(self, video: Tensor, frame_mask: Tensor | None = None) -> Tensor:
        """Embed every frame (u_t): `[B,T,3,H,W]` -> `[B,T,E]`, not normalised.

        With `frame_mask`, bool `[B,T]`, real frames have the embeddings of the clip without its padding, which comes
        last. Those of padding mean nothing.

        Raises:
            ValueError: if a clip has more frames than the time table has rows, see `TimeTable`.
        """
        visual, size = self.clip.visual, video.shape[:2]
        if frame_mask is None:
            frame_mask = torch.ones(size, dtype=torch.bool, device=video.device)
        x = visual.embed(video.flatten(0, 1))
        taps = []
        for n, block in enumerate(visual.blocks):
            x = block(x)
            if n >= self.tapped_from:
                taps.append(x.unflatten(0, size))
        c = self.branch(taps, visual.class_embedding, visual.positional_embedding, frame_mask.bool())
        o = (taps[-1][:, :, 0] + c.unsqueeze(1)).unsqueeze(2)
        if not visual.reads_first_token:  # [D] the pool then reads CLIP's patches beside o
            o = torch.cat([o, taps[-1][:, :, 1:]], dim=2)
        return visual.pool(o.flatten(0, 1)).unflatten(0, size)

    def encode_video(self, video: Tensor, frame_mask: Tensor) -> Tensor:
        return mean_of_frames(self.encode_frames(video, frame_mask), frame_mask)

    def decays(self, name: str, parameter: nn.Parameter) -> bool:
        """Return what the base class does, or what the released optimiser does."""
        if self.decay_groups == "matrices":
            return super().decays(name, parameter)
        return not self.is_pretrained(parameter) or parameter.dim() > 1 or name.endswith("class_embedding")

    def dead_parameters(self) -> list[DeadParameters]:
        """Return the key biases of the branch, and the rows of the time table that no frame reads."""
        biases = [name for name, _ in self.branch.named_parameters() if name.endswith("in_proj_bias")]
        dead = [DeadParameters(f"branch.{name}", KEY_BIAS, 1 / 3) for name in biases]
        if self.rows_used < ROWS:
            reason = f"frames read its first {self.rows_used} rows alone; weight decay changes the others"
            dead.append(DeadParameters("branch.time.weight", reason, 1 - self.rows_used / ROWS))
        return dead

    def released_name(self, name: str) -> str | None:
        return released_key(name)

    def released_tensors(self, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return released_tensors(state_dict)

    def check_start(self, settings: Mapping[str, Any]) -> None:
        """Warn if the time table was trained for clips of another number of frames."""
        trained = settings.get("time_frames") or settings.get("max_frames")
        if trained is not None and trained != self.rows_used:
            log.warning(
                "the rows of the time table were trained for clips of %s frames, and are read as those of clips of %d: "
                "pass --time_frames %s to interpolate between them", trained, self.rows_used, trained,
            )  # fmt: skip
