"""T-MASS (Wang et al., "Text Is MASS", CVPR 2024, arXiv 2403.17998; github.com/Jiamian-Wang/T-MASS): a text is not a
point but a region, from which vectors are drawn.

    r_nb  = W cos(t_n, f_b1 .. f_bT) + c                radius of text n for video b, for each dimension
    t^_nb = t_n + e exp(r_nb),  e from U[0, 1)          stochastic text
    s_nb  = cos(t^_nb, pooled_nb)                       pooled: X-Pool's, `modules.t_mass.pooling`

Shapes: N texts, B videos, T frames, K trials, E joint embedding.
"""

from collections.abc import Mapping
from typing import Annotated, Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from modules.clip import CLIP
from modules.methods.base import DeadParameters, Method
from modules.options import Range
from modules.precision import without_autocast
from modules.rows import map_rows
from modules.similarity import unit
from modules.t_mass.draws import numbers_of_texts, numbers_of_videos, uniform
from modules.t_mass.pooling import DROPOUT, FrameKeys, FramePooling
from modules.weight_names import from_hugging_face_keys, has_hugging_face_keys

AT_ONCE = 1 << 23  # drawn numbers at once; 32 MB
OF_DROPOUT = -1  # the number of the trial whose draws are those of dropout

CLIP_PREFIX = "clip."


class TextRows(NamedTuple):
    """N texts: `texts` float `[N,E]`, not normalised, and `number` int64 `[N]`, on which their draws depend."""

    texts: Tensor
    number: Tensor


class VideoRows(NamedTuple):
    """B clips: `frames` float `[B,T,E]`, zero where padded, `frame_mask` bool `[B,T]`, and `number` int64 `[B]`."""

    frames: Tensor
    frame_mask: Tensor
    number: Tensor


class PreparedText(NamedTuple):
    """N texts with unit vectors and queries besides."""

    texts: Tensor
    units: Tensor
    queries: Tensor
    number: Tensor


class PreparedVideo(NamedTuple):
    """B clips: unit vectors of their frames, and `FrameKeys`."""

    units: Tensor
    keys: Tensor
    values: Tensor
    frame_mask: Tensor
    number: Tensor


class RadiusBranch(nn.Module):
    """W and c of the radius. W starts as the identity, so its rows from T on are zero and exp(r) is 1 there."""

    def __init__(self, width: int, frames: int) -> None:
        super().__init__()
        # Released, trained and used by nothing; the release leaves it uninitialised.
        self.learnable_scalar = nn.Parameter(torch.zeros(1))
        self.linear_proj = nn.Linear(frames, width)
        nn.init.eye_(self.linear_proj.weight)
        nn.init.zeros_(self.linear_proj.bias)

    def forward(self, cosines: Tensor) -> Tensor:
        """Return r of cosines with T frames, zero where a frame is padding: `[...,T]` -> `[...,E]`."""
        missing = self.linear_proj.in_features - cosines.shape[-1]
        return self.linear_proj(F.pad(cosines, (0, missing))) + 0 * self.learnable_scalar


class TMASS(Method):
    """CLIP, fine-tuned whole, and a head of 1,323,009 parameters at ViT-B/32 and 12 frames.

    In training a text is drawn once, with the radius that its own video gives it; the support loss adds the vector at
    the surface of the region that is nearest to its video (section 3.3). In evaluation each pair has `trials` draws
    with its own radius, and the best counts. Draws depend on (seed, video, text, trial) alone, see
    `modules.t_mass.draws`. In training rows have random numbers instead, and dropout's draws depend on them too, so
    that all processes and both passes of an accumulated step draw the same.

    Another task than retrieval has no pairs: its training scores one draw of each pair, without the support loss.

    Raises:
        ValueError: `encode_video` raises it for clips of more than `max_frames` frames.
    """

    is_dot_product = False

    def __init__(
        self,
        clip: CLIP,
        *,
        max_frames: Annotated[int, "T, frames of a clip", Range(1)] = 12,
        support_loss_weight: Annotated[float, "weight of the support loss; 0.8 as for MSR-VTT", Range(0)] = 0.8,
        trials: Annotated[int, "K, draws of a text for each video in evaluation; the best counts", Range(1)] = 20,
        draw_seed: Annotated[int, "seed of the draws in evaluation", Range(0, 2**63 - 1)] = 24,
    ) -> None:
        super().__init__(clip)
        width = clip.architecture.embed_dim
        self.max_frames, self.support_loss_weight, self.trials = max_frames, support_loss_weight, trials
        self.seed = draw_seed
        self.pool_frames = FramePooling(width)
        self.std_branch = RadiusBranch(width, max_frames)

    def encode_video(self, video: Tensor, frame_mask: Tensor) -> VideoRows:
        if video.shape[1] > self.max_frames:
            raise ValueError(
                f"the clip has {video.shape[1]} frames, and this model was made for max_frames={self.max_frames}"
            )
        real = frame_mask.bool()
        frames = self.clip.visual(video.flatten(0, 1)).unflatten(0, video.shape[:2])
        number = self._random_numbers(len(video)) if self.training else numbers_of_videos(video, real)
        return VideoRows(frames.masked_fill(~real.unsqueeze(-1), 0), real, number)

    def encode_text(self, token_ids: Tensor) -> TextRows:
        text = self.clip.text
        content = None if self.training else numbers_of_texts(token_ids, text.end_positions(token_ids))
        return TextRows(text(token_ids), self._random_numbers(len(token_ids)) if content is None else content)

    def _random_numbers(self, count: int) -> Tensor:
        return torch.randint(2**62, (count,), device=self.clip.logit_scale.device)

    def noise(self, text: Tensor, video: Tensor, trials: int) -> Tensor:
        """Draw e of pairs, whose texts' and videos' numbers are int64 of shapes that broadcast: fp32 `[...,K,E]`."""
        numbers = torch.arange(trials, device=text.device)
        return uniform(self.seed, text, video, numbers, self.clip.architecture.embed_dim)

    def prepare(self, rows: TextRows | VideoRows) -> PreparedText | PreparedVideo:
        """Return what does not depend on the other side of a pair, computed once."""
        with without_autocast(rows.number.device.type):
            if isinstance(rows, TextRows):
                texts = rows.texts.float()
                return PreparedText(texts, unit(texts), self.pool_frames.queries(texts), rows.number)
            frames = rows.frames.float()
            return PreparedVideo(unit(frames), *self.pool_frames.keys(frames, rows.frame_mask), rows.number)

    def similarity(self, text: TextRows, video: VideoRows) -> Tensor:
        """Score every text with every video, by the best of `trials` draws, in training of one: fp32 `[N,B]`."""
        text, video = self.prepare(text), self.prepare(video)  # type: ignore[assignment]
        return self.similarity_of_prepared(text, video)  # type: ignore[arg-type]

    def similarity_of_prepared(self, text: PreparedText, video: PreparedVideo) -> Tensor:
        trials = 1 if self.training else self.trials
        n_text, n_video = len(text.number), len(video.number)
        columns = max(1, min(n_video, AT_ONCE // (trials * text.texts.shape[1])))
        rows = max(1, AT_ONCE // (trials * text.texts.shape[1] * columns))
        cosines = []
        for first in range(0, n_text, rows):
            some: Any = map_rows(lambda own, at=first: own[at : at + rows], text)  # type: ignore[misc]
            across = []
            for start in range(0, n_video, columns):
                other: Any = map_rows(lambda own, at=start: own[at : at + columns], video)  # type: ignore[misc]
                across.append(self._best_cosine(some, other, trials))
            cosines.append(torch.cat(across, dim=1))
        return self.clip.logit_scale.float().exp() * torch.cat(cosines)

    def _best_cosine(self, text: PreparedText, video: PreparedVideo, trials: int) -> Tensor:
        """Return the best cosine of `trials` draws for every pair, `[N,B]`."""
        with without_autocast(text.texts.device.type):
            pooled = self._pooled(text, video)
            spread = self.std_branch(torch.einsum("ne,bte->nbt", text.units, video.units)).exp()
            e = self.noise(text.number[:, None], video.number, trials)
            stochastic = text.texts[:, None, None] + e * spread.unsqueeze(2)
            return F.cosine_similarity(stochastic, pooled.unsqueeze(2), dim=-1).amax(dim=-1)

    def _pooled(self, text: PreparedText, video: PreparedVideo) -> Tensor:
        """Return each video as each text sees it, `[N,B,E]`; with dropout in training."""
        kept = None
        if self.training:
            trial, width = torch.full((1,), OF_DROPOUT, device=text.number.device), text.texts.shape[1]
            kept = uniform(self.seed, text.number[:, None], video.number, trial, width).squeeze(-2) >= DROPOUT
        return self.pool_frames(text.queries, FrameKeys(video.keys, video.values, video.frame_mask), kept)

    def batch_loss(self, loss: Any, text: TextRows, video: VideoRows, video_index: Tensor | None = None) -> Tensor:
        """Return loss(stochastic) + `support_loss_weight` loss(support)."""
        with without_autocast(text.number.device.type):
            stochastic, support = self.pair_cosines(text, video)
            scale = self.clip.logit_scale.float().exp()
            total = loss(scale * stochastic, video_index)
            if self.support_loss_weight:
                total = total + self.support_loss_weight * loss(scale * support, video_index)
            return total

    def pair_cosines(self, text: TextRows, video: VideoRows) -> tuple[Tensor, Tensor]:
        """Return the cosines `[B,B]` of stochastic and of support texts with all videos, for B pairs."""
        own, clips = self.prepare(text), self.prepare(video)
        assert isinstance(own, PreparedText)
        assert isinstance(clips, PreparedVideo)
        pooled = self._pooled(own, clips)
        spread = self.std_branch(
            (own.units.unsqueeze(1) * clips.units).sum(dim=-1)
        ).exp()  # of a text and its own video
        e = self.noise(own.number, clips.number, 1).squeeze(1)
        direction = unit(pooled.mean(dim=0) - own.texts)  # from a text to its video, as all texts see it on average
        stochastic, support = own.texts + e * spread, own.texts + direction * spread
        stochastic, support = (F.cosine_similarity(t.unsqueeze(1), pooled, dim=-1) for t in (stochastic, support))
        return stochastic, support

    def dead_parameters(self) -> list[DeadParameters]:
        return [
            DeadParameters("std_branch.learnable_scalar", "nothing uses it, in the released code neither"),
            DeadParameters(
                "pool_frames.cross_attn.k_proj.bias",
                "it adds the same to all keys of a query, and softmax removes that",
            ),
        ]

    def released_name(self, name: str) -> str | None:
        if name.startswith("std_branch."):
            return f"stochastic.{name}"
        return name if name.startswith("pool_frames.") else super().released_name(name)

    def released_tensors(self, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the tensors by `released_name`. CLIP's have Hugging Face's names in the released code; without any of
        them, as in a file of the head alone, CLIP stays as it is."""
        theirs = super().released_tensors(state_dict)
        inside = {key.removeprefix(CLIP_PREFIX): theirs[key] for key in theirs if key.startswith(CLIP_PREFIX)}
        head = {key: tensor for key, tensor in theirs.items() if not key.startswith(CLIP_PREFIX)}
        if has_hugging_face_keys(inside):
            inside = from_hugging_face_keys(inside)
        if inside:
            return {f"{CLIP_PREFIX}{key}": tensor for key, tensor in inside.items()} | head
        own = {name: tensor for name, tensor in self.state_dict().items() if name.startswith(CLIP_PREFIX)}
        return {super(TMASS, self).released_name(name) or name: tensor for name, tensor in own.items()} | head
