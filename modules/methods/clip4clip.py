"""CLIP4Clip (Luo et al., Neurocomputing 2022, arXiv 2104.08860; github.com/ArrowLuo/CLIP4Clip): CLIP on every frame,
then a similarity calculator over the frame embeddings, everything fine-tuned.

Shapes: B clips, T frames, E joint embedding, S text positions of CLIP.
"""

import copy
from typing import Annotated, Literal

import torch
from torch import nn

from modules.clip import CLIP, Block
from modules.methods.base import Method
from modules.options import OnlyWith, Range, between
from modules.similarity import masked_mean


class CLIP4Clip(Method):
    """Section 3.3: a video is the mean of its frames' normalised embeddings (parameter-free type, `meanP`), or of their
    outputs from a transformer over the frames, which knows their order (sequential type, `seqTransf`).

    As in the released code, training changes the transformer blocks from `freeze_layer_num` on, both final LayerNorms,
    both projections and the temperature. The embeddings (patches, tokens, class token, positions) and `ln_pre` are
    frozen. All that `seqTransf` adds is trained; it starts as a copy of the text tower's positions and first blocks.

    Raises:
        ValueError: if `freeze_layer_num` exceeds the number of blocks of both towers, or if the transformer of
            `seqTransf` cannot start as a copy of this CLIP's text blocks.
    """

    def __init__(
        self,
        clip: CLIP,
        *,
        sim_header: Annotated[
            Literal["meanP", "seqTransf"],
            "how frame embeddings become one video embedding: their mean, or a transformer over them and then the mean",
        ] = "meanP",
        cross_num_hidden_layers: Annotated[
            int, "blocks of seqTransf's transformer over frames", Range(1), OnlyWith("sim_header", ("seqTransf",))
        ] = 4,
        freeze_layer_num: Annotated[int, "the first blocks of both towers that stay frozen", Range(0)] = 0,
    ) -> None:
        super().__init__(clip)
        depth = max(len(clip.visual.blocks), len(clip.text.blocks))
        between("freeze_layer_num", freeze_layer_num, 0, depth, why="the blocks of this CLIP")
        clip.requires_grad_(False)
        for blocks in (clip.visual.blocks, clip.text.blocks):
            for block in list(blocks)[freeze_layer_num:]:
                block.requires_grad_(True)
        for parameter in (*clip.visual.pool_parameters(), *clip.text.pool_parameters()):
            parameter.requires_grad_(True)
        clip.logit_scale.requires_grad_(True)
        self.sim_header = sim_header
        if sim_header == "seqTransf":
            self._add_temporal_transformer(cross_num_hidden_layers)

    def _add_temporal_transformer(self, layers: int) -> None:
        text, width = self.clip.text, self.clip.architecture.embed_dim
        if text.width != width:
            raise ValueError(
                f"sim_header=seqTransf starts as a copy of CLIP's text blocks, and those of this CLIP have width "
                f"{text.width} while its embeddings have {width}"
            )
        between("cross_num_hidden_layers", layers, 1, len(text.blocks), why="the text blocks of this CLIP")
        self.frame_position_embeddings = nn.Parameter(text.positional_embedding.detach().clone())  # [S,E]
        self.temporal_blocks = copy.deepcopy(text.blocks[:layers]).requires_grad_(True)
        for block in self.temporal_blocks:
            assert isinstance(block, Block)
            block.ln_1.eps = block.ln_2.eps = 1e-12  # as released; CLIP's is 1e-5

    def encode_frames(self, video: torch.Tensor) -> torch.Tensor:
        """Return CLIP's image embedding of every frame: `[B,T,3,H,W]` -> `[B,T,E]`, not normalised."""
        return self.clip.visual(video.flatten(0, 1)).unflatten(0, video.shape[:2])

    def relate_frames(self, frames: torch.Tensor, frame_mask: torch.Tensor) -> torch.Tensor:
        """Run `seqTransf`'s transformer: every frame attends to the real frames of its clip, `[B,T,E]` -> `[B,T,E]`.

        Raises ValueError if T exceeds S, the number of positions.
        """
        length, limit = frames.shape[1], len(self.frame_position_embeddings)
        if length > limit:
            raise ValueError(f"sim_header=seqTransf reads at most {limit} frames, not {length}: lower --max_frames")
        related = frames + self.frame_position_embeddings[:length]
        for block in self.temporal_blocks:
            related = block(related, mask=frame_mask.bool()[:, None, None])
        return frames + related

    def encode_video(self, video: torch.Tensor, frame_mask: torch.Tensor) -> torch.Tensor:
        frames = self.encode_frames(video)
        if self.sim_header == "seqTransf":
            frames = self.relate_frames(frames, frame_mask)
        return masked_mean(frames, frame_mask)

    def decays(self, name: str, parameter: nn.Parameter) -> bool:
        """Return False only for biases: as in the released code, LayerNorm weights and the temperature decay."""
        return not name.endswith("bias")

    def released_name(self, name: str) -> str | None:
        if name == "frame_position_embeddings":
            return "frame_position_embeddings.weight"
        if name.startswith("temporal_blocks."):
            return name.replace("temporal_blocks.", "transformerClip.resblocks.", 1)
        return super().released_name(name)
