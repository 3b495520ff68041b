"""Made embeddings of windows, texts and clips, with the geometry of a CLIP that was trained on video.

Windows and texts lie in two cones, so that texts are outside the cloud of windows, as they are in every model with two
towers (Liang et al., NeurIPS 2022, arXiv 2203.02053). Mean cosines: 0.45 between windows of two videos, 0.78 between
windows of one, 0.14 between a text and any window, 0.37 between a text and its own. The variance of windows within
their cone falls as k^-0.9 with the dimension k.

Shapes: N windows, Q queries of a kind, E joint embedding.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

WINDOWS_OF_A_VIDEO = 20
BLOCK = 50_000  # windows made at a time, a multiple of those of a video

BETWEEN_VIDEOS = 0.45
WITHIN_A_VIDEO = 0.78
TEXT_TO_ANY = 0.14
TEXT_TO_OWN = 0.37
BETWEEN_TEXTS = 0.45


@dataclass(frozen=True)
class MadeWorld:
    """Vectors of unit length: float16 `[N,E]` windows; float32 `[Q,E]` texts, and clips that are further windows of a
    stored video; int64 `[Q]` rows of the windows that the texts describe."""

    vectors: NDArray[np.float16]
    texts: NDArray[np.float32]
    clips: NDArray[np.float32]
    own: NDArray[np.int64]


def make_world(count: int, size: int, queries: int, seed: int = 0) -> MadeWorld:
    """Return N = `count` windows of E = `size`, and `queries` texts and clips.

    With the mean of the windows' cone as first axis and that of the texts' cone as last one, a window is
    √c m + √(1 - c) u, where u has unit length and is the sum of a part of the video and a part of the window.
    """
    random = np.random.default_rng(seed)
    own = np.linspace(0, count - 1, queries).round().astype(np.int64)
    shared = (WITHIN_A_VIDEO - BETWEEN_VIDEOS) / (1 - BETWEEN_VIDEOS)
    deviations = np.zeros(size, np.float32)
    deviations[1:-1] = np.arange(1, size - 1, dtype=np.float32) ** -0.45

    def draw(rows: int) -> NDArray[np.float32]:
        return _unit(random.standard_normal((rows, size), np.float32) * deviations)

    def window(of_video: NDArray[np.float32]) -> NDArray[np.float32]:
        return _unit(np.sqrt(shared) * of_video + np.sqrt(1 - shared) * draw(len(of_video)))

    def in_cone(u: NDArray[np.float32]) -> NDArray[np.float32]:
        placed = np.sqrt(1 - BETWEEN_VIDEOS) * u
        placed[:, 0] += np.sqrt(BETWEEN_VIDEOS)
        return placed.astype(np.float32)

    vectors = np.empty((count, size), np.float16)
    described, clips = (np.empty((queries, size), np.float32) for _ in range(2))
    for first in range(0, count, BLOCK):
        here = min(BLOCK, count - first)
        of_video = np.repeat(draw(-(-here // WINDOWS_OF_A_VIDEO)), WINDOWS_OF_A_VIDEO, axis=0)[:here]
        u = window(of_video)
        vectors[first : first + here] = in_cone(u)
        chosen = (own >= first) & (own < first + here)
        described[chosen] = u[own[chosen] - first]
        clips[chosen] = in_cone(window(of_video[own[chosen] - first]))
    mean = TEXT_TO_ANY / np.sqrt(BETWEEN_VIDEOS)
    match = (TEXT_TO_OWN - TEXT_TO_ANY) / np.sqrt(1 - BETWEEN_VIDEOS)
    texts = match * described
    texts[:, 0] += mean
    texts[:, -1] += np.sqrt(BETWEEN_TEXTS - mean**2)
    texts += np.sqrt(1 - BETWEEN_TEXTS - match**2) * _unit(random.standard_normal((queries, size), np.float32))
    return MadeWorld(vectors, _unit(texts), clips, own)


def _unit(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
