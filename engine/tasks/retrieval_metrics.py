"""Computes retrieval metrics from similarities, block by block, with a stated rule for ties.

Shapes: N captions, V videos, C candidates of a query.

The rule: tied candidates are in random order, and each metric is its exact expectation over these orders. So a model
that gives every pair the same score gets R@1 = 1/C and not 1, and a video tied with its twin counts half.
"""

from collections.abc import Callable, Iterator

import numpy as np
import torch

RECALL_AT = (1, 5, 10)
BLOCK = 512  # captions or videos; with a larger tile, its scores leave the processor's cache between two operations
TILE = 2**16  # pairs; with 77 words and 64 frames, the maximum of all methods here, they take 1.3 GB in fp32

Similarity = Callable[[np.ndarray, np.ndarray], torch.Tensor]
"""int64 caption numbers `[n]` and video numbers `[m]` -> scores `[n,m]`, higher is better."""


def blocks(n: int, size: int) -> Iterator[np.ndarray]:
    """Yield the numbers 0 to n - 1 in order, at most `size` at once."""
    return (np.arange(start, min(start + size, n)) for start in range(0, n, size))


def in_tiles(similarity: Similarity, pairs: int = TILE) -> Similarity:
    """Return a similarity with the same scores that computes at most `pairs` pairs of a caption and a video at once.

    A similarity of tokens needs memory for many numbers per pair; a dot product needs only one.
    """

    def tiled(captions: np.ndarray, videos: np.ndarray) -> torch.Tensor:
        columns = min(len(videos), max(1, pairs))
        rows = max(1, pairs // max(1, columns))
        scores: torch.Tensor | None = None
        for i in blocks(len(captions), rows):
            for j in blocks(len(videos), columns):
                tile = similarity(captions[i], videos[j])
                if scores is None:
                    scores = tile.new_empty(len(captions), len(videos))
                scores[i[0] : i[-1] + 1, j[0] : j[-1] + 1] = tile
        return similarity(captions, videos) if scores is None else scores

    return tiled


def count_better(scores: torch.Tensor, right: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Count the candidates that beat the right one, and the others that tie with it.

    Args:
        scores: `[n,C]`, higher is better.
        right: int64 `[n]`, the column of the right candidate.

    Returns:
        Two int64 arrays `[n]`.

    Raises:
        ValueError: a score is NaN or infinite, so that there is no rank.
    """
    if not _all_finite(scores):
        bad = int((~torch.isfinite(scores)).any(dim=1).sum())
        raise ValueError(_no_rank(bad, len(scores)))
    scores = _float(scores)
    above, equal = _compare(scores, scores.gather(1, right.unsqueeze(1)), 1, torch.empty_like(scores))
    return above.long().cpu().numpy(), equal.long().cpu().numpy() - 1


def chance_of_hit(better: np.ndarray, tied: np.ndarray, k: int) -> np.ndarray:
    """Return how likely each right candidate is among the first `k`, fp64 `[n]`, from the counts of `count_better`.

    Its place among its tied group is uniform on 1..tied+1.
    """
    return np.clip((k - better) / (tied + 1), 0, 1)


def summarise(better: np.ndarray, tied: np.ndarray) -> dict[str, float]:
    """Return R@1, R@5, R@10 in percent, median and mean rank (1 is best), from the counts of `count_better`."""
    if not len(better):
        raise ValueError("no queries were evaluated, so there are no metrics")
    metrics = {f"R@{k}": float(chance_of_hit(better, tied, k).mean() * 100) for k in RECALL_AT}
    rank = better + 1 + tied / 2
    metrics["MdR"] = float(np.median(rank))
    metrics["MnR"] = float(rank.mean())
    return metrics


def twin_accuracy(
    similarity: Similarity,
    video_of_caption: np.ndarray,
    twin_of: np.ndarray,
    block: int = 256,
) -> float:
    """Return the percentage of captions that score their video above its time-reversed twin; a tie counts half.

    Args:
        similarity: scores of captions with videos.
        video_of_caption: int64 `[N]`.
        twin_of: int64 `[V]`, each video's twin, -1 if it has none.
        block: number of captions handled at once.

    Raises:
        ValueError: no captioned video has a twin, or a score is NaN or infinite.
    """
    captions = np.flatnonzero(twin_of[video_of_caption] >= 0)
    if not len(captions):
        raise ValueError("no captioned video has a twin, so there is no accuracy on twins")
    wins = 0.0
    for start in range(0, len(captions), block):
        chunk = captions[start : start + block]
        own = video_of_caption[chunk]
        scores = similarity(chunk, np.arange(len(twin_of)))
        pairs = scores[np.arange(len(chunk))[:, None], np.stack([own, twin_of[own]], axis=1)]
        better, tied = count_better(pairs, torch.zeros(len(chunk), dtype=torch.int64, device=pairs.device))
        wins += float((1 - better - tied / 2).sum())
    return 100 * wins / len(captions)


def text_to_video_metrics(
    similarity: Similarity, video_of_caption: np.ndarray, n_videos: int, block: int = 256
) -> dict[str, float]:
    """Rank all videos for each caption, `block` captions at once; the arguments are those of `retrieval_metrics`."""
    video_of_caption = _checked(video_of_caption, n_videos)
    videos = np.arange(n_videos)
    counts = np.empty((2, len(video_of_caption)), dtype=np.int64)  # a list of small arrays would fragment the memory
    for captions in blocks(len(video_of_caption), block):
        scores = similarity(captions, videos)
        right = torch.as_tensor(video_of_caption[captions], device=scores.device)
        counts[:, captions] = count_better(scores, right)
    return summarise(*counts)


def video_to_text_metrics(
    similarity: Similarity, video_of_caption: np.ndarray, n_videos: int, block: int = 256
) -> dict[str, float]:
    """Rank all captions for each video, `block` videos at once; the arguments are those of `retrieval_metrics`."""
    video_of_caption = _checked(video_of_caption, n_videos)
    captions = np.arange(len(video_of_caption))
    counts = np.empty((2, n_videos), dtype=np.int64)
    for videos in blocks(n_videos, block):
        scores = similarity(captions, videos)
        owner = torch.as_tensor(video_of_caption, device=scores.device)[:, None].expand_as(scores)
        best = scores.new_full((n_videos, len(videos)), -torch.inf).scatter_reduce(0, owner, scores, "amax")
        counts[:, videos] = count_better(best.T, torch.as_tensor(videos, device=scores.device))
    return summarise(*counts)


def retrieval_metrics(
    similarity: Similarity, video_of_caption: np.ndarray, n_videos: int, block: int = BLOCK
) -> dict[str, dict[str, float]]:
    """Return text-to-video and video-to-text metrics without ever holding the whole similarity matrix.

    Text to video: each caption searches for its own video. Video to text, as in CLIP4Clip: each video searches for its
    own captions, and the captions of a video count as one candidate with the best of their scores. With one caption
    per video, this is the transposed matrix.

    Both directions read the same scores, tile by tile. A rank can only be counted once the score of the right candidate
    is known, so the tiles with captions and their own videos are computed first, and then again with all others. All
    tiles have one shape, because a matrix product of another shape may round differently, and equal rows would not tie.

    Args:
        similarity: scores of captions with videos; called for tiles of at most `block` captions and `block` videos.
        video_of_caption: int64 `[N]`, each caption's own video.
        n_videos: V.
        block: number of captions, and of videos, handled at once.

    Returns:
        `{"text_to_video": {...}, "video_to_text": {...}}` with the keys of `summarise`.

    Raises:
        ValueError: a video has no caption, a caption has no video, or a similarity is not finite.
    """
    video_of_caption = _checked(video_of_caption, n_videos)
    captions = np.argsort(video_of_caption, kind="stable")  # the captions of a video stand together
    owner = video_of_caption[captions]
    each = _captions_of_each(owner, n_videos, block)
    rows = _Windows(len(owner), block - block % each)
    columns = _Windows(n_videos, block)
    own = _own_scores(similarity, captions, owner, rows, columns)
    device_owner = torch.as_tensor(owner, device=own.device)
    own_best = own.new_full((n_videos,), -torch.inf).scatter_reduce(0, device_owner, own, "amax")
    text = own.new_zeros(2, len(owner), dtype=torch.float64)  # better and equal candidates of each query; whole numbers
    video = own.new_zeros(2, n_videos, dtype=torch.float64)
    unfinished = torch.empty_like(own_best)  # best scores of the captions, so far, of a video with more in the next row
    flags = own.new_empty(rows.size, columns.size)
    total = own.new_zeros(())
    for row, new_rows in rows:
        group = device_owner[new_rows] - owner[new_rows.start]
        goes_on = new_rows.start > 0 and owner[new_rows.start] == owner[new_rows.start - 1]
        breaks = new_rows.stop < len(owner) and owner[new_rows.stop - 1] == owner[new_rows.stop]
        n_groups = int(owner[new_rows.stop - 1] - owner[new_rows.start]) + 1
        for column, new_columns in columns:
            scores = _float(similarity(captions[row], np.arange(column.start, column.stop)))
            scores = scores[new_rows.start - row.start :, new_columns.start - column.start :]
            total += scores.sum()
            above, equal = _compare(scores, own[new_rows, None], 1, flags)
            text[0, new_rows] += above
            text[1, new_rows] += equal
            best = scores
            if each > 1:  # no window cuts the captions of a video apart
                best = scores.unflatten(0, (n_groups, each)).amax(dim=1)
            elif goes_on or n_groups < len(scores):
                best = scores.new_full((n_groups, scores.shape[1]), -torch.inf)
                if goes_on:
                    best[0] = unfinished[new_columns]
                best.scatter_reduce_(0, group[:, None].expand_as(scores), scores, "amax")
            if breaks:
                unfinished[new_columns] = best[-1]
                best = best[:-1]
            above, equal = _compare(best, own_best[new_columns], 0, flags)
            video[0, new_columns] += above
            video[1, new_columns] += equal
    if not torch.isfinite(total):
        _check_finite(similarity, len(owner), n_videos, block)
    better, equal = text.long().cpu().numpy()[:, np.argsort(captions)]  # as given, for the order of sums in means
    video_better, video_equal = video.long().cpu().numpy()
    return {
        "text_to_video": summarise(better, equal - 1),
        "video_to_text": summarise(video_better, video_equal - 1),
    }


class _Windows:
    """The numbers 0 to n - 1 in windows of one size; yields each window and its part that no window before it has."""

    def __init__(self, n: int, size: int) -> None:
        self.n, self.size = n, min(n, size)

    def at(self, start: int) -> slice:
        """Return the window that begins at `start`, or earlier where it would reach beyond the end."""
        start = min(start, self.n - self.size)
        return slice(start, start + self.size)

    def __iter__(self) -> Iterator[tuple[slice, slice]]:
        for start in range(0, self.n, self.size):
            window = self.at(start)
            yield window, slice(start, window.stop)


def _captions_of_each(owner: np.ndarray, n_videos: int, block: int) -> int:
    """Return the number of captions that each video has if it is the same for all and fits into a block, else 1."""
    each = len(owner) // n_videos
    return each if each <= block and (np.bincount(owner, minlength=n_videos) == each).all() else 1


def _own_scores(
    similarity: Similarity, captions: np.ndarray, owner: np.ndarray, rows: _Windows, columns: _Windows
) -> torch.Tensor:
    """Return the score of each caption with its own video, `[N]`; `owner` is sorted."""
    own: torch.Tensor | None = None
    for row, _ in rows:
        start, end = owner[row.start], owner[row.stop - 1] + 1
        for first in range(start, end, columns.size):
            column = columns.at(first)
            scores = _float(similarity(captions[row], np.arange(column.start, column.stop)))
            if own is None:
                own = scores.new_empty(len(owner))
            here = row.start + np.flatnonzero((owner[row] >= column.start) & (owner[row] < column.stop))
            own[here] = scores[here - row.start, owner[here] - column.start]
    assert own is not None
    return own


def _float(scores: torch.Tensor) -> torch.Tensor:
    """Return the same scores in a type that can also count them: fp32 for the two kinds of 16 bits."""
    return scores.float() if scores.element_size() < 4 else scores


def _compare(
    scores: torch.Tensor, own: torch.Tensor, dim: int, flags: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Count the scores above `own` and those equal to it along a dimension; `flags` is memory of at least their size.

    The sums of zeros and ones in floating point are exact, up to 2^24 in fp32, and much faster than those of bools.
    """
    flags = flags[: scores.shape[0], : scores.shape[1]]
    above = torch.gt(scores, own, out=flags).sum(dim)
    return above, torch.eq(scores, own, out=flags).sum(dim)


def _all_finite(scores: torch.Tensor) -> bool:
    """Return whether no score is NaN or infinite; their sum usually tells and is faster to compute."""
    return bool(torch.isfinite(scores.sum())) or bool(torch.isfinite(scores).all())


def _check_finite(similarity: Similarity, n_captions: int, n_videos: int, block: int) -> None:
    videos = np.arange(n_videos)
    finite = (torch.isfinite(similarity(captions, videos)).all(dim=1) for captions in blocks(n_captions, block))
    if bad := sum(int((~each).sum()) for each in finite):
        raise ValueError(_no_rank(bad, n_captions))


def _no_rank(bad: int, queries: int) -> str:
    return f"{bad} of {queries} queries have a NaN or infinite similarity, so they have no rank"


def _checked(video_of_caption: np.ndarray, n_videos: int) -> np.ndarray:
    video_of_caption = np.asarray(video_of_caption, dtype=np.int64)
    counts = np.bincount(video_of_caption, minlength=n_videos)
    if len(counts) != n_videos or (counts == 0).any():
        raise ValueError(f"the captions do not cover the {n_videos} videos: each video needs at least one caption")
    return video_of_caption
