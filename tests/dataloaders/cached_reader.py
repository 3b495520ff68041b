"""Readers of small frames with a frame cache, and the files that they leave in it."""

from pathlib import Path

from dataloaders.cache import FrameCache
from dataloaders.frames import FrameReader


def reader(folder: Path | None, encoding: str = "raw", **settings) -> FrameReader:
    cache = FrameCache(folder, encoding) if folder else None
    return FrameReader(**{"max_frames": 6, "image_size": 32, "cache": cache} | settings)


def entries(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())
