"""How much an approximate engine loses, for texts and for clips apart, and the effort that a target needs.

recall@k of a query is the share of the k best windows that the engine finds. A window counts as found by its score, so
that windows with equal vectors can stand for each other. Clips resemble what is stored; texts do not, and every
approximate index loses far more of theirs. So the effort is chosen on texts.

Shapes: Q queries, k results, N windows, E joint embedding.
"""

from dataclasses import dataclass
from random import Random

import numpy as np
from numpy.typing import NDArray

from search.engines.base import Approximate, Engine, Ids, Scores, Vectors

TARGET = 0.95  # recall@10 on texts
BEST = 10  # k
QUERIES = 200
ROUNDING = 1e-5  # of a score: engines add up products in different orders

SUBJECTS = (
    "a man", "a woman", "a child", "two people", "a crowd", "a dog", "a cat", "a bird", "a horse", "a car",
    "a bus", "a train", "a boat", "a bicycle", "a ball", "a hand", "a machine", "a shape", "water", "smoke",
)  # fmt: skip
ACTIONS = (
    "moves from left to right", "comes nearer", "turns around", "falls down", "stands still in a room",
    "disappears behind a wall", "speeds up on a road", "is seen from above at night", "meets another one outdoors",
    "is held up to the camera",
)  # fmt: skip


def probe_texts() -> list[str]:
    """Return 200 sentences to choose an effort on, where an index has no queries of its own."""
    return [f"{subject} {action}" for action in ACTIONS for subject in SUBJECTS]


def nonsense_texts(count: int = QUERIES) -> list[str]:
    """Return sentences of 4 to 12 words drawn from the vocabulary of CLIP's tokenizer, always the same."""
    from modules.tokenizer import Tokenizer

    words = [word for word in Tokenizer().vocabulary() if len(word) >= 3 and word.isascii() and word.isalpha()]
    draw = Random(0)
    return [" ".join(draw.choices(words, k=draw.randint(4, 12))) for _ in range(count)]


def pick_clips(ids: Ids, vectors: Vectors, most: int = QUERIES) -> tuple[Scores, Ids]:
    """Return evenly spaced windows of the index as queries float32 `[Q,E]`, and their own ids `[Q]`."""
    rows = np.linspace(0, len(ids) - 1, min(len(ids), most)).round().astype(np.int64)
    return vectors[rows].astype(np.float32), ids[rows]


def best_scores(engine: Engine, queries: Scores, k: int = BEST, own: Ids | None = None) -> Scores:
    """Return the engine's k best scores for each query, `[Q,k]`, best first; `own` `[Q]` are left out of theirs."""
    if own is None:
        return engine.search(queries, k)[0]
    scores, ids = engine.search(queries, k + 1)
    scores[ids == own[:, None]] = -np.inf
    return -np.sort(-scores, axis=1)[:, :k]


def recall_of(found: Scores, truth: Scores) -> NDArray[np.float64]:
    """Return the recall of each query, `[Q]`, from the engine's scores and those of exact search, both `[Q,k]`.

    It is 1 for a query without any window to find.
    """
    wanted = np.isfinite(truth).sum(axis=1)
    least = np.where(np.isfinite(truth), truth, np.inf).min(axis=1, keepdims=True) - ROUNDING
    right = np.minimum((found >= least).sum(axis=1), wanted)
    return np.where(wanted > 0, right / np.maximum(wanted, 1), 1.0)


@dataclass(frozen=True)
class Recall:
    """Mean recall@10 over queries of each kind, from 0 to 1, and the numbers of queries; None: there were none."""

    text: float | None
    clip: float | None
    texts: int
    clips: int


def measure_recall(engine: Engine, exact: Engine, texts: Scores, clips: Scores, own: Ids | None = None) -> Recall:
    """Compare an engine with exact search over the same windows; queries are float32 `[Q,E]`.

    `own` are ids of clips that are windows of the index: such a window does not count as found by itself.
    """

    def mean(queries: Scores, own: Ids | None = None) -> float | None:
        if not len(queries):
            return None
        return float(recall_of(best_scores(engine, queries, own=own), best_scores(exact, queries, own=own)).mean())

    return Recall(mean(texts), mean(clips, own), len(texts), len(clips))


def tune(engine: Approximate, exact: Engine, texts: Scores, target: float = TARGET) -> float:
    """Set `engine.effort` to the least whose recall@10 on texts `[Q,E]` reaches `target`; return that recall.

    Where none reaches it, the greatest effort is taken. Raises ValueError without texts, or for a target outside of 0
    to 1.
    """
    if not len(texts):
        raise ValueError("the effort is chosen on texts, and there are none")
    if not 0 < target <= 1:
        raise ValueError(f"the target recall {target} is out of range: above 0, at most 1")
    truth = best_scores(exact, texts)

    def recall(effort: int) -> float:
        engine.effort = effort
        return float(recall_of(best_scores(engine, texts), truth).mean())

    for effort in engine.efforts:
        reached = recall(effort)
        if reached >= target:
            break
    return reached
