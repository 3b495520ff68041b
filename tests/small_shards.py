"""Write small shards of clips, byte by byte the same each time."""

import hashlib
import io
import json
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import cv2
import numpy as np

from dataloaders.shard_index import Shard, ShardIndex, write_index
from tests.small_data import SmallData

Members = Mapping[str, bytes]  # by extension


def clips_of(small_data: SmallData, repeats: int = 1) -> list[tuple[str, Members]]:
    """Return the training clips of the small data as samples of shards, each `repeats` times under another name."""
    sentences = json.loads((small_data.folder / "MSRVTT_data.json").read_text())["sentences"]
    ids = (small_data.folder / "MSRVTT_train.9k.csv").read_text().split()[1:]
    samples: list[tuple[str, Members]] = []
    for number in range(repeats):
        for video_id in ids:
            texts = [f"{s['caption']} take {number}" for s in sentences if s["video_id"] == video_id]
            facts = {"video_id": f"{video_id}_{number}", "captions": texts, "fps": 3.0}
            clip = (small_data.videos / f"{video_id}.mp4").read_bytes()
            samples.append((f"{video_id}_{number}", {"mp4": clip, "json": json.dumps(facts).encode()}))
    return samples


def jpegs(frames: np.ndarray) -> dict[str, bytes]:
    """Return frames uint8 [T, H, W, 3] RGB as members "000.jpg", "001.jpg", ... of a sample."""
    coded = [cv2.imencode(".jpg", frame[:, :, ::-1], [cv2.IMWRITE_JPEG_QUALITY, 95])[1] for frame in frames]
    return {f"{number:03d}.jpg": code.tobytes() for number, code in enumerate(coded)}


def write_shards(folder: Path, samples: Sequence[tuple[str, Members]], sizes: Sequence[int]) -> ShardIndex:
    """Write shards of these sizes, and their index; the samples are taken in their order."""
    folder.mkdir(parents=True)
    left, shards = iter(samples), []
    for number, size in enumerate(sizes):
        path = folder / f"{number:06d}.tar"
        with tarfile.open(path, "w") as tar:
            for _ in range(size):
                key, members = next(left)
                for extension, content in members.items():
                    info = tarfile.TarInfo(f"{key}.{extension}")
                    info.size = len(content)
                    tar.addfile(info, io.BytesIO(content))
        content = path.read_bytes()
        shards.append(Shard(path.name, size, len(content), hashlib.sha256(content).hexdigest()))
    index = ShardIndex(tuple(shards))
    write_index(folder, index)
    return index
