"""DiscoVLA (Shen et al., CVPR 2025, arXiv 2506.08887; github.com/LunarShen/DsicoVLA at commit 6ace76f): LoRA on a
frozen CLIP, class tokens that see the whole clip, and captions of single frames that are aligned with the frames.

The captions of frames are pseudo captions, written by a multimodal language model; only training reads them.

Shapes: B clips or pairs, T frames, P patches, L words, D width, E joint embedding.
"""

from functools import partial
from typing import Annotated, Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from modules.adapters import BottleneckAdapter
from modules.clip import CLIP, Block, TextTransformer, VisionTransformer
from modules.discovla.alignment import distillation, frame_similarity
from modules.discovla.clip_wide import attend_clip_wide
from modules.frame_rows import FrameRows
from modules.lora import RELEASED_TOWERS
from modules.methods.lora import LoRAMethod
from modules.options import OnlyWith, Range, between
from modules.similarity import masked_mean

UNSET = -1
ADAPTED = {"H_V": (4, 3), "H_L": (2, 6)}  # blocks by default, and the share of a shallower tower: a third, a sixth


class PairTexts(NamedTuple):
    """The captions of B pairs, `[B,E]`, and the pseudo captions of their frames, `[B,T,E]`."""

    captions: Tensor
    frames: Tensor


class DiscoVLA(LoRAMethod):
    """Image-video features: in the last `H_V` visual blocks, the class token of a frame attends to all frames, and an
    adapter adds what it sees in its own. Image-video alignment: in training, `batch_loss`.

    In training a text is a caption and the pseudo captions of the T frames, whose END tokens attend to all of them in
    the last `H_L` blocks. A text of evaluation, and the caption of a pair, runs through LoRA alone.

    Raises:
        ValueError: if `H_V` or `H_L` exceeds the blocks of its tower, or if no loss would reach what is asked for:
            `beta` with a detached teacher that `alpha` does not train, or `H_L` where `alpha` and `beta` are 0.
    """

    needs = ("class token", "class pool", "unturned tokens", "END")

    def __init__(
        self,
        clip: CLIP,
        *,
        lora_dim: Annotated[int, "rank of LoRA's additions to queries, keys, values", Range(1)] = 8,
        adapter_dim: Annotated[int, "width of the adapters", Range(1)] = 8,
        H_V: Annotated[
            int,
            "last visual blocks whose class tokens see all frames; -1: 4, or a third of fewer than 12",
            Range(UNSET),
        ] = UNSET,
        H_L: Annotated[
            int,
            "last text blocks in which pseudo captions see each other; -1: 2, or a sixth of fewer than 12, at least 1; "
            "0 if alpha and beta are 0",
            Range(UNSET),
        ] = UNSET,
        alpha: Annotated[float, "weight of the loss that aligns pseudo captions with frames", Range(0)] = 0.3,
        beta: Annotated[float, "weight of the distillation of that alignment into the one of videos", Range(0)] = 1.0,
        teacher: Annotated[
            Literal["detached", "undetached"],
            "whether the distillation changes its teacher too; undetached: yes, as in the released code",
            OnlyWith("beta"),
        ] = "detached",
        padding: Annotated[
            Literal["hidden", "seen"],
            "hidden: padded frames take no part in attention and loss; seen: as in the released code, they do",
        ] = "hidden",
    ) -> None:
        super().__init__(clip, lora_dim=lora_dim)
        self.alpha, self.beta, self.teacher, self.padding = alpha, beta, teacher, padding
        self.reads_frame_captions = alpha > 0 or beta > 0
        if beta > 0 and not alpha > 0 and teacher == "detached":
            raise ValueError("--beta distils the alignment that --alpha trains: pass --alpha above 0, or --beta 0")
        if H_L > 0 and not self.reads_frame_captions:
            raise ValueError(
                "--H_L needs --alpha or --beta above 0: without, no loss reaches its adapters; pass --H_L 0"
            )
        self.visual_adapters = self._adapters("H_V", H_V, clip.visual, adapter_dim)
        self.text_adapters = self._adapters("H_L", H_L if self.reads_frame_captions else 0, clip.text, adapter_dim)

    @staticmethod
    def _adapters(name: str, count: int, tower: VisionTransformer | TextTransformer, rank: int) -> nn.ModuleDict:
        """Return the adapters of the last blocks of a tower, by the numbers of the blocks."""
        depth, (usual, share) = len(tower.blocks), ADAPTED[name]
        if count == UNSET:
            count = max(1, min(usual, depth // share))
        between(name, count, 0, depth, why="the blocks of this CLIP")
        return nn.ModuleDict(
            {
                str(layer): BottleneckAdapter(tower.width, rank, "quick_gelu", draw="xavier", bias_std=1e-6)
                for layer in range(depth - count, depth)
            }
        )

    def forward(self, video: Tensor, frame_mask: Tensor, token_ids: Tensor | None) -> tuple[Any, Any]:
        """Embed clips and texts as every method does, or the pairs of a training batch.

        Texts int64 `[B,1+T,L]` are captions, each followed by the pseudo captions of its clip's frames. The rows are
        then `PairTexts` and `FrameRows`, for `batch_loss`.
        """
        if token_ids is None or token_ids.dim() == 2:
            return super().forward(video, frame_mask, token_ids)
        frame_mask = frame_mask.bool()
        texts = PairTexts(self.encode_text(token_ids[:, 0]), self.encode_frame_captions(token_ids[:, 1:], frame_mask))
        return texts, FrameRows(self.encode_frames(video, frame_mask), frame_mask)

    def encode_video(self, video: Tensor, frame_mask: Tensor) -> Tensor:
        return masked_mean(self.encode_frames(video, frame_mask), frame_mask)

    def encode_frames(self, video: Tensor, frame_mask: Tensor) -> Tensor:
        """Embed the frames of clips: `[B,T,3,H,W]` -> `[B,T,E]`, not normalised; those of padding mean nothing."""
        visual = self.clip.visual
        x = visual.embed(video.flatten(0, 1))
        place = torch.zeros(len(x), dtype=torch.int64, device=x.device)
        seen = self._real(frame_mask)[:, None, None, :, None].expand(-1, -1, -1, -1, x.shape[1]).flatten(3)
        for layer, block in enumerate(visual.blocks):
            assert isinstance(block, Block)
            is_last = block is visual.blocks[-1]
            if str(layer) in self.visual_adapters:
                x = block.run(attend_clip_wide, block, self.visual_adapters[str(layer)], x, place, seen)
                x = block.feed_forward(x[:, :1] if is_last else x)
            else:
                x = block.first_token(x) if is_last else block(x)
        return visual.pool(x).unflatten(0, video.shape[:2])

    def encode_frame_captions(self, token_ids: Tensor, frame_mask: Tensor) -> Tensor:
        """Embed the pseudo captions of the frames of clips: int64 `[B,T,L]` -> `[B,T,E]`, not normalised."""
        text, shape = self.clip.text, token_ids.shape
        ends = text.end_positions(token_ids.flatten(0, 1))
        rows = torch.arange(len(ends), device=ends.device)
        written = torch.arange(shape[2], device=ends.device) <= ends.unflatten(0, shape[:2]).unsqueeze(2)
        seen = (written & self._real(frame_mask).unsqueeze(2)).flatten(1)[:, None, None]
        x = text.embed(token_ids.flatten(0, 1))
        for layer, block in enumerate(text.blocks):
            assert isinstance(block, Block)
            if str(layer) in self.text_adapters:
                adapter = self.text_adapters[str(layer)]
                x = block.run(partial(attend_clip_wide, causal=True), block, adapter, x, ends, seen)
            else:
                x = block.attend(x, causal=True)
            x = block.feed_forward(x[rows, ends].unsqueeze(1) if block is text.blocks[-1] else x)
        return text.pool(x.squeeze(1)).unflatten(0, shape[:2])

    def _real(self, frame_mask: Tensor) -> Tensor:
        """Return which frames count, bool `[B,T]`."""
        return frame_mask.bool() if self.padding == "hidden" else torch.ones_like(frame_mask, dtype=torch.bool)

    def batch_loss(self, loss: nn.Module, text: Any, video: Any, video_index: Tensor | None = None) -> Tensor:
        """Return L(sA) + alpha L(sF) + beta (K(sA, sF) + K(sAᵀ, sFᵀ)) / 2 of rows of `forward`.

        A are the cosines of captions and videos, F those of `frame_similarity`, s = exp(logit_scale), L is `loss` and K
        the distillation. Rows of one vector each, such as those of evaluation, have L(sA) alone. A loss with a scale of
        its own has that in both L, and s, in K, stays CLIP's.
        """
        if isinstance(text, Tensor):
            return super().batch_loss(loss, text, video, video_index)
        of_videos, of_frames, distilled = self.loss_parts(loss, text, video, video_index)
        return of_videos + self.alpha * of_frames + self.beta * distilled

    def loss_parts(
        self, loss: nn.Module, text: PairTexts, video: FrameRows, video_index: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the three parts of `batch_loss`, without their weights."""
        scale = self.clip.logit_scale.exp()
        of_videos = self.similarity(text.captions, masked_mean(video.frames, video.frame_mask))
        of_frames = scale * frame_similarity(text.frames, video.frames, self._real(video.frame_mask), scale)
        expected = of_frames.detach() if self.teacher == "detached" else of_frames
        distilled = (distillation(of_videos, expected) + distillation(of_videos.T, expected.T)) / 2
        return loss(of_videos, video_index), loss(of_frames, video_index), distilled

    def released_name(self, name: str) -> str | None:
        tower, is_adapter, rest = name.partition("_adapters.")
        if not is_adapter:
            return super().released_name(name)
        layer, part, tensor = rest.split(".")
        return f"{RELEASED_TOWERS[tower]}{layer}.attn.TVPt_{part}_{tensor}"
