"""Items, batches and their order: what is trained on depends on seed and epoch, never on workers or processes."""

import pickle
import random
from dataclasses import replace
from functools import partial
from itertools import chain, pairwise

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

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
from tests.videos import frame_numbers, grey_ramp, write_video


def tokenize(text: str) -> torch.Tensor:
    """A stand-in with the tokenizer's shapes: the number that ends the caption, between START and END."""
    return torch.tensor([[49406, int(text.split()[-1]), 49407, 0]])


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> list[Sample]:
    """Five videos of 20 frames at 5 fps with 3, 1, 2, 3 and 1 captions; no two captions are alike."""
    folder = tmp_path_factory.mktemp("videos")
    listed, caption = [], 0
    for row, n_captions in enumerate((3, 1, 2, 3, 1)):
        path = write_video(folder / f"video{row}.mp4", grey_ramp(20), fps=5)
        listed.append(Sample(path.stem, path, tuple(f"caption {caption + k}" for k in range(n_captions))))
        caption += n_captions
    return listed


def numbers(video: torch.Tensor) -> list[int]:
    return frame_numbers(video.numpy())


# --- reading frames ---


def test_uniform_frames(data):
    video, frame_mask = FrameReader(max_frames=4, image_size=32)(data[0].path)
    assert video.shape == (4, 3, 32, 32)
    assert video.dtype == torch.uint8
    assert numbers(video) == [0, 6, 12, 19]
    assert frame_mask.dtype == torch.bool
    assert frame_mask.tolist() == [True] * 4


def test_one_frame_a_second_with_padding(data):
    # 20 frames at 5 fps are 4 seconds
    video, frame_mask = FrameReader(max_frames=6, image_size=32, feature_framerate=1.0)(data[0].path)
    assert numbers(video[:4]) == [0, 5, 10, 15]
    assert (video[4:] == 0).all()
    assert frame_mask.tolist() == [True] * 4 + [False] * 2


@pytest.mark.parametrize(("slice_framepos", "expected"), [(0, [0, 1, 2]), (1, [17, 18, 19]), (2, [0, 9, 19])])
def test_slice_framepos(data, slice_framepos, expected):
    video, _ = FrameReader(max_frames=3, image_size=32, slice_framepos=slice_framepos)(data[0].path)
    assert numbers(video) == expected


def test_segments(data):
    reader = FrameReader(max_frames=4, image_size=32, frame_sampling="segment")
    assert numbers(reader(data[0].path)[0]) == [2, 7, 12, 17]

    training = FrameReader(max_frames=4, image_size=32, frame_sampling="segment", training=True)
    drawn = [numbers(training(data[0].path, np.random.default_rng(seed))[0]) for seed in range(6)]
    assert len({tuple(draw) for draw in drawn}) > 1
    for draw in drawn:
        assert [frame // 5 for frame in draw] == [0, 1, 2, 3]


def test_segments_of_a_short_video_repeat_frames(tmp_path):
    path = write_video(tmp_path / "short.mp4", grey_ramp(2))
    for training in (False, True):
        reader = FrameReader(max_frames=6, image_size=32, frame_sampling="segment", training=training)
        video, frame_mask = reader(path, np.random.default_rng(0))
        assert numbers(video) == [0, 0, 0, 1, 1, 1]
        assert frame_mask.all()


def test_released_sampling(data, tmp_path):
    def drawn(path, training: bool) -> list[list[int]]:
        reader = FrameReader(6, 32, frame_sampling="released", training=training)
        clips = [reader(path, np.random.default_rng(seed)) for seed in range(6)]
        assert all(frame_mask.all() for _, frame_mask in clips)
        return [numbers(video) for video, _ in clips]

    assert drawn(data[0].path, training=False) == [[1, 5, 8, 11, 15, 18]] * 6
    for clip in drawn(data[0].path, training=True):  # 20 frames: runs of 3, the last two frames are never seen
        assert [frame // 3 for frame in clip] == [0, 1, 2, 3, 4, 5]
    short = write_video(tmp_path / "short.mp4", grey_ramp(2))
    for training in (False, True):
        assert drawn(short, training) == [[0, 1, 1, 1, 1, 1]] * 6


def test_crop_takes_the_middle_as_it_is(tmp_path):
    frames = grey_ramp(4, 48, 64)
    frames[:, :, :16], frames[:, :, 48:], frames[:, :8], frames[:, 40:] = 255, 255, 255, 255
    path = write_video(tmp_path / "framed.mp4", frames)
    video, _ = FrameReader(4, 32, frame_transform="crop")(path)
    assert video.shape == (4, 3, 32, 32)
    assert numbers(video) == [0, 1, 2, 3]
    assert video.max() < 100  # nothing of the white frame around it
    assert FrameReader(4, 32)(path)[0].max() > 200


@pytest.mark.parametrize(("height", "width"), [(30, 64), (64, 30)])
def test_crop_refuses_a_video_that_is_too_small(tmp_path, height, width):
    path = write_video(tmp_path / "small.mp4", grey_ramp(4, height, width))
    message = rf"small\.mp4 is {width}x{height}, too small to crop 32x32 .* short side of 32, or pass --frame_transform"
    with pytest.raises(VideoError, match=message):
        FrameReader(4, 32, frame_transform="crop")(path)


@pytest.mark.parametrize("frame_sampling", ["uniform", "segment", "released"])
def test_a_single_frame_of_odd_size(tmp_path, frame_sampling):
    path = write_video(tmp_path / "one.mp4", grey_ramp(1, 33, 47), pixel_format="yuv444p")
    video, frame_mask = FrameReader(3, 32, frame_sampling)(path)
    assert video.shape == (3, 3, 32, 32)
    assert frame_mask.sum() == (1 if frame_sampling == "uniform" else 3)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_frames": 0}, "--max_frames is 0"),
        ({"image_size": 0}, "image size is 0"),
        ({"frame_sampling": "random"}, "--frame_sampling is 'random': pass one of uniform, segment, released"),
        ({"frame_transform": "pad"}, "--frame_transform is 'pad': pass resize or crop"),
        ({"feature_framerate": -1.0}, "--feature_framerate is -1"),
        ({"feature_framerate": float("nan")}, "--feature_framerate is nan"),
        ({"slice_framepos": 3}, "--slice_framepos is 3"),
    ],
)
def test_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        FrameReader(**{"max_frames": 4, "image_size": 32, **settings})


def test_a_video_without_frame_rate_cannot_be_thinned_out(data, monkeypatch):
    monkeypatch.setattr("dataloaders.decode._frame_rate", lambda capture: 0.0)
    with pytest.raises(VideoError, match=r"video0\.mp4 states no frame rate"):
        FrameReader(4, 32, feature_framerate=1.0)(data[0].path)
    assert FrameReader(4, 32)(data[0].path)[1].all()
    with pytest.raises(VideoError, match="states no frame rate, so that seconds"):
        FrameReader(4, 32)(data[0].path, start=1.0)


# --- a window of time ---


@pytest.mark.parametrize(
    ("start", "end", "expected"),
    [
        (None, None, [0, 6, 12, 19]),
        (0.0, 31.0, [0, 6, 12, 19]),
        (1.0, 3.0, [5, 8, 11, 14]),
        (2.0, None, [10, 13, 16, 19]),
        (None, 0.8, [0, 1, 2, 3]),
        (1.3, 1.5, [6, 7]),  # frame 6 is on screen from 1.2 s to 1.4 s
        (3.9, 99.0, [19]),
    ],
)
def test_frames_come_from_the_window_alone(data, start, end, expected):
    # 20 frames at 5 fps are 4 seconds
    video, frame_mask = FrameReader(4, 32)(data[0].path, start=start, end=end)
    assert numbers(video[frame_mask]) == expected


def test_windows_with_every_sampling(data):
    for sampling, expected in (("segment", [7, 12]), ("released", [7, 12])):
        assert numbers(FrameReader(2, 32, sampling)(data[0].path, start=1.0, end=3.0)[0]) == expected
        random = FrameReader(2, 32, sampling, training=True)
        for seed in range(5):
            first, second = numbers(random(data[0].path, np.random.default_rng(seed), 1.0, 3.0)[0])
            assert 5 <= first < 10 <= second < 15
    thinned = FrameReader(4, 32, feature_framerate=1.0)(data[0].path, start=1.0, end=3.0)
    assert numbers(thinned[0][thinned[1]]) == [5, 10]


@pytest.mark.parametrize(("start", "end"), [(4.0, None), (9.0, 12.0), (2.0, 2.0), (3.0, 1.0), (0.0, 0.0)])
def test_a_window_without_a_frame_is_refused(data, start, end):
    with pytest.raises(VideoError, match=f"{data[0].path.name} has no frame from {start:g} s until .* it lasts 4 s"):
        FrameReader(4, 32)(data[0].path, start=start, end=end)


def test_items_follow_the_window_of_their_sample(data):
    windowed = [replace(data[0], start=1.0, end=2.0)]
    assert numbers(GalleryVideos(windowed, FrameReader(5, 32))[0]["video"]) == [5, 6, 7, 8, 9]
    frames = FrameReader(5, 32, "segment", training=True)
    assert numbers(TrainingPairs(windowed, tokenize, frames, False, 0)[0, 0]["video"]) == [5, 6, 7, 8, 9]


# --- training items ---


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
    """Reads items as ever, and says whether the process's global generators were moved by it."""

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
    """The batches of two epochs, of captions and frames drawn at random; the global generators seeded if told so."""
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
def test_workers_read_so_many_batches_ahead(data, prefetch_factor):
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


def test_training_workers_live_on_between_epochs(data):
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


# --- evaluation items ---


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


# --- order ---


def global_batches(n, global_batch_size, world_size, *, epoch=0, seed=0, start_batch=0, **settings):
    """The batches of all ranks put together, and each rank's own."""
    per_rank = []
    for rank in range(world_size):
        sampler = EpochSampler(n, global_batch_size // world_size, rank, world_size, seed, **settings)
        sampler.set_epoch(epoch, start_batch)
        per_rank.append(list(sampler))
    return [list(chain(*shares)) for shares in zip(*per_rank, strict=True)], per_rank


@given(st.integers(12, 200), st.sampled_from([2, 3, 4, 6]), st.integers(0, 5), st.integers(0, 2**32), st.booleans())
def test_global_batches_are_the_same_on_any_number_of_ranks(n, world_size, epoch, seed, drop_last):
    alone, _ = global_batches(n, 12, 1, epoch=epoch, seed=seed)
    together, per_rank = global_batches(n, 12, world_size, epoch=epoch, seed=seed, drop_last=drop_last)
    assert together[: len(alone)] == alone
    assert len(together) == n // 12 + (not drop_last and n % 12 >= world_size)
    seen = [index for batch in together for _, index in batch]
    assert len(set(seen)) == len(seen)
    assert set(seen) <= set(range(n))
    assert {key[0] for batch in together for key in batch} == {epoch}
    for batches in per_rank:
        assert all(len(share) == 12 // world_size for share in batches[: len(alone)])
        assert all(share for share in batches)


@given(st.integers(6, 60), st.integers(0, 30), st.sampled_from([1, 2, 3]), st.integers(0, 2**32))
def test_partners_meet_in_a_batch(n_twins, n_alone, world_size, seed):
    n = 2 * n_twins + n_alone
    shuffled = np.random.default_rng(seed).permutation(n)
    partner = np.arange(n)
    one, other = shuffled[:n_twins], shuffled[n_twins : 2 * n_twins]
    partner[one], partner[other] = other, one
    batches, _ = global_batches(n, 12, world_size, seed=seed, partner=partner)
    indices = [[index for _, index in batch] for batch in batches]
    flat = list(chain(*indices))
    assert len(flat) == len(set(flat)) == n // 12 * 12
    dropped = set(range(n)) - set(flat)
    for batch in indices:
        apart = [index for index in batch if partner[index] not in batch]
        assert set(apart) <= {batch[0], batch[-1]}
        if not n_alone:
            assert not apart
    assert len([index for index in dropped if partner[index] not in dropped]) <= 1
    plain, _ = global_batches(n, 12, world_size, seed=seed)
    assert global_batches(n, 12, world_size, seed=seed, partner=np.arange(n))[0] == plain


@given(
    st.lists(st.integers(1, 6), min_size=4, max_size=40),
    st.integers(0, 3),
    st.sampled_from([1, 2, 3]),
    st.integers(0, 5),
    st.integers(0, 2**32),
    st.booleans(),
)
def test_no_batch_has_a_video_twice(captions, spare, world_size, epoch, seed, drop_last):
    """However many captions the videos have, also where a video must be in every batch (`spare` is 0)."""
    n, most = sum(captions), max(captions)
    batch_size = n // (most + spare) // world_size * world_size
    assume(batch_size > 0)
    videos = np.random.default_rng(seed).permutation(np.repeat(np.arange(len(captions)), captions))
    settings = {"epoch": epoch, "seed": seed, "drop_last": drop_last, "video_index": videos}
    batches, per_rank = global_batches(n, batch_size, world_size, **settings)
    left_over = n % batch_size
    kept = not drop_last and left_over >= world_size
    assert [len(batch) for batch in batches] == [batch_size] * (n // batch_size) + [left_over] * kept
    for batch in batches:
        assert len({videos[index] for _, index in batch}) == len(batch)
    indices = [index for batch in batches for _, index in batch]
    assert len(set(indices)) == len(indices)
    assert set(indices) <= set(range(n))
    assert {key[0] for batch in batches for key in batch} == {epoch}
    for shares in per_rank:
        assert all(len(share) == batch_size // world_size for share in shares[: n // batch_size])
    alone, _ = global_batches(n, batch_size, 1, **settings)
    assert batches == alone[: len(batches)]
    start = (seed + epoch) % (len(batches) + 1)
    assert global_batches(n, batch_size, world_size, start_batch=start, **settings)[0] == batches[start:]
    if most == 1:
        assert batches == global_batches(n, batch_size, world_size, **settings | {"video_index": None})[0]


def test_epochs_of_videos_kept_apart_differ_in_everything():
    """Order, what is left over, and who meets whom; nothing about it depends on the place in the list."""
    videos = np.repeat(np.arange(6), 4)
    videos = np.append(videos, [6, 7, 8])
    orders, missing, positions, met = set(), set(), set(), set()
    for epoch in range(200):
        batches, _ = global_batches(27, 4, 1, epoch=epoch, video_index=videos)
        assert len(batches) == 6
        indices = [[index for _, index in batch] for batch in batches]
        orders.add(tuple(chain(*indices)))
        missing |= set(range(27)) - set(chain(*indices))
        positions |= {(index, number) for number, batch in enumerate(indices) for index in batch}
        met |= {(one, other) for batch in indices for one in batch for other in batch}
    assert len(orders) == 200
    assert missing == set(range(27))
    assert positions == {(index, number) for index in range(27) for number in range(6)}
    assert met == {(i, j) for i in range(27) for j in range(27) if i == j or videos[i] != videos[j]}
    again, _ = global_batches(27, 4, 1, epoch=199, video_index=videos)
    assert [[index for _, index in batch] for batch in again] == indices
    plain, _ = global_batches(27, 4, 1, epoch=199)
    assert any(len({videos[index] for _, index in batch}) < 4 for batch in plain)


def test_as_many_items_as_msr_vtt():
    """Two batches share as few videos as chance would have it, also neighbours: 19 other items of each, anywhere."""
    videos = np.repeat(np.arange(9000), 20)
    sampler = EpochSampler(len(videos), 128, 0, 1, seed=0, video_index=videos)
    indices = np.array([[index for _, index in batch] for batch in sampler])
    assert indices.shape == (1406, 128)
    assert len(np.unique(indices)) == indices.size
    batches = np.sort(videos[indices], axis=1)
    assert (np.diff(batches, axis=1) > 0).all()
    shared = [len(np.intersect1d(one, other)) for one, other in pairwise(batches)]
    assert np.mean(shared) == pytest.approx(128 * 19 / 1405, rel=0.1)


@pytest.mark.parametrize(
    ("captions", "per_rank", "counts_and_mend"),
    [
        ((3, 5, 4), 2, "5 and an epoch 3: pass --batch_size 2 or less, or --same_video negatives or positives"),
        ((9, 9, 3, 3), 3, "9 and an epoch 4: pass --batch_size 2 or less, or --same_video"),
        ((9, 1, 1, 1), 2, "9 and an epoch 3: pass --same_video negatives or positives"),
        ((2,), 1, "2 and an epoch 1: pass --same_video negatives or positives"),
    ],
)
def test_a_video_with_more_captions_than_batches_is_refused(captions, per_rank, counts_and_mend):
    videos = np.repeat(np.arange(len(captions)), captions)
    with pytest.raises(ValueError, match=f"--same_video apart needs as many full batches .* has {counts_and_mend}"):
        EpochSampler(len(videos), per_rank, rank=0, world_size=2, seed=0, video_index=videos)


def test_partners_and_videos_kept_apart_exclude_each_other():
    videos = np.array([0, 0, 1, 1])
    EpochSampler(4, 2, 0, 1, seed=0, partner=np.arange(4), video_index=videos)
    with pytest.raises(ValueError, match="--same_video apart does not work with --train_twins_csv"):
        EpochSampler(4, 2, 0, 1, seed=0, partner=np.array([2, 3, 0, 1]), video_index=videos)


def test_orders_differ_between_epochs_and_seeds():
    drawn = [global_batches(40, 4, 1, epoch=e, seed=s)[0] for e, s in [(0, 0), (1, 0), (0, 1), (0, 0)]]
    indices = [tuple(index for batch in batches for _, index in batch) for batches in drawn]
    assert indices[0] == indices[3]
    assert len(set(indices)) == 3
    assert all(sorted(order) == list(range(40)) for order in indices)


@given(st.integers(0, 5))
def test_resuming_within_an_epoch_skips_what_was_seen(start_batch):
    whole, _ = global_batches(23, 4, 2, epoch=3)
    rest, _ = global_batches(23, 4, 2, epoch=3, start_batch=start_batch)
    assert rest == whole[start_batch:]
    sampler = EpochSampler(23, 2, rank=0, world_size=2, seed=0)
    sampler.set_epoch(3, start_batch)
    assert len(sampler) == 5


def test_the_last_smaller_batch_is_kept_if_every_rank_gets_some():
    batches, per_rank = global_batches(15, 8, 4, drop_last=False)
    assert [len(batch) for batch in batches] == [8, 7]
    assert [len(shares[-1]) for shares in per_rank] == [2, 2, 2, 1]
    assert [len(batch) for batch in global_batches(11, 8, 4, drop_last=False)[0]] == [8]


@pytest.mark.parametrize(
    ("n", "batch_size", "drop_last", "message"),
    [
        (7, 4, True, "There are 7 training items, a batch needs at least 8: pass --batch_size 6 or less"),
        (1, 4, True, "There are 1 training items, a batch needs at least 8: use fewer processes or more data"),
        (1, 4, False, "There are 1 training items, a batch needs at least 2: use fewer processes or more data"),
        (7, 0, True, "--batch_size gives 0 items a process: pass at least 2"),
    ],
)
def test_too_few_items_for_a_batch(n, batch_size, drop_last, message):
    with pytest.raises(ValueError, match=message):
        EpochSampler(n, batch_size, rank=0, world_size=2, seed=0, drop_last=drop_last)


def test_the_order_is_no_neighbour_of_the_items_draws():
    """NumPy pads seeds with zeros: seeded [seed, epoch], the order would share its stream with item 0."""
    assert np.random.default_rng([3, 1]).random() == np.random.default_rng([3, 1, 0]).random()
    order = [index for batch in global_batches(50, 1, 1, epoch=1, seed=3)[0] for _, index in batch]
    assert order != np.random.default_rng([3, 1, 0]).permutation(50).tolist()
