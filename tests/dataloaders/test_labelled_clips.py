"""Labelled clips to train on: which frames, which label and which pixels, whoever reads them and in whatever order."""

import os
import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn.functional import interpolate

from dataloaders.augmentation import Augmentation, drawing
from dataloaders.cache import FrameCache
from dataloaders.classes import Classes
from dataloaders.datasets import Item, LabelledClips, collate, make_training_loader
from dataloaders.decode import read_frames
from dataloaders.frames import FrameReader
from dataloaders.sampler import EpochSampler
from dataloaders.samples import Sample
from tests.dataloaders.small_clips import numbers, waves
from tests.processes import run_as_group
from tests.videos import grey_ramp, write_video

v2 = pytest.importorskip("torchvision.transforms.v2")

CLASSES = Classes(("left", "right", "jump"), ("left", "right", "jump"), {"left": "right", "right": "left"})
EVERYTHING = Augmentation(0.5, "mapped", 0.5, 0.8, 0.2, 2, 9, 0.25, 0.8, 1.0)
SIZE = 28  # whole frames have a short side of 32


@pytest.fixture(scope="module")
def samples(tmp_path_factory) -> list[Sample]:
    """Six videos of 12 frames, 48 x 64 pixels, two of each class."""
    folder = tmp_path_factory.mktemp("labelled")
    return [
        Sample(f"video{row}", write_video(folder / f"{row}.mp4", waves(12, seed=row, side=48)), (), label=label)
        for row, label in enumerate(("jump", "left", "right", "jump", "left", "right"))
    ]


def clips(samples: list[Sample], augmentation: Augmentation | None = None, seed: int = 0, **settings) -> LabelledClips:
    frames = FrameReader(
        **{"max_frames": 4, "image_size": SIZE, "frame_sampling": "segment", "training": True} | settings
    )
    return LabelledClips(samples, frames, CLASSES, seed, augmentation)


def all_frames(path: Path) -> torch.Tensor:
    return torch.from_numpy(read_frames(path, lambda n, fps: np.arange(n)).frames).permute(0, 3, 1, 2)


def test_items_without_augmentation(samples):
    training = clips(samples)
    assert len(training) == 6
    for index, label in enumerate((2, 0, 1, 2, 0, 1)):
        item = training[3, index]
        assert item.keys() == {"video", "frame_mask", "label", "index"}
        assert (item["label"], item["index"], training.video_id(index)) == (label, index, f"video{index}")
        video, frame_mask = training.frames(samples[index].path, np.random.default_rng([0, 3, index]))
        assert torch.equal(item["video"], video)
        assert torch.equal(item["frame_mask"], frame_mask)
    batch = collate([training[0, index] for index in range(4)])
    assert batch["video"].shape == (4, 4, 3, SIZE, SIZE)
    assert batch["video"].dtype == torch.uint8
    assert batch["label"].dtype == torch.int64
    assert batch["label"].tolist() == [2, 0, 1, 2]


@pytest.mark.parametrize("flip", ["none", "mapped", "plain_despite_map"])
def test_flips_and_their_labels(samples, flip):
    """Compare with slices of the decoded video, mirrored by reversing its columns."""
    training, plain = clips(samples, Augmentation(flip=flip)), clips(samples)
    flipped = set()
    for index in range(6):
        for epoch in range(8):
            item, original = training[epoch, index], plain[epoch, index]
            is_flipped = torch.equal(item["video"], original["video"][..., torch.arange(SIZE - 1, -1, -1)])
            assert is_flipped or torch.equal(item["video"], original["video"])
            expected = {0: 1, 1: 0, 2: 2}[original["label"]] if is_flipped and flip == "mapped" else original["label"]
            assert item["label"] == expected
            flipped.add((is_flipped, original["label"], item["label"]))
    outcomes = {"none": 3, "mapped": 6, "plain_despite_map": 6}
    assert len(flipped) == outcomes[flip]
    if flip == "mapped":
        assert flipped >= {(True, 0, 1), (True, 1, 0), (True, 2, 2)}


def test_crops_are_cut_out_of_whole_frames(samples):
    """Compare with the same frames of the decoded video, shrunk and cropped by torchvision under the same draw."""
    training, plain = clips(samples, Augmentation(crop_scale=0.5)), clips(samples)
    shrink = v2.Resize(32, interpolation=v2.InterpolationMode.BICUBIC, antialias=True)
    crop = v2.RandomResizedCrop(SIZE, (0.5, 1.0), interpolation=v2.InterpolationMode.BICUBIC)
    for index in range(3):
        generator = np.random.default_rng([0, 1, index])
        frames = all_frames(samples[index].path)
        taken = [int((segment + moment) * 12 / 4) for segment, moment in enumerate(generator.random(4))]
        generator.random()  # for the flip
        expected = drawing(crop, shrink(frames[taken]), int(generator.integers(2**63)))
        assert torch.equal(training[1, index]["video"], expected)
        assert not torch.equal(training[1, index]["video"], plain[1, index]["video"])


def test_short_sides_are_drawn_and_squares_cut_out_of_unshrunk_frames(samples):
    """Compare with the frames of the decoded video, resized once, by the formula of bilinear interpolation in fp32."""
    training = clips(samples, Augmentation(short_side_max=32), frame_transform="bilinear")
    sides = set()
    for epoch in range(12):
        generator = np.random.default_rng([0, epoch, 0])
        frames = all_frames(samples[0].path)  # 48 x 64
        taken = [int((segment + moment) * 12 / 4) for segment, moment in enumerate(generator.random(4))]
        generator.random()  # for the flip
        torch.manual_seed(int(generator.integers(2**63)))
        side = int(torch.randint(SIZE, 33, ()))
        resized = interpolate(frames[taken].float(), (side, side * 64 // 48), mode="bilinear").round()
        item, found = training[epoch, 0]["video"].float(), []
        for top in range(side - SIZE + 1):
            for left in range(side * 64 // 48 - SIZE + 1):
                square = resized[..., top : top + SIZE, left : left + SIZE]
                found += [(top, left)] * ((square - item).abs().max() <= 1)
        assert len(found) == 1, (side, found)
        sides.add(side)
    assert len(sides) > 3
    assert {SIZE, 32} & sides


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"short_side_max": 27}, "--short_side_max is 27: pass 0 .* or at least the 28 pixels of this CLIP"),
        ({"short_side_max": -1}, "--short_side_max is -1: pass 0"),
        ({"short_side_max": 32, "crop_scale": 0.5}, "are two ways to cut out squares: pass --crop_scale 1 or"),
    ],
)
def test_impossible_short_sides_are_refused(samples, settings, message):
    with pytest.raises(ValueError, match=message):
        clips(samples, Augmentation(**settings))


def test_whole_frames_are_shrunk_but_never_enlarged(tmp_path):
    for side, kept in ((64, 32), (32, 32), (30, 30)):
        path = write_video(tmp_path / f"{side}.mp4", grey_ramp(4, side, 2 * side))
        for how, expected in (("resize", kept), ("crop", side), ("bilinear", side)):
            reader = FrameReader(4, SIZE, "segment", training=True, frame_transform=how, whole=True)
            frames = reader.take(path, np.random.default_rng(0))
            assert frames.shape == (4, 3, expected, 2 * expected)
            assert numbers(frames) == [0, 1, 2, 3]


def test_padding_is_not_augmented(tmp_path):
    sample = Sample("short", write_video(tmp_path / "a.mp4", grey_ramp(2)), (), label="jump")
    settings = replace(EVERYTHING, rand_augment_ops=4, mixup_alpha=0.0, cutmix_alpha=0.0)
    training = clips([sample], settings, frame_sampling="uniform")
    for epoch in range(10):
        item = training[epoch, 0]
        assert item["frame_mask"].tolist() == [True, True, False, False]
        assert not item["video"][2:].any()


def assert_equal(one: Item, other: Item) -> None:
    assert one.keys() == other.keys()
    for name in one:
        assert torch.equal(torch.as_tensor(one[name]), torch.as_tensor(other[name])), name


def test_an_item_depends_on_seed_epoch_and_index_alone(samples):
    training = clips(samples, EVERYTHING)
    first = [training[2, index] for index in range(6)]
    assert first[0]["mixing"].shape == (5,)
    torch.manual_seed(5)
    state = torch.get_rng_state()
    again = pickle.loads(pickle.dumps(clips(samples, EVERYTHING)))  # as a started worker process gets it
    for index in (3, 0, 5, 1, 4, 2):
        assert_equal(again[2, index], first[index])
    assert torch.equal(torch.get_rng_state(), state)
    for other in (clips(samples, EVERYTHING, seed=1)[2, 0], training[3, 0]):
        assert not torch.equal(other["video"], first[0]["video"])


@pytest.mark.parametrize(
    ("encoding", "augmentation"), [("raw", Augmentation()), ("raw", EVERYTHING), ("jpeg", Augmentation(0.5, "mapped"))]
)
@pytest.mark.parametrize("sampling", ["segment", "dense"])
def test_cached_clips_are_the_same(samples, tmp_path, decoded, encoding, augmentation, sampling):
    plain = clips(samples, augmentation, frame_sampling=sampling, frame_stride=2)
    cache = FrameCache(tmp_path / "cache", encoding)
    cached = clips(samples, augmentation, frame_sampling=sampling, frame_stride=2, cache=cache)
    expected = [plain[epoch, 1] for epoch in range(4)]
    decoded.clear()
    for epoch in range(4):
        item = cached[epoch, 1]
        if encoding == "raw":
            assert_equal(item, expected[epoch])
        else:
            assert item["label"] == expected[epoch]["label"]
            assert (item["video"].int() - expected[epoch]["video"].int()).abs().float().mean() < 6
    assert decoded == {"1.mp4": 1}
    cached.frames.prepare(samples[1].path)  # finds the entry that training wrote
    assert decoded == {"1.mp4": 1}


def test_workers_read_the_same_items(samples):
    training = clips(samples, EVERYTHING)
    for epoch in range(2):
        loaders = []
        for workers in (0, 2):
            sampler = EpochSampler(6, 2, 0, 1, seed=0)
            sampler.set_epoch(epoch)
            loaders.append(make_training_loader(training, sampler, workers))
        for plain, parallel in zip(*loaders, strict=True):
            assert_equal(plain, parallel)


def test_processes_share_the_items_of_one(samples, tmp_path):
    run_as_group(2, write_share, samples, tmp_path)
    whole = [collate([clips(samples, EVERYTHING)[key] for key in keys]) for keys in EpochSampler(6, 6, 0, 1, seed=0)]
    shares = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    for number, batch in enumerate(whole):
        assert_equal({name: torch.cat([share[number][name] for share in shares]) for name in batch}, batch)


def write_share(samples: list[Sample], folder: Path) -> None:
    rank = int(os.environ["RANK"])
    sampler = EpochSampler(6, 3, rank, 2, seed=0)
    torch.save([collate([clips(samples, EVERYTHING)[key] for key in keys]) for keys in sampler], folder / f"{rank}.pt")


@pytest.mark.parametrize(
    ("augmentation", "settings", "message"),
    [
        (Augmentation(flip="plain"), {}, r"^--flip plain would mislabel clips, .*\(left / right\)"),
        (
            Augmentation(mixup_alpha=0.8),
            {"frame_sampling": "uniform"},
            "^--mixup_alpha .* pass --frame_sampling segment",
        ),
    ],
)
def test_what_would_mislabel_is_refused(samples, augmentation, settings, message):
    with pytest.raises(ValueError, match=message):
        clips(samples, augmentation, **settings)


def test_real_files_are_cropped(reference):
    """Check that whole frames of any shape, turned or interlaced, become clips."""
    files = sorted(p for p in (reference / "data" / "videos").iterdir() if p.suffix not in (".md", ".json", ".sh"))
    listed = [Sample(path.stem, path, (), label="left") for path in files]
    training = clips(listed, EVERYTHING)
    batch = collate([training[0, index] for index in range(len(files))])
    assert batch["video"].shape == (9, 4, 3, SIZE, SIZE)
    assert set(batch["label"].tolist()) == {0, 1}
