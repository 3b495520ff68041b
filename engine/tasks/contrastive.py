"""The step of contrastive training: embed pairs on every process, gather them, and compute one global loss.

Shapes: B pairs of the global batch, b = B/W pairs of this process, n pairs of a part of it, E joint embedding.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dataloaders.datasets import Batch
from engine.distributed import gather, gather_rows, mean_over_processes
from engine.precision import random_state
from engine.tasks.base import Part, TaskStep
from engine.tasks.shards import ShardReport
from modules.losses import build_loss
from modules.methods import Method
from modules.rows import Rows, join, map_rows, take, tensors_of


@dataclass(frozen=True)
class CachedGradient:
    """The gradient of the loss at the rows of one part of a batch, so that the part can run backward separately."""

    text: tuple[Tensor | None, ...]  # one for each tensor of the rows; None for masks and lengths
    clips: tuple[Tensor | None, ...]
    share: float  # of the part in the batch
    # The arguments of `ContrastiveStep.batch_loss`. Only one part of a step has them: it also computes the gradient of
    # the similarity's and the loss's parameters.
    whole_batch: tuple[Rows, Rows, Tensor | None] | None = None


class ContrastiveStep(TaskStep):
    """Computes the loss of the global batch from one process's pairs.

    This step gathers the rows, so that methods need not know of other processes. The loss and the similarity are
    computed in fp32.

    Args:
        gather_gradient: see `engine.distributed.gather_with_gradient`.
        loss: one of `modules.losses.LOSSES`; by default the symmetric InfoNCE.
        positives: whether all pairs of a video in the global batch count as positives of each other.
        report: of training from shards; the loss leaves out rows and columns of samples that cannot be read.
    """

    items = "pairs"

    def __init__(
        self,
        method: Method,
        autocast: Callable[[], torch.autocast],
        gather_gradient: str = "sum",
        loss: nn.Module | None = None,
        positives: bool = False,
        report: ShardReport | None = None,
    ) -> None:
        super().__init__(method, loss or build_loss("symmetric_info_nce", method.clip), autocast)
        self.gather_gradient, self.report = gather_gradient, report
        self.kept: np.ndarray | None = None  # int64, rows of the global batch that the loss is of; None for all
        self.inputs = ("video", "frame_mask", "token_ids", *(("video_index",) if positives else ()))

    def batch_note(self, batch_size: int) -> str:
        up_to = "up to " if "video_index" in self.inputs else ""
        return f", negatives per query {up_to}{batch_size - 1}"

    def received(self, batch: Batch) -> None:
        if self.report is not None:
            self.kept = self.report.rows_to_keep(batch, self.notes)

    def scalars(self) -> dict[str, float]:
        return super().scalars() | (self.report.scalars(self.notes) if self.report is not None else {})

    def batch_loss(self, text: Rows, clips: Rows, video_index: Tensor | None = None) -> Tensor:
        """Return the loss of B text rows and B clip rows; `video_index`, int64 `[B]`, has each pair's video."""
        if self.kept is not None:
            text, clips = take(text, self.kept), take(clips, self.kept)
            video_index = None if video_index is None else video_index[self.kept]
        return self.method.batch_loss(self.loss, text, clips, video_index)

    def forward(
        self,
        video: Tensor,
        frame_mask: Tensor,
        token_ids: Tensor,
        video_index: Tensor | None = None,
        cached: CachedGradient | None = None,
    ) -> Tensor:
        """Return the scalar loss over all B pairs, for the inputs of `embed`.

        With `cached`, return a scalar with the gradient of this part. With `video_index`, int64 `[b]`, each pair's
        video, all pairs of a video are positives of each other, including those of other processes. For a method that
        reads captions of frames, `token_ids` is int64 `[b,1+T,L]`.
        """
        text, clips, extra = self.embed(video, frame_mask, token_ids)
        assert text is not None
        if cached is None:
            text, clips = (gather_rows(rows, self.gather_gradient) for rows in (text, clips))
            loss = self.batch_loss(text, clips, None if video_index is None else gather(video_index))
        else:
            loss = _products(text, cached.text) + _products(clips, cached.clips)
            if cached.whole_batch is not None:
                loss = loss + self.batch_loss(*cached.whole_batch)
        if extra is None:
            return loss
        return loss + mean_over_processes(extra) * (1.0 if cached is None else cached.share)

    def in_parts(self, inputs: tuple[Tensor, ...], count: int) -> tuple[Tensor, list[Part]]:
        """Embed the parts of a batch without keeping activations, and compute the loss's gradient at the embeddings.

        This is GradCache (Gao et al., 2021, arXiv 2101.06983). It is exact, because the loss depends on the parts only
        through their embeddings. Each part has the random state of its first pass, so that its second pass draws the
        same dropout.
        """
        video_index = inputs[3] if len(inputs) > 3 else None
        pieces: list[Any] = list(zip(*(tensor.chunk(count) for tensor in inputs[:3]), strict=True))
        embeddings, states, extras = [], [], []
        with torch.no_grad():
            for piece in pieces:
                states.append(random_state(piece[0].device))
                *rows, extra = self.embed(*piece)
                embeddings.append(rows)
                extras += [] if extra is None else [mean_over_processes(extra)]
            local = [join(rows) for rows in zip(*embeddings, strict=True)]
            text, clips = (map_rows(_as_leaf, gather_rows(rows)) for rows in local)
        videos = None if video_index is None else gather(video_index)
        loss = self.batch_loss(text, clips, videos)
        leaves = [tensor for rows in (text, clips) for tensor in tensors_of(rows)]
        gradients = iter(torch.autograd.grad(loss, [leaf for leaf in leaves if leaf.requires_grad]))
        own = [self._own(next(gradients), len(inputs[0])) if leaf.requires_grad else None for leaf in leaves]
        divided = [(None,) * count if tensor is None else tensor.chunk(count) for tensor in own]
        n_text = len(tensors_of(text))
        cached = [CachedGradient(part[:n_text], part[n_text:], 1 / count) for part in zip(*divided, strict=True)]
        whole_batch = map_rows(Tensor.detach, text), map_rows(Tensor.detach, clips), videos
        cached[-1] = replace(cached[-1], whole_batch=whole_batch)
        parts = zip(pieces, cached, states, strict=True)
        loss = loss.detach() + torch.stack(extras).mean() if extras else loss.detach()
        return loss, [Part((*piece, None, gradient), state) for piece, gradient, state in parts]

    def _own(self, gradient: Tensor, count: int) -> Tensor:
        """Return this process's `count` rows of a gradient `[B,...]`, scaled to undo DDP's averaging."""
        world_size, rank = 1, 0
        if torch.distributed.is_initialized():
            world_size, rank = torch.distributed.get_world_size(), torch.distributed.get_rank()
        # DDP averages over processes, but "sum" needs their sum.
        scale = world_size if self.gather_gradient == "sum" else 1
        return scale * gradient[rank * count : (rank + 1) * count]


def _as_leaf(tensor: Tensor) -> Tensor:
    return tensor.requires_grad_() if tensor.is_floating_point() else tensor


def _products(rows: Rows, gradients: tuple[Tensor | None, ...]) -> Tensor:
    """Return a scalar whose gradient with respect to the rows is `gradients`."""
    pairs = zip(tensors_of(rows), gradients, strict=True)
    return torch.stack([(tensor * gradient).sum() for tensor, gradient in pairs if gradient is not None]).sum()
