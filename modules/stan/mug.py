"""Mug, the similarity of Mug-STAN (Liu et al., arXiv 2311.15075; github.com/farewellthree/STAN): each word of a caption
is compared with each frame of a clip.

With the words e_l and the frames u_t of one pair, all of length 1:

    S_lt = <e_l, u_t>
    p_l  = Σ_t softmax_t(γ S_lt) S_lt                    how well the clip shows the word
    q_t  = Σ_l softmax_l(γ S_lt) S_lt                    how well the caption tells the frame
    α    = softmax_l(γ p_l),  β = softmax_t(γ q_t)

    simple      sim = (Σ_l α_l p_l + Σ_t β_t q_t) / 2
    full        sim = <Σ_l α_l e_l, Σ_t β_t u_t> = Σ_lt α_l S_lt β_t
    frame_text  simple with one word, END: Σ_t softmax_t(γ S_t) S_t
    wti         sim = (Σ_l a_l max_t S_lt + Σ_t b_t max_l S_lt) / 2,  a and b learned (`WeightedInteraction`)

The original's full mode computes p and q from features that it aggregates for each pair. The dot product is linear, so
they are the p and q above, and no tensor of pairs has the width of an embedding. wti is the weighted token-wise
interaction of DRL (Wang et al., arXiv 2203.07111).

Only real words and real frames count, by their masks. In the original, padding has two effects, which `padding` =
"released" brings back: in `full` the padding words get a share of α, with their own p; in `wti` the maximum over the
words of a caption with padding is at least 0.

All is computed in fp32, without autocast.

Shapes: A captions, B clips, L words, T frames, N rows of S tokens (words or frames), E joint embedding.
"""

import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from modules.frame_rows import FrameRows
from modules.precision import without_autocast
from modules.rows import Rows, map_rows

Mug = Literal["simple", "full", "frame_text", "wti"]
Padding = Literal["masked", "released"]

# Values of S at once without gradient. On a CPU a tile and its few intermediates stay in the cache: a tile of 2^20
# values takes three times as long per value.
AT_ONCE, AT_ONCE_ON_GPU = 2**17, 2**24
AT_ONCE_IN_TRAINING = 2**24  # values of S; more are computed in blocks, again in backward
NOTHING = (
    -60.0
)  # e^-60 beside 1 is nothing in fp32; smaller powers become subnormal numbers, which take ten times as long
ALIGNED = 64  # values of a vectorised sum over words


class WordRows(NamedTuple):
    """The embeddings of the words of N captions, START and END among them, as rows (`modules.rows`).

    `words` is float `[N,L,E]`, not normalised. `word_mask` is bool `[N,L]`, true from START to END.
    """

    words: Tensor
    word_mask: Tensor


class Tokens(NamedTuple):
    """N rows of S words or frames that are prepared for scoring.

    `unit` is fp32 `[N,S,E]`, of length 1, and zero at padding unless padding is to count. `mask` is bool `[N,S]`, at
    least one of each row is true. `weights` is fp32 `[N,S]`, the shares of `wti`, or `[N,0]`.
    """

    unit: Tensor
    mask: Tensor
    weights: Tensor


def words_until_end(end: Tensor, length: int) -> Tensor:
    """Return the mask of the words up to END, whose places are int64 `[N]`: bool `[N,L]`."""
    return torch.arange(length, device=end.device) <= end.unsqueeze(-1)


def end_words(rows: WordRows) -> WordRows:
    """Return captions of their last real word alone, END: `[N,1,E]`."""
    last = rows.word_mask.sum(dim=1) - 1
    words = rows.words[torch.arange(len(last), device=last.device), last].unsqueeze(1)
    return WordRows(words, torch.ones_like(rows.word_mask[:, :1]))


def prepare_tokens(rows: WordRows | FrameRows, padding: Padding = "masked") -> Tokens:
    """Return x / max(|x|, 1e-6) of every word or frame. `padding` "released" keeps what padding words hold."""
    tokens, mask = rows
    with without_autocast(tokens.device.type):
        tokens = tokens.float()
        if padding == "masked" or isinstance(rows, FrameRows):
            tokens = tokens.masked_fill(~mask.unsqueeze(-1), 0)
        return Tokens(F.normalize(tokens, dim=-1, eps=1e-6), mask, tokens.new_empty(len(mask), 0))


class WeightedInteraction(nn.Module):
    """The weights of `wti`: a = softmax_l(w·E_l + c) of the words, b of the frames; E_l is not normalised.

    Each side has a linear layer with a bias, P -> 1. The bias changes no softmax, so it cannot learn.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.text_weight_fc, self.video_weight_fc = nn.Linear(width, 1), nn.Linear(width, 1)

    def forward(self, rows: WordRows | FrameRows) -> Tokens:
        """Return prepared tokens with their weights."""
        prepared = prepare_tokens(rows)
        layer = self.video_weight_fc if isinstance(rows, FrameRows) else self.text_weight_fc
        with without_autocast(prepared.unit.device.type):
            tokens = rows[0].float().masked_fill(~rows[1].unsqueeze(-1), 0)
            logits = layer(tokens).squeeze(-1).masked_fill(~rows[1], -math.inf)
            return prepared._replace(weights=logits.softmax(dim=-1))


def mug_similarity(
    text: Tokens,
    video: Tokens,
    mug: Mug = "simple",
    gamma: float = 100.0,
    padding: Padding = "masked",
    at_once: int | None = None,
) -> Tensor:
    """Score every caption with every clip: fp32 `[A,B]`, within -1 and 1.

    A tile of captions and clips is computed at a time. Without gradient all tiles have one shape, which depends on L,
    T and `at_once` alone. So a score does not depend on the captions and clips that are scored together. With gradient
    there is one tile, or if it were too large, several that backward computes again.

    Args:
        text: of `prepare_tokens`, for `frame_text` after `end_words`; of a `WeightedInteraction` for `wti`.
        video: the same of B clips.
        gamma: γ, which multiplies scores inside the softmaxes. It is not the temperature of the loss.
        padding: see the module's docstring.
        at_once: the most values of S at a time, a tile of one caption and a few clips is the least; by default what
            suits the device.
    """
    score: Callable[[Tokens, Tokens], Tensor] = partial(
        {"full": _full, "wti": _wti}.get(mug, _simple), gamma=gamma, released=padding == "released"
    )
    words, frames = text.mask.shape[1], video.mask.shape[1]
    with without_autocast(text.unit.device.type):
        if not torch.is_grad_enabled():
            default = AT_ONCE if text.unit.device.type == "cpu" else AT_ONCE_ON_GPU
            return _in_equal_tiles(score, text, video, _tile(words, frames, at_once or default))
        at_once = at_once or AT_ONCE_IN_TRAINING
        if text.mask.numel() * video.mask.numel() <= at_once:
            return score(text, video)
        rows, columns = _tile(words, frames, at_once, aligned=1)
        again = partial(checkpoint, score, use_reentrant=False, preserve_rng_state=False)
        return torch.cat(
            [torch.cat([again(part, clips) for clips in _split(video, columns)], dim=1) for part in _split(text, rows)]
        )


# ---- the scores of one tile -----------------------------------------------------------------------------------------


def _products(text: Tensor, video: Tensor) -> Tensor:
    """Return S of all pairs: `[A,L,E]`, `[B,T,E]` -> `[A,L,B,T]`."""
    return (text.flatten(0, 1) @ video.flatten(0, 1).T).view(*text.shape[:2], *video.shape[:2])


def _shares(scores: Tensor, real: Tensor, gamma: float, dim: int) -> tuple[Tensor, Tensor]:
    """Return the numerators of softmax(γ scores) over the real places of a dimension, and their sum, which is left out.

    On a CPU, torch's softmax takes five times as long as these operations, and `masked_fill` as long as the sum of a
    score and a mask five times.
    """
    scores = scores + _minus_infinity(real)
    exponents = (scores - scores.detach().amax(dim, keepdim=True)).mul_(gamma)
    numerators = exponents.clamp_(min=NOTHING).exp_()
    return numerators, numerators.sum(dim)


def _minus_infinity(real: Tensor) -> Tensor:
    """Return 0 where a mask is true and minus infinity elsewhere."""
    return torch.zeros(real.shape, device=real.device).masked_fill_(~real, -math.inf)


def _attended(scores: Tensor, real: Tensor, gamma: float, dim: int) -> Tensor:
    """Return Σ softmax(γ scores) scores over the real places of a dimension."""
    shares, total = _shares(scores, real, gamma, dim)
    return (shares * scores).sum(dim) / total


def _both_sides(text: Tokens, video: Tokens, s: Tensor, gamma: float) -> tuple[Tensor, Tensor]:
    """Return p, `[A,B,L]`, and q, `[A,B,T]`, of S `[A,L,B,T]`."""
    p = _attended(s, video.mask, gamma, dim=3).transpose(1, 2).contiguous()
    return p, _attended(s, text.mask[:, :, None, None], gamma, dim=1)


def _simple(text: Tokens, video: Tokens, gamma: float, released: bool) -> Tensor:
    p, q = _both_sides(text, video, _products(text.unit, video.unit), gamma)
    return (_attended(p, text.mask[:, None], gamma, dim=2) + _attended(q, video.mask, gamma, dim=2)) / 2


def _full(text: Tokens, video: Tokens, gamma: float, released: bool) -> Tensor:
    s = _products(text.unit, video.unit)
    p, q = _both_sides(text, video, s, gamma)
    counted = text.mask[:, None]
    if released:  # the original masks S before its softmax over frames, so a padding word attends to all frames alike
        over_frames = s.masked_fill(~video.mask, 0).sum(dim=3).transpose(1, 2) / video.mask.sum(dim=1)[:, None]
        p, counted = torch.where(counted, p, over_frames), torch.ones_like(counted)
    alpha, over_words = _shares(p, counted, gamma, dim=2)
    beta, over_frames = _shares(q, video.mask, gamma, dim=2)
    towards_video = (s * beta.unsqueeze(1)).sum(dim=3).transpose(1, 2).contiguous()  # [A,B,L]
    return (alpha * towards_video).sum(dim=2) / (over_words * over_frames)


def _wti(text: Tokens, video: Tokens, gamma: float, released: bool) -> Tensor:
    s = _products(text.unit, video.unit)
    # A padding frame has weight 0, and so has a padding word.
    over_frames = (s + _minus_infinity(video.mask)).amax(dim=3).transpose(1, 2).contiguous()  # [A,B,L]
    over_words = (s + _minus_infinity(text.mask)[:, :, None, None]).amax(dim=1)  # [A,B,T]
    if released:  # with padding the original's maximum over words is at least 0
        over_words = torch.where(text.mask.all(dim=1)[:, None, None], over_words, over_words.clamp(min=0))
    return ((over_frames * text.weights[:, None]).sum(dim=2) + (over_words * video.weights).sum(dim=2)) / 2


# ---- tiles ----------------------------------------------------------------------------------------------------------


def _tile(words: int, frames: int, at_once: int, aligned: int = ALIGNED) -> tuple[int, int]:
    """Return how many captions and clips a tile has: about as many words as frames.

    The frames of its clips fill vectors of `aligned` values. Else a vectorised sum over words adds those of the last
    frames in another order, and a score depends on the place in the tile.
    """
    least = aligned // math.gcd(aligned, frames)
    captions = max(1, min(round(math.sqrt(at_once) / words), at_once // (words * frames * least)))
    return captions, max(1, at_once // (captions * words * frames * least)) * least


def _split(rows: Tokens, size: int) -> Iterator[Tokens]:
    return (Tokens(*parts) for parts in zip(*(tensor.split(size) for tensor in rows), strict=True))


def _in_equal_tiles(
    score: Callable[[Tokens, Tokens], Tensor], text: Tokens, video: Tokens, tile: tuple[int, int]
) -> Tensor:
    """Return all scores; the last tiles are filled up with rows of zeros, whose scores are dropped."""
    captions, clips = tile
    scores = text.unit.new_empty(len(text.mask), len(video.mask))
    columns = [_filled(part, clips) for part in _split(video, clips)]
    for row, part in enumerate(_split(text, captions)):
        words = _filled(part, captions)
        for column, frames in enumerate(columns):
            place = scores[row * captions : (row + 1) * captions, column * clips : (column + 1) * clips]
            place.copy_(score(words, frames)[: place.shape[0], : place.shape[1]])
    return scores


def _filled(rows: Tokens, size: int) -> Tokens:
    lacking = size - len(rows.mask)
    if not lacking:
        return rows
    filled: Rows = map_rows(lambda t: torch.cat([t, t.new_zeros(lacking, *t.shape[1:])]), rows)
    assert isinstance(filled, Tokens)
    filled.mask[-lacking:] = True
    return filled
