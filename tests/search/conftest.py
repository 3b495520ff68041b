"""A trained model, and the folder that tests index."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest

from main_task_retrieval import main as train
from search.model import Encoder, Source, load_encoder
from tests.small_data import SmallData

TEST_VIDEOS = range(10, 17)  # of `small_data`


@dataclass(frozen=True)
class Trained:
    """A checkpoint, trained for an epoch on `small_data`, and the numbers of its evaluation on the test videos."""

    checkpoint: Path
    metrics: dict[str, float]


@pytest.fixture(scope="session")
def trained(small_data: SmallData, tmp_path_factory) -> Trained:
    run = tmp_path_factory.mktemp("trained")
    flags = ["--epochs", "1", "--batch_size", "5", "--lr", "0.01", "--output_dir", str(run)]
    assert train(["--do_train", "--method", "vpt", *small_data.flags(), *flags]) == 0
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return Trained(run / "last.safetensors", next(line for line in lines if "t2v R@1" in line))


@pytest.fixture(scope="session")
def encoder(trained: Trained) -> Encoder:
    return load_encoder(Source(str(trained.checkpoint)), probe=False)


@pytest.fixture
def videos(small_data: SmallData, tmp_path: Path) -> Path:
    """A folder of its own with the test videos, one of them a folder below."""
    folder = tmp_path / "videos"
    (folder / "below").mkdir(parents=True)
    for number in TEST_VIDEOS:
        below = folder / "below" if number == TEST_VIDEOS[0] else folder
        shutil.copy2(small_data.videos / f"video{number}.mp4", below)
    return folder
