"""From scores of windows to the list of hits: arithmetic of queries, joined windows, and how far a hit stands out.

Shapes: n windows of a result, best first; Q queries; N windows of the index; E joint embedding.
"""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating]

SAMPLED = 5_000  # windows that mean and deviation are taken over: the deviation is then known to one per cent
NONSENSE = 0.95  # share of texts without a meaning of which the bound says that nothing fits


def combine(queries: Floats, weights: Floats) -> NDArray[np.float32]:
    """Return the query of unit length along Σ w_i q_i / |q_i|, float32 `[E]`, of `[Q,E]` and `[Q]`.

    A negative weight leads away from a query. Raises ValueError for other shapes, for a query or weight that is not
    finite, for a query of zeros, and where the queries cancel out.
    """
    queries, weights = np.asarray(queries, np.float64), np.asarray(weights, np.float64)
    if queries.ndim != 2 or weights.shape != (len(queries),) or not len(queries):
        raise ValueError(f"{list(weights.shape)} weights do not fit queries of shape {list(queries.shape)}")
    if not (np.isfinite(queries).all() and np.isfinite(weights).all()):
        raise ValueError("a query or its weight is not finite")
    lengths = np.linalg.norm(queries, axis=1, keepdims=True)
    if not lengths.all():
        raise ValueError("the embedding of a query is zero, so it has no direction to search in")
    weights = weights / (np.abs(weights).max() or 1)  # the squares of large ones would have no finite sum
    total = weights @ (queries / lengths)
    length = np.linalg.norm(total)
    if length <= 1e-6 * np.abs(weights).sum():
        raise ValueError("the queries cancel out: change a weight, or leave one out")
    return (total / length).astype(np.float32)


def sample_gallery(vectors: Floats, most: int = SAMPLED) -> NDArray[np.float32]:
    """Return at most `most` of the vectors `[N,E]`, evenly spaced, for `above`; all of them if there are no more."""
    return vectors[sample_rows(len(vectors), most)].astype(np.float32)


def sample_rows(count: int, most: int = SAMPLED) -> NDArray[np.int64]:
    """Return at most `most` of `count` rows, evenly spaced, ascending; all of them if there are no more."""
    return np.linspace(0, count - 1, min(count, most)).round().astype(np.int64)


def above(scores: Floats, queries: Floats, gallery: Floats) -> NDArray[np.float32]:
    """Return (score - mean) / deviation, float32 `[Q,n]`, of the scores `[Q,n]` of `queries` `[Q,E]`.

    Mean and standard deviation are those of the query's own scores over `gallery` `[N,E]`. Queries of different kinds
    (texts, clips, sums) have different scores; this says of any of them how far a hit stands out. It is 0 where the
    gallery has one score only.
    """
    of_gallery = np.asarray(queries, np.float32) @ np.asarray(gallery, np.float32).T
    mean = of_gallery.mean(axis=1, keepdims=True, dtype=np.float64)
    deviation = of_gallery.std(axis=1, keepdims=True, dtype=np.float64)
    varies = deviation > 1e-6 * np.maximum(1, np.abs(mean))  # below it, what differs is rounding
    return np.where(varies, (scores - mean) / np.where(varies, deviation, 1), 0).astype(np.float32)


def stands_out(scores: Floats, windows: Floats, nonsense: Floats) -> NDArray[np.float64]:
    """Return by how many deviations each of n scores `[n]` lies above those that texts without a meaning `[Q,E]`
    (`search.recall.nonsense_texts`) get with the same window, of `windows` `[n,E]`; float64 `[n]`.

    Some windows are near to every text, whatever it says. So a score alone does not tell whether a hit fits, and
    `above`, which compares it with other windows, does not either. Figures are in docs/search.md.
    """
    of_nonsense = np.asarray(nonsense, np.float32) @ np.asarray(windows, np.float32).T
    deviation = of_nonsense.std(axis=0, dtype=np.float64)
    return (scores - of_nonsense.mean(axis=0, dtype=np.float64)) / np.maximum(deviation, 1e-6)


def bound_of_nonsense(best: Floats) -> float:
    """Return the least that the best hit of a text must stand out by (`stands_out`) if something fits well.

    `best` `[Q]` is by how much the best hits of texts without a meaning do, in the same index with the same model; the
    bound is their 95th percentile. It holds for texts alone: clips, pictures and sums score otherwise. Raises
    ValueError without any.
    """
    if not len(best):
        raise ValueError("a bound needs the scores of some texts")
    return float(np.quantile(best, NONSENSE))


def join_windows(
    files: NDArray[np.int64], starts: Floats, ends: Floats, vectors: Floats | None = None, alike: float = 1.0
) -> NDArray[np.int64]:
    """Return, for each of n windows, best first, the place of the hit that it belongs to, int64 `[n]`.

    A window belongs to the best hit of its file that it overlaps in time; with `vectors`, `[n,E]` of unit length, also
    to one whose cosine with it is at least `alike`. A window that belongs to no other is a hit: its place is its own.
    Windows that only touch do not overlap. `starts` and `ends` are `[n]` seconds.
    """
    owner = np.arange(len(files))
    hits: dict[int, list[int]] = {}
    for place, file in enumerate(files.tolist()):
        own = hits.setdefault(file, [])
        joined = (starts[own] < ends[place]) & (starts[place] < ends[own])
        if vectors is not None:
            joined |= vectors[own].astype(np.float32) @ vectors[place].astype(np.float32) >= alike
        if joined.any():
            owner[place] = own[int(joined.argmax())]
        else:
            own.append(place)
    return owner


def limit_per_file(files: NDArray[np.int64], most: int) -> NDArray[np.bool_]:
    """Return which of n hits, best first, are among the best `most` of their file, bool `[n]`."""
    seen: dict[int, int] = {}
    keep = np.zeros(len(files), bool)
    for place, file in enumerate(files.tolist()):
        seen[file] = seen.get(file, 0) + 1
        keep[place] = seen[file] <= most
    return keep


def widening(top: int, count: int) -> Iterator[int]:
    """Yield numbers of windows to ask an engine for, until `top` hits are left after joining: 8 top, 64 top, ..., N."""
    wanted = 8 * top
    while wanted < count:
        yield wanted
        wanted *= 8
    if count:
        yield count
