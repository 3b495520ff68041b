"""Random crops of training pairs, and squares cut out of frames with a longer short side than CLIP's."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from dataloaders.augmentation import Augmentation
from dataloaders.cache import FrameCache
from dataloaders.datasets import GalleryVideos, TrainingPairs
from dataloaders.decode import read_frames
from dataloaders.frames import FrameReader
from dataloaders.samples import Sample
from dataloaders.views import Views
from tests.dataloaders.small_clips import waves
from tests.videos import write_video

v2 = pytest.importorskip("torchvision.transforms.v2")

SIDE = 32  # of CLIP, of videos of 64 x 80 pixels
READER = FrameReader(4, SIDE, "segment", training=True, frame_transform="bilinear", short_side=40)
CROPS = Augmentation(crop_scale=0.08)


@pytest.fixture(scope="module")
def samples(tmp_path_factory) -> list[Sample]:
    folder = tmp_path_factory.mktemp("videos")
    paths = [write_video(folder / f"{n}.mp4", waves(9, seed=n)) for n in range(2)]
    return [Sample(path.stem, path, ("one", "two")) for path in paths]


def pairs(samples: list[Sample], augmentation: Augmentation | None, frames: FrameReader = READER) -> TrainingPairs:
    return TrainingPairs(
        samples, lambda text: torch.tensor([[len(text)]]), frames, False, seed=3, augmentation=augmentation
    )


def decoded_frames(sample: Sample) -> torch.Tensor:
    read = read_frames(sample.path, lambda n, fps: np.arange(n), square_pixels=True)
    return torch.from_numpy(read.frames).permute(0, 3, 1, 2)


def test_one_crop_for_the_whole_clip(samples):
    """Repeat the draws by hand: of the caption, the frames and the crop, by torchvision's parameters."""
    items = pairs(samples, CROPS)
    boxes = set()
    for epoch in range(5):
        item = items[epoch, 1]
        generator = np.random.default_rng([3, epoch, 1])
        generator.integers(2)
        positions = [int(9 * (i + u) / 4) for i, u in enumerate(generator.random(4))]
        bilinear = v2.InterpolationMode.BILINEAR
        frames = v2.Resize(40, interpolation=bilinear, antialias=False)(decoded_frames(samples[1])[positions])
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(generator.integers(2**63)))
            crop = v2.RandomResizedCrop(SIDE, (0.08, 1.0), interpolation=bilinear, antialias=False)
            box = crop.make_params([frames])
        expected = v2.functional.resized_crop(frames, **box, size=[SIDE, SIDE], interpolation=bilinear, antialias=False)
        assert item["video"].equal(expected)
        boxes.add(tuple(box.values()))
    assert len(boxes) == 5


def test_an_item_depends_on_seed_epoch_and_index_alone(samples, tmp_path):
    first, state = [pairs(samples, CROPS)[epoch, 1] for epoch in range(3)], torch.get_rng_state()
    cached = pairs(samples, CROPS, replace(READER, cache=FrameCache(tmp_path)))
    torch.rand(3)
    for _ in range(2):
        for epoch in (2, 0, 1):
            item = cached[epoch, 1]
            assert item["video"].equal(first[epoch]["video"])
            assert item["token_ids"].equal(first[epoch]["token_ids"])
    assert not first[0]["video"].equal(first[1]["video"])
    torch.set_rng_state(state)


def test_without_crops_nothing_else_is_drawn(samples):
    plain = replace(READER, short_side=0)
    for epoch in range(3):
        one, other = (pairs(samples, augmentation, plain)[epoch, 0] for augmentation in (None, Augmentation()))
        assert one["video"].equal(other["video"])
    cropped, usual = pairs(samples, CROPS)[1, 0], pairs(samples, None)[1, 0]
    assert cropped["token_ids"].equal(usual["token_ids"])  # the crop is drawn last


def test_padding_is_not_cropped(samples):
    uniform = FrameReader(12, SIDE, training=True)
    item = pairs(samples, CROPS, uniform)[0, 0]
    assert item["frame_mask"].tolist() == [True] * 9 + [False] * 3
    assert item["video"].shape == (12, 3, SIDE, SIDE)
    assert (item["video"][9:] == 0).all()


@pytest.mark.parametrize("augmentation", [Augmentation(flip="plain"), Augmentation(mixup_alpha=1.0)])
def test_captions_stay_true(samples, augmentation):
    with pytest.raises(AssertionError, match="captions"):
        pairs(samples, augmentation)


@pytest.mark.parametrize(("transform", "antialias"), [("resize", True), ("bilinear", False)])
def test_the_middle_square_of_larger_frames(samples, transform, antialias):
    """Check evaluation as DiDeMo's in STAN's release: another short side, then the middle square; and three squares."""
    reader = FrameReader(3, SIDE, "segment", frame_transform=transform, interpolation="bilinear", short_side=40)
    resized = v2.Resize(40, interpolation=v2.InterpolationMode.BILINEAR, antialias=antialias)(
        decoded_frames(samples[0])[[1, 4, 7]]
    )
    video = GalleryVideos(samples, reader)[0]["video"]
    assert video.equal(v2.CenterCrop(SIDE)(resized))
    assert not video.equal(replace(reader, short_side=0)(samples[0].path)[0])
    three, _ = replace(reader, views=Views(1, 3)).read_views(samples[0].path)
    assert three[0].equal(resized[..., 4:36, :SIDE])
    assert three[1].equal(video)


def test_the_short_side_is_in_the_name_of_a_cache_entry(samples, tmp_path):
    reader = FrameReader(3, SIDE, cache=FrameCache(tmp_path))
    places = {replace(reader, short_side=side).cache_place(samples[0].path) for side in (0, 32, 40)}
    assert len(places) == 3
    assert reader._stored_frames == "uniform 3 slice_framepos 2, 0 fps, resize to 32"


@pytest.mark.parametrize("settings", [{"short_side": 31}, {"frame_transform": "crop"}, {"resize_mode": "squash"}])
def test_impossible_short_sides_are_refused(settings):
    with pytest.raises(ValueError, match=r"^A short side of \d+ does not fit: pass 32 or more"):
        FrameReader(**{"max_frames": 3, "image_size": SIDE, "short_side": 40} | settings)
    if "resize_mode" in settings:
        assert FrameReader(3, SIDE, short_side=40, whole=True, training=True, **settings).short_side == 40
