"""Scores of clips with classes that have a bag of prompts each: every frame meets every prompt of a class.

    A[b,t,k,m] = s <f_bt, F_km>                                            f and F of length 1
    score[b,k] = 1/2 (mean over m of max over t of A  +  mean over t of max over m of A)

From STDD (AAAI 2025, arXiv 2412.09895; github.com/Mia-YatingYu/STDD). A matrix of class texts, `[K,E]`, has one prompt
for each class; there both terms compare frames with that prompt.

Shapes: B clips, T frames, K classes, M prompts of a class, E joint embedding.
"""

from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from modules.frame_rows import FrameRows
from modules.precision import without_autocast
from modules.rows import Rows

BagMean = Literal["padded", "masked"]
AT_ONCE = 2**22  # scores of frames with prompts at once: 16 MiB


class Bag(NamedTuple):
    """The prompts of K classes, as rows (`modules.rows`).

    `prompts` is fp32 `[K,M,E]`, each of length 1. Classes with fewer than M prompts repeat some; `mask` is bool `[K,M]`
    and false at these repeats.
    """

    prompts: Tensor
    mask: Tensor


def make_bag(features: Tensor, mask: Tensor) -> Bag:
    """Return the bag of text features, float `[K,M,E]` of any length, and bool `[K,M]`."""
    return Bag(F.normalize(features.float(), dim=-1), mask.bool())


def first_occurrences(features: Tensor) -> Tensor:
    """Return where a prompt is not an exact repeat of an earlier one of its class: `[K,M,E]` -> bool `[K,M]`."""
    found = []
    for prompts in features.cpu():
        seen: set[bytes] = set()
        for row in prompts.numpy():
            found.append((content := row.tobytes()) not in seen)
            seen.add(content)
    return torch.tensor(found).view(features.shape[:2])


def frames_of(clips: Rows) -> FrameRows:
    """Return what a bag scores, from a method's rows of B clips: their frames, or `[B,E]` as one frame a clip.

    Raises:
        ValueError: the rows are neither.
    """
    if isinstance(clips, FrameRows):
        return clips
    if isinstance(clips, Tensor) and clips.dim() == 2:
        return FrameRows(clips[:, None], torch.ones(len(clips), 1, dtype=torch.bool, device=clips.device))
    raise ValueError(
        "a bag of prompts scores one vector of a clip or of each of its frames, and these rows have others"
    )


def bag_scores(
    frames: Tensor,
    frame_mask: Tensor,
    bag: Bag,
    scale: Tensor | float,
    mean: BagMean = "padded",
    at_once: int = AT_ONCE,
) -> Tensor:
    """Score clips with the classes of a bag.

    Some classes are scored at a time, so the scores of all frames with all prompts are never in memory together. What
    autograd keeps for the gradient are the places of the maxima: 8 B K (M + T) bytes.

    Args:
        frames: `[B,T,E]` float, one embedding a frame, of any length.
        frame_mask: bool `[B,T]`, true where the frame is real; at least one of each clip is. Others count nowhere.
        bag: on the device of the frames.
        scale: s, above 0.
        mean: padded: over all M prompts of a class, repeats included, as released; masked: over those that `bag.mask`
            says are no repeats. The maxima are the same.
        at_once: most scores of frames with prompts at a time; one class is the least.

    Returns:
        fp32 `[B,K]`.
    """
    with without_autocast(frames.device.type):
        unit, real = F.normalize(frames.float(), dim=-1), frame_mask.bool()
        classes = max(1, at_once // max(1, real.numel() * bag.mask.shape[1]))
        blocks = zip(bag.prompts.split(classes), bag.mask.split(classes), strict=True)
        scores = [_cosine_scores(unit, real, prompts, mask if mean == "masked" else None) for prompts, mask in blocks]
        return scale * torch.cat(scores, dim=1)  # s > 0 commutes with both maxima


def _cosine_scores(unit: Tensor, real: Tensor, prompts: Tensor, counted: Tensor | None) -> Tensor:
    """Return the scores of B clips with the prompts of k classes without s: `[B,T,E]`, `[k,M,E]` -> `[B,k]`."""
    cosines = (unit.flatten(0, 1) @ prompts.flatten(0, 1).T).view(*real.shape, *prompts.shape[:2])  # [B,T,k,M]
    # In place, which saves a copy: the gradient of a product does not need its result.
    cosines.masked_fill_(~real[:, :, None, None], -torch.inf)
    if counted is not None:
        cosines.masked_fill_(~counted, -torch.inf)
    # `max` keeps places for the gradient; `amax` would keep all cosines.
    of_frames, of_prompts = cosines.max(dim=3).values, cosines.max(dim=1).values  # [B,T,k], [B,k,M]
    over_frames = _mean(of_frames, real[:, :, None], dim=1)
    over_prompts = of_prompts.mean(dim=-1) if counted is None else _mean(of_prompts, counted, dim=-1)
    return (over_prompts + over_frames) / 2


def _mean(values: Tensor, counted: Tensor, dim: int) -> Tensor:
    """Return the mean over a dimension of the values that count."""
    return values.masked_fill(~counted, 0).sum(dim) / counted.sum(dim)
