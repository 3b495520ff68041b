"""The frame cache: it returns what decoding returns, and decodes each video once for the same settings."""

import json
import pickle
import time
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from dataloaders import cache as cache_module
from dataloaders.cache import FrameCache
from dataloaders.datasets import TrainingPairs, make_training_loader
from dataloaders.decode import VideoError, read_frames
from dataloaders.sampler import EpochSampler
from dataloaders.samples import Sample
from tests.dataloaders.cached_reader import entries, reader
from tests.dataloaders.small_clips import waves
from tests.videos import grey_ramp, write_video

SAMPLINGS = ("uniform", "segment", "released")


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("sampling", SAMPLINGS)
@pytest.mark.parametrize("n_frames", [1, 4, 6, 25])
@pytest.mark.parametrize(("start", "end"), [(None, None), (0.4, None), (0.3, 2.1)])
def test_raw_entries_give_the_same_tensors(tmp_path, decoded, training, sampling, n_frames, start, end):
    path = write_video(tmp_path / "a.mp4", waves(n_frames), fps=3)
    plain = reader(None, frame_sampling=sampling, training=training)
    cached = replace(plain, cache=FrameCache(tmp_path / "cache"))
    if start == 0.4 and n_frames == 1:  # the only frame is shown for a third of a second
        with pytest.raises(VideoError, match="has no frame from"):
            cached(path, np.random.default_rng(0), start, end)
        return
    expected = [plain(path, np.random.default_rng(draw), start, end) for draw in range(3)]
    decoded.clear()
    for draw, (video, mask) in enumerate(expected):
        got_video, got_mask = cached(path, np.random.default_rng(draw), start, end)
        assert torch.equal(got_video, video)
        assert torch.equal(got_mask, mask)
    assert decoded == {"a.mp4": 1}
    if training and sampling == "segment" and n_frames == 25:
        assert not torch.equal(expected[0][0], expected[1][0])  # the draws differ


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_jpeg_entries_give_nearly_the_same_tensors(tmp_path, decoded, training, sampling):
    path = write_video(tmp_path / "a.mp4", waves(25), fps=3)
    plain = reader(None, frame_sampling=sampling, training=training)
    cached = replace(plain, cache=FrameCache(tmp_path / "cache", "jpeg"))
    for draw in range(3):
        expected, mask = plain(path, np.random.default_rng(draw))
        decoded.clear()
        video, got_mask = cached(path, np.random.default_rng(draw))
        assert torch.equal(got_mask, mask)
        assert video.shape == expected.shape
        assert video.dtype == torch.uint8
        error = (video.int() - expected.int()).abs().float().mean(dim=(1, 2, 3))
        another_frame = (expected.int() - expected.roll(3, 0).int()).abs().float().mean(dim=(1, 2, 3))
        assert error.max() < 4 < another_frame.min() / 2
    assert decoded == {}


def test_jpeg_entries_give_the_pixels_of_opencv(tmp_path):
    path = write_video(tmp_path / "a.mp4", waves(5), fps=3)
    cached = reader(tmp_path / "cache", "jpeg", frame_sampling="segment", training=True)
    cached.prepare(path)
    (place,) = entries(tmp_path / "cache")
    entry = load_file(place)
    files = np.split(entry["jpeg"].numpy(), entry["ends"].tolist()[:-1])
    pictures = [cv2.cvtColor(cv2.imdecode(file, cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB) for file in files]
    expected = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2)
    for positions in ([0, 1, 2, 3, 4], [0, 0, 0], [3, 3, 1, 3], [2]):
        stored = cached.cache.load(path, cached._cache_settings(None, None), lambda: pytest.fail("decoded again"))
        assert torch.equal(stored.take(np.array(positions)), expected[positions])


def test_jpeg_entries_are_smaller(tmp_path):
    path = write_video(tmp_path / "a.mp4", waves(12, side=128))
    for encoding in ("raw", "jpeg"):
        reader(tmp_path / encoding, encoding, image_size=128, max_frames=12)(path)
    raw, jpeg = (entries(tmp_path / encoding)[0].stat().st_size for encoding in ("raw", "jpeg"))
    assert raw >= 12 * 3 * 128 * 128
    assert jpeg < raw / 4


def test_the_caller_owns_the_returned_frames(tmp_path):
    path = write_video(tmp_path / "a.mp4", waves(9))
    cached = reader(tmp_path / "cache")
    first, _ = cached(path)
    kept = first.clone()
    first.zero_()
    assert torch.equal(cached(path)[0], kept)
    assert torch.equal(reader(tmp_path / "cache")(path)[0], kept)


def test_an_entry_says_what_it_is_and_other_tools_can_read_it(tmp_path):
    path = write_video(tmp_path / "a.mp4", waves(9))
    video, _ = reader(tmp_path / "cache")(path)
    (entry,) = entries(tmp_path / "cache")
    assert torch.equal(load_file(entry)["pixels"], video)
    with safe_open(entry, "pt") as file:
        terms = json.loads(file.metadata()["entry"].rpartition(" ")[0])
    assert terms["file"] == "a.mp4"
    assert terms["bytes"] == path.stat().st_size
    assert terms["settings"] == "uniform 6 slice_framepos 2, 0 fps, resize to 32, from None to None"


OTHER_SETTINGS = [
    {"max_frames": 5},
    {"image_size": 24},
    {"frame_sampling": "segment"},
    {"frame_sampling": "segment", "training": True},
    {"slice_framepos": 0},
    {"feature_framerate": 1.0},
    {"frame_transform": "crop"},
    {"frame_transform": "bilinear"},
    {"resize_mode": "squash"},
    {"frame_sampling": "dense"},
    {"frame_sampling": "dense", "frame_stride": 2},
    {"interpolation": "bilinear"},
]


def test_other_settings_get_other_entries(tmp_path, decoded):
    path = write_video(tmp_path / "a.mp4", waves(20))
    windows = [(None, None), (1.0, None), (None, 3.0)]
    calls = [({}, window) for window in windows] + [(setting, windows[0]) for setting in OTHER_SETTINGS]
    for encoding in ("raw", "jpeg"):
        for setting, (start, end) in calls:
            reader(tmp_path / "cache", encoding, **setting)(path, np.random.default_rng(0), start, end)
    assert len(entries(tmp_path / "cache")) == 2 * len(calls)
    assert decoded["a.mp4"] == 2 * len(calls)
    for setting, (start, end) in calls:
        plain, cached = reader(None, **setting), reader(tmp_path / "cache", **setting)
        one, other = (read(path, np.random.default_rng(0), start, end)[0] for read in (plain, cached))
        assert torch.equal(one, other)


def test_training_draws_of_any_kind_share_one_entry(tmp_path, decoded):
    path = write_video(tmp_path / "a.mp4", waves(20))
    for sampling, max_frames in (("segment", 6), ("segment", 3), ("released", 6)):
        cached = reader(tmp_path / "cache", frame_sampling=sampling, training=True, max_frames=max_frames)
        cached(path, np.random.default_rng(0))
    assert decoded["a.mp4"] == 1


def test_another_decoder_gets_another_entry(tmp_path, monkeypatch, decoded):
    path = write_video(tmp_path / "a.mp4", waves(5))
    reader(tmp_path / "cache")(path)
    monkeypatch.setattr(cache_module, "decoder_version", lambda: "another 1.0")
    reader(tmp_path / "cache")(path)
    assert decoded["a.mp4"] == 2


@pytest.mark.parametrize("same_reader", [True, False])
def test_a_changed_video_is_decoded_again(tmp_path, decoded, same_reader):
    path = write_video(tmp_path / "a.mp4", waves(5))
    cached = reader(tmp_path / "cache")
    old, _ = cached(path)
    content = write_video(tmp_path / "b.mp4", waves(5, seed=1)).read_bytes()
    time.sleep(0.01)  # if the sizes are equal, only the time of change tells
    path.write_bytes(content)
    new, _ = (cached if same_reader else reader(tmp_path / "cache"))(path)
    assert torch.equal(new, reader(None)(path)[0])
    assert not torch.equal(new, old)


def test_a_video_that_is_gone_is_not_served(tmp_path):
    path = write_video(tmp_path / "a.mp4", waves(5))
    cached = reader(tmp_path / "cache")
    cached(path)
    path.unlink()
    with pytest.raises(VideoError, match="does not exist"):
        cached(path)


def test_a_broken_video_leaves_no_entry(tmp_path):
    (tmp_path / "a.mp4").write_text("no video")
    with pytest.raises(VideoError, match="is not a video"):
        reader(tmp_path / "cache")(tmp_path / "a.mp4")
    assert entries(tmp_path) == [tmp_path / "a.mp4"]


def test_a_short_video_is_resampled_before_it_is_stored(tmp_path):
    whole = write_video(tmp_path / "whole.mp4", np.random.default_rng(0).integers(0, 256, (60, 64, 64, 3), np.uint8))
    path = tmp_path / "cut.mp4"
    path.write_bytes(whole.read_bytes()[: int(0.9 * whole.stat().st_size)])
    counts = []
    read_frames(path, lambda n, fps: counts.append(n) or [n - 1])
    assert counts[0] == 60 > counts[1] > 50
    for sampling, training in [(name, training) for name in (*SAMPLINGS, "dense") for training in (False, True)]:
        plain = reader(None, frame_sampling=sampling, training=training)
        for draw in range(4):
            expected, _ = plain(path, np.random.default_rng(draw))
            got, _ = replace(plain, cache=FrameCache(tmp_path / "cache"))(path, np.random.default_rng(draw))
            assert torch.equal(got, expected)


def test_no_more_entries_are_mapped_than_allowed(tmp_path, monkeypatch, decoded):
    monkeypatch.setattr(cache_module, "MAX_MAPPED", 2)
    paths = [write_video(tmp_path / f"{n}.mp4", waves(5, seed=n)) for n in range(5)]
    cached = reader(tmp_path / "cache")
    for _ in range(2):
        for path in paths:
            assert torch.equal(cached(path)[0], reader(None)(path)[0])
            assert len(cached.cache._mapped) <= 2
    assert decoded == {path.name: 3 for path in paths}  # twice without a cache and once with it


def test_a_pickled_reader_takes_no_pixels_along(tmp_path):
    path = write_video(tmp_path / "a.mp4", waves(9))
    cached = reader(tmp_path / "cache")
    expected, _ = cached(path)
    content = pickle.dumps(cached)
    assert len(content) < 2000
    assert torch.equal(pickle.loads(content)(path)[0], expected)


@pytest.mark.parametrize("encoding", ["raw", "jpeg"])
def test_batches_are_the_same_for_any_number_of_workers(tmp_path, encoding):
    samples = [
        Sample(f"{n}", write_video(tmp_path / f"{n}.mp4", waves(9 + n, seed=n)), (f"{n}", f"again {n}"))
        for n in range(6)
    ]

    def batches(folder: Path | None, num_workers: int) -> list[dict[str, torch.Tensor]]:
        frames = reader(folder, encoding, frame_sampling="segment", training=True)
        pairs = TrainingPairs(samples, lambda text: torch.tensor([[len(text)]]), frames, True, seed=5)
        sampler = EpochSampler(len(pairs), 4, 0, 1, seed=5)
        loader = make_training_loader(pairs, sampler, num_workers)
        found = []
        for epoch in range(2):
            sampler.set_epoch(epoch)
            found += list(loader)
        return found

    plain = batches(None, 0)
    runs = [batches(tmp_path / f"cache{number}", workers) for number, workers in enumerate((0, 1, 3))]
    runs.append(batches(tmp_path / "cache0", 2))
    for run in runs:
        assert len(run) == len(plain) == 6
        for got, first, expected in zip(run, runs[0], plain, strict=True):
            assert torch.equal(got["index"], expected["index"])
            assert torch.equal(got["video"], first["video"])
            if encoding == "raw":
                assert torch.equal(got["video"], expected["video"])
            else:
                assert (got["video"].float() - expected["video"].float()).abs().mean() < 4


def test_grey_levels_survive_both_encodings(tmp_path):
    path = write_video(tmp_path / "a.mp4", grey_ramp(12, 32, 32, step=15))
    for encoding in ("raw", "jpeg"):
        video, _ = reader(tmp_path / "cache", encoding, max_frames=12)(path)
        assert (video.float().mean(dim=(1, 2, 3)) - (16 + 15 * torch.arange(12))).abs().max() < 3
