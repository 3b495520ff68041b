"""Items and batches: what we train on depends on seed and epoch, never on workers."""

import pickle
import random
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch

from dataloaders.datasets import (
    GalleryVideos,
    Item,
    QueryCaptions,
    TrainingPairs,
    collate,
    make_evaluation_loader,
    make_training_loader,
)
from dataloaders.decode import VideoError
from dataloaders.frames import FrameReader
from dataloaders.sampler import EpochSampler
from dataloaders.samples import Sample
from tests.dataloaders.small_clips import numbers


def tokenize(text: str) -> torch.Tensor:
    """Return the number that ends the caption, between START and END, in the tokenizer's shape."""
    return torch.tensor([[49406, int(text.split()[-1]), 49407, 0]])


def test_items_follow_the_window_of_their_sample(data):
    windowed = [replace(data[0], start=1.0, end=2.0)]
    assert numbers(GalleryVideos(windowed, FrameReader(5, 32))[0]["video"]) == [5, 6, 7, 8, 9]
    frames = FrameReader(5, 32, "segment", training=True)
    assert numbers(TrainingPairs(windowed, tokenize, frames, False, 0)[0, 0]["video"]) == [5, 6, 7, 8, 9]


def training_pairs(data, *, expand_captions=True, seed=0) -> TrainingPairs:
    frames = FrameReader(max_frames=4, image_size=32, frame_sampling="segment", training=True)
    return TrainingPairs(data, tokenize, frames, expand_captions, seed)


def test_expanded_there_is_an_item_for_every_caption(data):
    pairs = training_pairs(data)
    assert len(pairs) == 10
    items = [pairs[0, index] for index in range(10)]
    assert [item["token_ids"][1].item() for item in items] == list(range(10))
    assert [item["index"] for item in items] == list(range(10))
    assert [item["video_index"] for item in items] == pairs.video_index.tolist() == [0, 0, 0, 1, 2, 2, 3, 3, 3, 4]
    assert pairs.video_index.dtype == np.int64
    assert [pairs.video_id(index) for index in range(10)] == [
        sample.video_id for sample in data for _ in sample.captions
    ]
    assert items[0]["token_ids"].dtype == torch.int64
    assert items[0]["token_ids"].shape == (4,)


def test_not_expanded_each_epoch_draws_one_of_the_video_s_captions(data):
    pairs = training_pairs(data, expand_captions=False)
    assert len(pairs) == 5
    assert pairs.video_id(3) == "video3"
    assert pairs.video_index.tolist() == list(range(5))
    for index, own in enumerate([{0, 1, 2}, {3}, {4, 5}, {6, 7, 8}, {9}]):
        assert {pairs[epoch, index]["token_ids"][1].item() for epoch in range(25)} == own


def test_an_item_is_a_function_of_seed_epoch_and_index(data):
    def drawn(seed: int, epoch: int) -> list[int]:
        pairs = training_pairs(data, expand_captions=False, seed=seed)
        items = [pairs[epoch, index] for index in range(5)]
        return [number for item in items for number in (*numbers(item["video"]), item["token_ids"][1].item())]

    assert drawn(0, 3) == drawn(0, 3)
    assert drawn(0, 3) != drawn(0, 4)
    assert drawn(0, 3) != drawn(1, 3)


def test_partners_are_the_twin_s_captions_of_the_same_number(data):
    frames = FrameReader(max_frames=4, image_size=32, frame_sampling="segment", training=True)
    # Captions of the five videos: 0 1 2, 3, 4 5, 6 7 8, 9. Video 1 has one caption and video 2 two; 4 is not twinned.
    twins = {"video0": "video3", "video3": "video0", "video1": "video2", "video2": "video1", "video4": "elsewhere"}
    expanded = TrainingPairs(data, tokenize, frames, True, 0, twins)
    assert expanded.partner.tolist() == [6, 7, 8, 4, 3, 5, 0, 1, 2, 9]
    assert TrainingPairs(data, tokenize, frames, False, 0, twins).partner.tolist() == [3, 2, 1, 0, 4]
    assert training_pairs(data).partner.tolist() == list(range(10))


class WatchedPairs(TrainingPairs):
    """TrainingPairs whose items also say whether reading them moved the process's global generators."""

    def __getitem__(self, key):
        before = global_states()
        return super().__getitem__(key) | {"moved": global_states() != before}


def global_states() -> tuple:
    name, keys, *rest = np.random.get_state()
    return random.getstate(), name, keys.tobytes(), *rest, torch.get_rng_state().numpy().tobytes()


def seed_everything(seed: int, worker: int) -> None:
    random.seed(seed + worker)
    np.random.seed(seed + worker)
    torch.manual_seed(seed + worker)


def epoch_batches(data, num_workers: int, start_method: str | None = None, seed: int | None = None, **settings):
    """Return the batches of two epochs with random captions and frames; `seed` seeds the global generators."""
    frames = FrameReader(max_frames=4, image_size=32, frame_sampling="segment", training=True)
    pairs = WatchedPairs(data, tokenize, frames, expand_captions=False, seed=0)
    sampler = EpochSampler(len(pairs), 2, rank=0, world_size=1, seed=0)
    loader = make_training_loader(pairs, sampler, num_workers, **settings)
    loader.multiprocessing_context = start_method
    if seed is not None:
        seed_everything(seed, 100)
        loader.worker_init_fn = partial(seed_everything, seed)
    batches = []
    for epoch in (0, 1):
        sampler.set_epoch(epoch)
        batches += list(loader)
    return batches


def assert_equal_batches(ours, theirs) -> None:
    for one, other in zip(ours, theirs, strict=True):
        assert one.keys() == other.keys()
        for name in one:
            assert torch.equal(one[name], other[name]), name


def test_batches_do_not_depend_on_the_number_of_workers(data):
    alone = epoch_batches(data, 0)
    assert len(alone) == 4
    for num_workers in (1, 2):
        assert_equal_batches(epoch_batches(data, num_workers, prefetch_factor=num_workers), alone)


@pytest.mark.parametrize("start_method", ["fork", "spawn"])
def test_batches_do_not_depend_on_how_workers_start(data, start_method):
    assert_equal_batches(epoch_batches(data, 1, start_method), epoch_batches(data, 0))


@pytest.mark.parametrize("num_workers", [0, 2])
def test_global_generators_are_neither_used_nor_moved(data, num_workers):
    first, second = (epoch_batches(data, num_workers, seed=seed) for seed in (1, 2))
    assert_equal_batches(first, second)
    assert not torch.cat([batch["moved"] for batch in first]).any()


@pytest.mark.parametrize("prefetch_factor", [1, 3])
def test_workers_read_that_many_batches_ahead(data, prefetch_factor):
    asked_for = []

    class Watched(EpochSampler):
        def __iter__(self):
            for keys in super().__iter__():
                asked_for.append(keys)
                yield keys

    pairs = training_pairs(data)
    loader = make_training_loader(
        pairs, Watched(len(pairs), 1, 0, 1, seed=0), num_workers=2, prefetch_factor=prefetch_factor
    )
    batches = iter(loader)
    assert len(asked_for) == 2 * prefetch_factor
    next(batches)
    assert len(asked_for) == 2 * prefetch_factor + 1
    gallery = GalleryVideos(data, FrameReader(4, 32))
    evaluation = make_evaluation_loader(gallery, 2, range(5), num_workers=1, prefetch_factor=prefetch_factor)
    assert evaluation.prefetch_factor == prefetch_factor


def test_training_workers_stay_alive_between_epochs(data):
    pairs = training_pairs(data)
    loader = make_training_loader(pairs, EpochSampler(len(pairs), 5, 0, 1, seed=0), num_workers=1)
    list(loader)
    workers = [worker.pid for worker in loader._iterator._workers]
    list(loader)
    assert [worker.pid for worker in loader._iterator._workers] == workers
    assert all(worker.is_alive() for worker in loader._iterator._workers)


def test_datasets_travel_to_spawned_workers(data):
    pairs = pickle.loads(pickle.dumps(training_pairs(data)))
    assert torch.equal(pairs[2, 3]["video"], training_pairs(data)[2, 3]["video"])


def test_a_broken_video_stops_the_loader_with_its_name(data, tmp_path):
    (tmp_path / "broken.mp4").write_text("no video")
    broken = [*data, Sample("broken", tmp_path / "broken.mp4", ("caption 99",))]
    loader = make_evaluation_loader(GalleryVideos(broken, FrameReader(4, 32)), 2, range(6), num_workers=1)
    with pytest.raises(VideoError, match=r"broken\.mp4 is not a video"):
        list(loader)


class Threads(torch.utils.data.Dataset[Item]):
    def __len__(self):
        return 2

    def __getitem__(self, index):
        return {"threads": torch.get_num_threads(), "index": index}


def test_workers_run_torch_on_one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        batches = list(make_evaluation_loader(Threads(), 1, range(2), num_workers=2))
    finally:
        torch.set_num_threads(threads)
    assert [batch["threads"].item() for batch in batches] == [1, 1]


def test_gallery_and_queries_line_up(data):
    gallery = GalleryVideos(data, FrameReader(4, 32))
    queries = QueryCaptions(data, tokenize)
    assert (len(gallery), len(queries)) == (5, 10)
    assert gallery.video_id(2) == "video2"
    assert gallery[2]["index"] == 2
    assert queries.video_index.dtype == np.int64
    assert queries.video_index.tolist() == [0, 0, 0, 1, 2, 2, 3, 3, 3, 4]
    assert [queries[index]["token_ids"][1].item() for index in range(10)] == list(range(10))
    for index, video in enumerate(queries.video_index):
        assert queries.captions[index] in data[video].captions


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_pinned_batches(data):
    pairs, gallery = training_pairs(data), GalleryVideos(data, FrameReader(4, 32))
    for loader in (
        make_training_loader(pairs, EpochSampler(len(pairs), 5, 0, 1, seed=0), num_workers=1, pin_memory=True),
        make_evaluation_loader(gallery, 2, range(5), num_workers=1, pin_memory=True),
    ):
        assert all(tensor.is_pinned() for batch in loader for tensor in batch.values())


@pytest.mark.parametrize("num_workers", [0, 2])
def test_evaluation_visits_its_shard_once_and_in_order(data, num_workers):
    gallery = GalleryVideos(data, FrameReader(4, 32))
    batches = list(make_evaluation_loader(gallery, 2, range(1, 5), num_workers))
    assert [batch["index"].tolist() for batch in batches] == [[1, 2], [3, 4]]
    assert batches[0]["video"].shape == (2, 4, 3, 32, 32)
    batches = list(make_evaluation_loader(gallery, 2, [4, 0, 2], num_workers))
    assert [batch["index"].tolist() for batch in batches] == [[4, 0], [2]]
    assert list(make_evaluation_loader(gallery, 2, [], num_workers)) == []


def test_collate(data):
    pairs = training_pairs(data)
    batch = collate([pairs[0, 4], pairs[0, 1]])
    shapes = {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in batch.items()}
    assert shapes == {
        "video": ((2, 4, 3, 32, 32), torch.uint8),
        "frame_mask": ((2, 4), torch.bool),
        "token_ids": ((2, 4), torch.int64),
        "index": ((2,), torch.int64),
        "video_index": ((2,), torch.int64),
    }
    assert batch["index"].tolist() == [4, 1]
    assert batch["video_index"].tolist() == [2, 0]
    assert torch.equal(batch["video"][1], pairs[0, 1]["video"])
