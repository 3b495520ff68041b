"""From settings to the samples of a data set and the reader of its frames."""

from pathlib import Path

from dataloaders import DATASETS
from dataloaders.cache import FrameCache
from dataloaders.samples import FrameReader, Sample
from engine.config import DataConfig, RunConfig


def list_split(data: DataConfig, split: str) -> list[Sample]:
    """The samples of a split as its files list them, whether or not their videos are there."""
    return DATASETS[data.datatype](
        split,
        data_path=Path(data.data_path),
        features_path=Path(data.features_path),
        train_csv=Path(data.train_csv),
        val_csv=Path(data.val_csv),
    )


def frame_reader(data: DataConfig, image_size: int, training: bool, cache: FrameCache | None = None) -> FrameReader:
    """What reads the videos, for a CLIP whose images have `image_size` pixels a side."""
    return FrameReader(
        data.max_frames,
        image_size,
        data.frame_sampling,
        data.feature_framerate,
        data.slice_framepos,
        training,
        data.frame_transform,
        cache,
    )


def frame_cache(data: DataConfig, run: RunConfig) -> FrameCache | None:
    """The cache that a run's settings name, if they name one."""
    if not run.frame_cache:
        return None
    return FrameCache(Path(run.frame_cache), run.frame_cache_format, Path(data.features_path))
