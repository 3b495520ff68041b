"""Evaluation: every process encodes its share, features are put together by id, ranks are counted block by block.

Shapes: N captions, V videos, E joint embedding.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from tqdm import tqdm

from dataloaders.datasets import GalleryVideos, QueryCaptions, make_evaluation_loader
from engine.data import normalise_for
from engine.distributed import Process, gather_by_id
from engine.errors import explained
from engine.metrics import Similarity, retrieval_metrics, text_to_video_metrics, twin_accuracy, video_to_text_metrics
from engine.postprocessing import QB_NORM_BETA, dual_softmax, qb_norm
from modules.methods import Method


@torch.no_grad()
def evaluate(
    method: Method,
    videos: GalleryVideos,
    captions: QueryCaptions,
    process: Process,
    autocast: Callable[[], torch.autocast],
    batch_size: int,
    num_workers: int,
    prefetch_factor: int,
    twin_of: np.ndarray | None = None,
    dsl_temperature: float | None = None,
    querybank: QueryCaptions | None = None,
) -> dict[str, dict[str, float]]:
    """Text-to-video and video-to-text retrieval over a whole split; the same numbers on every process.

    Each video is decoded and encoded once, by one process, however many captions it has.

    Args:
        autocast: makes the context the encoders run in.
        batch_size: clips or captions at once.
        num_workers: decoding processes.
        prefetch_factor: batches that each of them prepares ahead.
        twin_of: int64 `[V]`, each video's time-reversed twin or -1, if the split has such pairs.
        dsl_temperature: for numbers with dual softmax beside the plain ones; of the method's logits.
        querybank: captions of the training split, for text-to-video numbers with QB-Norm beside the plain ones.

    Returns:
        What `engine.metrics.retrieval_metrics` gives; with twins, "twins" among the text-to-video numbers; those of a
        post-processing under directions of their own, "text_to_video (DSL)" and so on.
    """
    was_training = method.training
    method.eval()

    def on_device(tensor: torch.Tensor) -> torch.Tensor:
        return tensor.to(process.device, non_blocking=True)

    def share_of(dataset: GalleryVideos | QueryCaptions, name: str, workers: int) -> tqdm:
        share = range(process.rank, len(dataset), process.world_size)
        pin_memory = process.device.type == "cuda"
        loader = make_evaluation_loader(dataset, batch_size, share, workers, pin_memory, prefetch_factor)
        return tqdm(loader, desc=name, disable=not process.is_main, leave=False, dynamic_ncols=True)

    def encode(batches: tqdm, encoder: Callable[[dict], torch.Tensor], total: int) -> torch.Tensor:
        rows, ids, error = [], [], None
        try:
            for batch in batches:
                with autocast():
                    rows.append(encoder(batch).float().cpu())
                ids.append(batch["index"])
        except Exception as caught:  # the others shall not wait for this process
            error = explained(caught) or caught
        process.fail_together(error)
        return gather_by_id(rows, ids, total).to(process.device)

    video_features = encode(
        share_of(videos, "videos", num_workers),
        lambda batch: method.encode_video(
            normalise_for(method.clip, on_device(batch["video"])), on_device(batch["frame_mask"])
        ),
        len(videos),
    )

    def encode_captions(dataset: QueryCaptions, name: str) -> torch.Tensor:
        batches = share_of(dataset, name, 0)  # tokenising is too quick to start processes for
        return encode(batches, lambda batch: method.encode_text(on_device(batch["token_ids"])), len(dataset))

    text_features = encode_captions(captions, "captions")
    bank_features = encode_captions(querybank, "query bank") if querybank else None
    method.train(was_training)

    def similarity(caption_ids: np.ndarray, video_ids: np.ndarray) -> torch.Tensor:
        return method.similarity(text_features[caption_ids], video_features[video_ids])

    bank = None
    if bank_features is not None:

        def bank_similarity(bank_ids: np.ndarray, video_ids: np.ndarray) -> torch.Tensor:
            return method.similarity(bank_features[bank_ids], video_features[video_ids])

        bank = QueryBank(bank_similarity, len(bank_features), QB_NORM_BETA / float(method.clip.logit_scale.exp()))
    return all_metrics(similarity, captions.video_index, len(videos), twin_of, dsl_temperature, bank)


@dataclass(frozen=True)
class QueryBank:
    """What QB-Norm needs: scores of its captions with videos, how many captions there are, and beta."""

    similarity: Similarity
    size: int
    beta: float


def all_metrics(
    similarity: Similarity,
    owner: np.ndarray,
    n_videos: int,
    twin_of: np.ndarray | None = None,
    dsl_temperature: float | None = None,
    bank: QueryBank | None = None,
) -> dict[str, dict[str, float]]:
    """What `evaluate` gives, from scores of captions with videos; `owner`, int64 `[N]`, is each caption's video."""
    metrics = retrieval_metrics(similarity, owner, n_videos)
    if twin_of is not None:
        metrics["text_to_video"]["twins"] = twin_accuracy(similarity, owner, twin_of)
    if dsl_temperature is not None:
        for_captions, for_videos = dual_softmax(similarity, len(owner), n_videos, dsl_temperature)
        metrics["text_to_video (DSL)"] = text_to_video_metrics(for_captions, owner, n_videos)
        metrics["video_to_text (DSL)"] = video_to_text_metrics(for_videos, owner, n_videos)
    if bank is not None:
        normalised = qb_norm(similarity, bank.similarity, bank.size, n_videos, bank.beta)
        metrics["text_to_video (QB-Norm)"] = text_to_video_metrics(normalised, owner, n_videos)
    return metrics


def format_metrics(metrics: dict[str, dict[str, float]]) -> str:
    """A line for each direction, for a log."""
    width = max(map(len, metrics))
    lines = []
    for direction, values in metrics.items():
        numbers = "  ".join(f"{name} {value:.1f}" for name, value in values.items())
        lines.append(f"  {direction.replace('_', '-'):>{width}}:  {numbers}")
    return "\n".join(lines)


def flat_metrics(metrics: dict[str, dict[str, float]]) -> dict[str, float]:
    """One level of names, "t2v R@1", "t2v R@1 (DSL)" and so on, rounded for files."""
    short = {"text_to_video": "t2v", "video_to_text": "v2t"}
    flat: dict[str, float] = {}
    for direction, values in metrics.items():
        way, *extra = direction.split(maxsplit=1)
        flat |= {" ".join([short[way], name, *extra]): round(value, 3) for name, value in values.items()}
    return flat
