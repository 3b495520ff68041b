"""Similarities corrected by what other queries score, block by block: dual softmax and QB-Norm.

They use what a search for one caption does not have, the other captions of the test split or a bank of training
captions. So numbers with and without them are not comparable, and these stand beside the plain ones, never for them.

Shapes: N captions, V videos, Q captions of the query bank. Everything is in float64: `exp` of CLIP's logits, which
reach from -100 to 100, leaves the range of fp32, where far candidates would tie at 0.
"""

from functools import reduce

import numpy as np
import torch

from engine.tasks.retrieval_metrics import Similarity, blocks

QB_NORM_BETA = 20.0  # the paper's, for cosines


def dual_softmax(
    similarity: Similarity, n_captions: int, n_videos: int, temperature: float, block: int = 256
) -> tuple[Similarity, Similarity]:
    """Each score times a prior, the share that the query has of the candidate's softmax over all queries.

    For text to video this is `S * softmax(S / temperature, over the N captions)`, for video to text
    `S * softmax(S / temperature, over the V videos)`. From "Improving Video-Text Retrieval by Multi-Stream Corpus
    Alignment and Dual Softmax Loss" (CAMoE; Cheng et al., 2021, arXiv 2109.04290), applied at test time.

    Args:
        similarity: scores S of captions with videos.
        n_captions: N, all queries of the split: the result depends on every one of them.
        n_videos: V.
        temperature: above 0; of the same unit as S, so 1 where S already carries CLIP's temperature.
        block: how many captions, or videos, are handled at once to sum up the softmaxes.

    Returns:
        The scores to rank for text to video, and those for video to text.
    """

    def log_sum(captions: np.ndarray, videos: np.ndarray, dim: int) -> torch.Tensor:
        return (similarity(captions, videos).double() / temperature).logsumexp(dim)

    def times_prior(captions: np.ndarray, videos: np.ndarray, log_sums: torch.Tensor) -> torch.Tensor:
        scores = similarity(captions, videos).double()
        return (scores / temperature).sub_(log_sums).exp_().mul_(scores)  # in place, as `[N,block]` is large

    captions, videos = np.arange(n_captions), np.arange(n_videos)
    over_captions = reduce(torch.logaddexp, (log_sum(c, videos, 0) for c in blocks(n_captions, block)))  # [V]
    over_videos = reduce(torch.logaddexp, (log_sum(captions, v, 1) for v in blocks(n_videos, block)))  # [N]
    return (
        lambda captions, videos: times_prior(captions, videos, over_captions[videos]),
        lambda captions, videos: times_prior(captions, videos, over_videos[captions, None]),
    )


def qb_norm(
    similarity: Similarity,
    bank_similarity: Similarity,
    n_bank: int,
    n_videos: int,
    beta: float,
    block: int = 256,
) -> Similarity:
    """Scores of text to video in which videos that attract every query ("hubs") are held down.

    The dynamic inverted softmax of "Cross Modal Retrieval with Querybank Normalisation" (Bogolin et al., CVPR 2022,
    arXiv 2112.12777): a video is activated if it is the best one for some caption of the bank. A query whose best video
    is activated gets `exp(beta S[v]) / sum over b of exp(beta B[b,v])`, any other keeps its scores S. Of equally good
    videos, the first counts as the best one.

    Args:
        similarity: scores S of captions with videos.
        bank_similarity: scores B of the bank's captions, by their numbers, with videos.
        n_bank: Q.
        n_videos: V.
        beta: inverse temperature; `QB_NORM_BETA` divided by what S multiplies cosines with.
        block: captions of the bank handled at once.

    Returns:
        The scores to rank, of which it takes all V videos at once; of the normalised ones the logarithm, whose order is
        the same.
    """
    parts, best = [], []
    for captions in blocks(n_bank, block):
        scores = bank_similarity(captions, np.arange(n_videos)).double()
        parts.append((beta * scores).logsumexp(dim=0))
        best.append(scores.argmax(dim=1))
    over_bank = torch.stack(parts).logsumexp(dim=0)  # [V]
    activated = torch.cat(best).unique()

    def text_to_video(captions: np.ndarray, videos: np.ndarray) -> torch.Tensor:
        assert len(videos) == n_videos, "a query's best video is only known among all"
        scores = similarity(captions, videos).double()
        is_activated = torch.isin(scores.argmax(dim=1, keepdim=True), activated)  # [n,1]
        return torch.where(is_activated, beta * scores - over_bank[videos], scores)

    return text_to_video
