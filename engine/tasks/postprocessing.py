"""Corrects similarities by the scores of other queries, block by block: dual softmax and QB-Norm.

Both use captions that a search for one caption does not have: the other test captions, or a bank of training captions.
So numbers with and without them are not comparable; they are reported in addition to the plain ones.

Shapes: N captions, V videos, Q captions of the query bank. All computations are in float64. CLIP's logits lie between
-100 and 100; in fp32 their `exp` would leave the range, and far candidates would tie at 0.
"""

from functools import reduce

import numpy as np
import torch

from engine.tasks.retrieval_metrics import Similarity, blocks

QB_NORM_BETA = 20.0  # the paper's, for cosines


def dual_softmax(
    similarity: Similarity, n_captions: int, n_videos: int, temperature: float, block: int = 256
) -> tuple[Similarity, Similarity]:
    """Multiply each score by a prior, the query's share in the candidate's softmax over all queries.

    For text to video this is `S * softmax(S / temperature, over the N captions)`, for video to text
    `S * softmax(S / temperature, over the V videos)`. From "Improving Video-Text Retrieval by Multi-Stream Corpus
    Alignment and Dual Softmax Loss" (CAMoE; Cheng et al., 2021, arXiv 2109.04290), applied at test time.

    Args:
        similarity: scores S of captions with videos.
        n_captions: N, all queries of the split; the result depends on every one of them.
        n_videos: V.
        temperature: above 0, in the unit of S; 1 if S already includes CLIP's temperature.
        block: number of captions, or videos, handled at once to sum up the softmaxes.

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
    """Lower the text-to-video scores of videos that attract every query ("hubs").

    The dynamic inverted softmax of "Cross Modal Retrieval with Querybank Normalisation" (Bogolin et al., CVPR 2022,
    arXiv 2112.12777): a video is activated if it is the best one for some caption of the bank. A query whose best video
    is activated gets `exp(beta S[v]) / sum over b of exp(beta B[b,v])`; any other query keeps its scores S. If several
    videos are equally good, the first counts as the best one.

    Args:
        similarity: scores S of captions with videos.
        bank_similarity: scores B of the bank's captions with videos.
        n_bank: Q.
        n_videos: V.
        beta: inverse temperature: `QB_NORM_BETA` divided by the factor on cosines in S.
        block: number of bank captions handled at once.

    Returns:
        The scores to rank, which must be asked for all V videos at once. Normalised scores are returned as their
        logarithm, which has the same order.
    """
    parts, best = [], []
    for captions in blocks(n_bank, block):
        scores = bank_similarity(captions, np.arange(n_videos)).double()
        parts.append((beta * scores).logsumexp(dim=0))
        best.append(scores.argmax(dim=1))
    over_bank = torch.stack(parts).logsumexp(dim=0)  # [V]
    activated = torch.cat(best).unique()

    def text_to_video(captions: np.ndarray, videos: np.ndarray) -> torch.Tensor:
        assert len(videos) == n_videos, "finding a query's best video needs the scores of all videos"
        scores = similarity(captions, videos).double()
        is_activated = torch.isin(scores.argmax(dim=1, keepdim=True), activated)  # [n,1]
        return torch.where(is_activated, beta * scores - over_bank[videos], scores)

    return text_to_video
