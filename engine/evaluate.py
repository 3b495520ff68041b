"""Evaluation: every process encodes its share, features are put together by id, ranks are counted block by block.

Shapes: N captions, V videos, E joint embedding.
"""

from collections.abc import Callable

import numpy as np
import torch
from tqdm import tqdm

from dataloaders.samples import GalleryVideos, QueryCaptions, make_evaluation_loader
from dataloaders.transforms import normalise
from engine.distributed import Process, gather_by_id
from engine.metrics import retrieval_metrics, twin_accuracy
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
    twin_of: np.ndarray | None = None,
) -> dict[str, dict[str, float]]:
    """Text-to-video and video-to-text retrieval over a whole split; the same numbers on every process.

    Each video is decoded and encoded once, by one process, however many captions it has.

    Args:
        autocast: makes the context the encoders run in.
        batch_size: clips or captions at once.
        num_workers: decoding processes.
        twin_of: int64 `[V]`, each video's time-reversed twin or -1, if the split has such pairs.

    Returns:
        What `engine.metrics.retrieval_metrics` gives; with twins, "twins" among the text-to-video numbers.
    """
    was_training = method.training
    method.eval()

    def share_of(dataset: GalleryVideos | QueryCaptions, name: str, workers: int) -> tqdm:
        share = range(process.rank, len(dataset), process.world_size)
        loader = make_evaluation_loader(dataset, batch_size, share, workers)
        return tqdm(loader, desc=name, disable=not process.is_main, leave=False, dynamic_ncols=True)

    def encode(batches: tqdm, encoder: Callable[[dict], torch.Tensor], total: int) -> torch.Tensor:
        rows, ids = [], []
        for batch in batches:
            with autocast():
                rows.append(encoder(batch).float().cpu())
            ids.append(batch["index"])
        return gather_by_id(rows, ids, total).to(process.device)

    video_features = encode(
        share_of(videos, "videos", num_workers),
        lambda batch: method.encode_video(
            normalise(batch["video"].to(process.device)), batch["frame_mask"].to(process.device)
        ),
        len(videos),
    )
    text_features = encode(
        share_of(captions, "captions", 0),  # tokenising is too quick to start processes for
        lambda batch: method.encode_text(batch["token_ids"].to(process.device)),
        len(captions),
    )
    method.train(was_training)

    def similarity(caption_ids: np.ndarray, video_ids: np.ndarray) -> torch.Tensor:
        return method.similarity(text_features[caption_ids], video_features[video_ids])

    metrics = retrieval_metrics(similarity, captions.video_index, len(videos))
    if twin_of is not None:
        metrics["text_to_video"]["twins"] = twin_accuracy(similarity, captions.video_index, twin_of)
    return metrics


def format_metrics(metrics: dict[str, dict[str, float]]) -> str:
    """Two lines for a log."""
    return "\n".join(
        f"  {direction.replace('_', '-'):>13}:  " + "  ".join(f"{name} {value:.1f}" for name, value in values.items())
        for direction, values in metrics.items()
    )


def flat_metrics(metrics: dict[str, dict[str, float]]) -> dict[str, float]:
    """One level of names, "t2v R@1" and so on, rounded for files."""
    short = {"text_to_video": "t2v", "video_to_text": "v2t"}
    return {f"{short[way]} {name}": round(x, 3) for way, values in metrics.items() for name, x in values.items()}
