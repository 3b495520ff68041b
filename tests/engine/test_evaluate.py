"""Evaluation of a split by one process or several, from video files and captions to metrics."""

import functools
from pathlib import Path

import pytest
import torch

from dataloaders.datasets import GalleryVideos, QueryCaptions
from dataloaders.frames import FrameReader
from dataloaders.samples import Sample
from engine.config import Config
from engine.distributed import Process, process_group
from engine.tasks.retrieval import Retrieval, RetrievalSettings, RetrievalSplit
from modules.methods import Method, build_method
from modules.tokenizer import Tokenizer
from tests.processes import run_as_group
from tests.small_data import SmallData
from tests.tiny import TINY, tiny_clip

Metrics = dict[str, dict[str, float]]
ALONE = Process(0, 1, torch.device("cpu"))


def samples_of(small_data: SmallData, number: int) -> list[Sample]:
    """Return the first `number` videos; every second one has two captions."""
    return [
        Sample(
            f"video{i}", small_data.videos / f"video{i}.mp4", (f"film {i} is here", f"the {i}th of all")[: 1 + i % 2]
        )
        for i in range(number)
    ]


def a_method() -> Method:
    return build_method("clip4clip", tiny_clip())


@functools.cache
def tokenizer() -> Tokenizer:
    return Tokenizer(12)


def metrics_of(
    samples: list[Sample], process: Process = ALONE, method: Method | None = None, batch_size: int = 2, workers: int = 0
) -> Metrics:
    """Return the metrics of a split, with dual softmax and a query bank of its own captions."""
    settings = {"describe": True, "precision": "fp32", "batch_size_val": batch_size, "num_thread_reader": workers}
    config = Config.from_flat(settings | {"dsl": True, "qb_norm": True, "max_words": 12}, RetrievalSettings)
    task = Retrieval(config, method or a_method(), process)
    captions = QueryCaptions(samples, tokenizer())
    task.querybank = captions
    return task.evaluate(RetrievalSplit(GalleryVideos(samples, FrameReader(3, TINY.image_size)), captions), final=True)


def save_metrics(samples: list[Sample], folder: Path) -> None:
    with process_group() as process:
        torch.save(metrics_of(samples, process), folder / f"{process.rank}.pt")


def save_error(samples: list[Sample], folder: Path) -> None:
    with process_group() as process, pytest.raises(ValueError) as caught:  # noqa: PT011
        metrics_of(samples, process)
    (folder / f"{process.rank}.txt").write_text(str(caught.value))


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("number", [7, 2], ids=["seven videos", "fewer videos than processes"])
def test_any_number_of_processes_gives_the_same_metrics(small_data, tmp_path, number, world_size):
    """Check seven videos, which neither 2 nor 3 divides, and two videos, of which the third process gets none."""
    samples = samples_of(small_data, number)
    expected = metrics_of(samples)
    assert expected["text_to_video"]["MnR"] > 1
    run_as_group(world_size, save_metrics, samples, tmp_path)
    for rank in range(world_size):
        assert torch.load(tmp_path / f"{rank}.pt") == expected, rank


@pytest.mark.parametrize("batch_size", [1, 3, 16])
@pytest.mark.parametrize("workers", [0, 1])
def test_batches_and_workers_change_nothing(small_data, batch_size, workers):
    samples = samples_of(small_data, 7)
    assert metrics_of(samples, batch_size=batch_size, workers=workers) == metrics_of(samples)


def test_a_broken_video_on_one_process_stops_all_with_its_sentence(small_data, tmp_path):
    samples = samples_of(small_data, 4)
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"this is no video")
    samples[2] = Sample("broken", broken, ("nothing",))
    with pytest.raises(ValueError, match=r"broken\.mp4") as alone:
        metrics_of(samples)
    run_as_group(3, save_error, samples, tmp_path)
    assert {path.read_text() for path in tmp_path.glob("*.txt")} == {str(alone.value)}
    assert len(list(tmp_path.glob("*.txt"))) == 3


@pytest.mark.parametrize("training", [True, False])
def test_the_method_gets_its_mode_back_and_encodes_without_gradients(small_data, training):
    method, modes = a_method().train(training), []

    def note_mode(*_) -> None:
        modes.append((method.training, torch.is_grad_enabled()))

    for module in method.modules():
        module.register_forward_hook(note_mode)
    metrics_of(samples_of(small_data, 2), method=method)
    assert set(modes) == {(False, False)}
    assert all(module.training == training for module in method.modules())


@pytest.mark.parametrize("weight", ["visual.proj", "text.text_projection"])
def test_features_that_are_nan_are_refused(small_data, weight):
    """Check that the result is an error of one sentence, not ranks."""
    method = a_method()
    with torch.no_grad():
        method.clip.get_parameter(weight)[0, 0] = torch.nan
    with pytest.raises(ValueError, match="NaN or infinite similarity"):
        metrics_of(samples_of(small_data, 3), method=method)
