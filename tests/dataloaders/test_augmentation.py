"""Augmentation of clips against torchvision, its draws, label maps, and mixing against a plain loop."""

import sys

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dataloaders.augmentation import GREY, Augmentation, drawing, mix_pairs
from dataloaders.classes import Classes
from tests.dataloaders.small_clips import waves

v2 = pytest.importorskip("torchvision.transforms.v2")
tv_tensors = pytest.importorskip("torchvision.tv_tensors")
F = v2.functional

SIZE = 32
SETTINGS = {
    "crop": Augmentation(crop_scale=0.5),
    "short side": Augmentation(short_side_max=40),
    "jitter": Augmentation(jitter_probability=0.8),
    "gray": Augmentation(gray_probability=0.5),
    "rand_augment": Augmentation(rand_augment_ops=4, rand_augment_magnitude=21),
    "erasing": Augmentation(erasing_probability=0.7),
    "all": Augmentation(0.5, "none", 0.5, 0.8, 0.2, 2, 9, 0.25),
}
CLASSES = Classes(
    ("left", "right", "jump", "turn", "nod"),
    ("to the left", "to the right", "jump", "turn", "nod"),
    {"left": "right", "right": "left", "turn": "turn_back", "turn_back": "turn"},
)


def clip(n_frames: int = 5, side: int = 48) -> torch.Tensor:
    return torch.from_numpy(waves(n_frames, side=side)).permute(0, 3, 1, 2)


def transformed(name: str, frames: torch.Tensor, seed: int) -> torch.Tensor:
    transform = SETTINGS[name].pixel_transform(SIZE)
    assert transform is not None
    return drawing(transform, frames, seed)


# ---- pixels ----


@pytest.mark.parametrize("name", SETTINGS)
def test_all_frames_get_the_same_draw(name):
    """Check that a clip becomes what its frames become one by one, under the same seed."""
    frames, n_changed = clip(), 0
    for seed in range(12):
        whole = transformed(name, frames, seed)
        assert whole.dtype == torch.uint8
        assert whole.shape == (5, 3, *((SIZE, SIZE) if SETTINGS[name].crops else frames.shape[2:]))
        for number in range(5):
            assert torch.equal(whole[number], transformed(name, frames[number : number + 1], seed)[0])
        n_changed += whole.shape != frames.shape or not torch.equal(whole, frames)
    assert n_changed >= 4


@pytest.mark.parametrize("name", SETTINGS)
def test_draws_depend_on_the_seed_alone_and_move_no_generator(name):
    frames = clip()
    torch.manual_seed(1)
    first, state = transformed(name, frames, 7), torch.get_rng_state()
    torch.manual_seed(1)
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(3)
    assert torch.equal(transformed(name, frames, 7), first)
    results = [transformed(name, frames, seed) for seed in range(20)]
    assert any(not torch.equal(result, results[0]) for result in results)


def test_the_crop_is_torchvision_s():
    frames = clip(3, 64)
    crop = v2.RandomResizedCrop(SIZE, scale=(0.5, 1.0))
    for seed in range(10):
        torch.manual_seed(seed)
        box = crop.make_params([frames])
        assert 0.45 < box["height"] * box["width"] / (64 * 80) <= 1
        expected = [
            F.resized_crop(frame, **box, size=[SIZE, SIZE], interpolation=v2.InterpolationMode.BICUBIC, antialias=True)
            for frame in frames
        ]
        assert torch.equal(transformed("crop", frames, seed), torch.stack(expected))


def test_the_jitter_is_torchvision_s():
    frames, n_changed = clip(), 0
    for seed in range(10):
        torch.manual_seed(seed)
        expected = frames
        if torch.rand(1) < 0.8:
            drawn = v2.ColorJitter(0.4, 0.4, 0.2, 0.1).make_params([frames])
            for step in drawn["fn_idx"].tolist():
                name = ("brightness", "contrast", "saturation", "hue")[step]
                expected = getattr(F, f"adjust_{name}")(expected, drawn[f"{name}_factor"])
            n_changed += 1
        assert torch.equal(transformed("jitter", frames, seed), expected)
    assert 4 < n_changed < 10


def test_gray_clips_have_no_colours():
    frames, outcomes = clip(), set()
    for seed in range(12):
        result = transformed("gray", frames, seed)
        is_gray = torch.equal(result, F.rgb_to_grayscale(frames, num_output_channels=3))
        assert is_gray or torch.equal(result, frames)
        outcomes.add(is_gray)
    assert outcomes == {True, False}


def test_one_rectangle_of_all_frames_is_erased():
    frames, outcomes = clip(), set()
    grey = torch.tensor(GREY, dtype=torch.uint8)[:, None, None]
    for seed in range(12):
        result = transformed("erasing", frames, seed)
        changed = (result != frames).any(dim=(0, 1))
        outcomes.add(bool(changed.any()))
        if changed.any():
            rows, columns = changed.any(1).nonzero(), changed.any(0).nonzero()
            box = (..., slice(int(rows[0]), int(rows[-1]) + 1), slice(int(columns[0]), int(columns[-1]) + 1))
            assert (result[box] == grey).all()
    assert outcomes == {True, False}


def test_rand_augment_is_torchvision_s():
    frames = clip()
    for seed in range(10):
        torch.manual_seed(seed)
        expected = v2.RandAugment(4, 21, interpolation=v2.InterpolationMode.BILINEAR, fill=GREY)(frames)
        assert torch.equal(transformed("rand_augment", frames, seed), expected)


def test_nothing_on_means_no_transform(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchvision.transforms", None)  # an import of it would fail
    assert Augmentation().pixel_transform(SIZE) is None
    assert Augmentation(flip="mapped", mixup_alpha=0.8).pixel_transform(SIZE) is None


# ---- flips ----


def test_flips_exchange_labels_both_ways():
    assert Augmentation(flip="mapped").label_after_flip(CLASSES).tolist() == [1, 0, 2, -1, 4]  # "turn_back" is absent
    assert Augmentation(flip="plain_despite_map").label_after_flip(CLASSES).tolist() == [0, 1, 2, 3, 4]
    for off in (
        Augmentation(),
        Augmentation(flip="mapped", flip_probability=0),
        Augmentation(flip="plain", flip_probability=0),
    ):
        assert off.label_after_flip(CLASSES).tolist() == [-1] * 5


def test_a_plain_flip_is_refused_where_it_would_mislabel():
    with pytest.raises(
        ValueError, match=r"^--flip plain would mislabel .*\(left / right, turn / turn_back\): pass --flip mapped\.$"
    ):
        Augmentation(flip="plain").label_after_flip(CLASSES)
    others = Classes(("jump", "nod"), ("jump", "nod"), CLASSES.mirrored | {"nod": "nod"})
    assert Augmentation(flip="plain").label_after_flip(others).tolist() == [0, 1]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"flip": "yes"}, r"--flip is 'yes': pass one of none, mapped, plain, plain_despite_map\."),
        ({"crop_scale": 0.0}, "--crop_scale is 0.0: pass a share of the area, above 0"),
        ({"crop_scale": 1.5}, "--crop_scale is 1.5"),
        ({"crop_scale": float("nan")}, "--crop_scale is nan"),
        ({"flip_probability": 2.0}, "--flip_probability is 2.0: pass a probability"),
        ({"jitter_probability": -0.1}, "--jitter_probability is -0.1"),
        ({"gray_probability": float("nan")}, "--gray_probability is nan"),
        ({"erasing_probability": 1.1}, "--erasing_probability is 1.1"),
        ({"rand_augment_ops": -1}, "--rand_augment_ops is -1"),
        (
            {"rand_augment_magnitude": 31},
            "--rand_augment_ops is 0 and --rand_augment_magnitude 31: pass .* from 0 to 30",
        ),
        ({"mixup_alpha": -1.0}, "--mixup_alpha is -1.0: pass 0"),
        ({"cutmix_alpha": float("inf")}, "--cutmix_alpha is inf"),
    ],
)
def test_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        Augmentation(**settings)


# ---- mixing ----


def batch(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    video = torch.randint(256, (count, 2, 3, 8, 8), dtype=torch.uint8, generator=generator)
    return video, torch.randint(4, (count,), generator=generator)


def draws(augmentation: Augmentation, count: int, seed: int = 0, size: int = 8) -> torch.Tensor:
    generator = np.random.default_rng(seed)
    return torch.stack([augmentation.draw_mixing(size, generator) for _ in range(count)])


BOTH = Augmentation(mixup_alpha=0.8, cutmix_alpha=1.0)


@given(st.integers(1, 7), st.integers(0, 50))
def test_pairs_are_mixed_as_a_plain_loop_mixes_them(count, seed):
    video, label = batch(count)
    mixing = draws(BOTH, count, seed)
    mixed, targets = mix_pairs(video, label, mixing, 4)
    expected, expected_targets = video.double(), torch.zeros(count, 4, dtype=torch.float64)
    for row in range(count):
        other = row + 1 if row % 2 == 0 else row - 1
        if other == count:
            other = row
        weight, *box = mixing[min(row, other)].tolist()
        top, bottom, left, right = map(int, box)
        shares = torch.full((8, 8), weight, dtype=torch.float64)
        shares[top:bottom, left:right] = 0
        expected[row] = shares * video[row] + (1 - shares) * video[other]
        expected_targets[row, label[row]] += shares.mean()
        expected_targets[row, label[other]] += 1 - shares.mean()
    assert mixed.dtype == torch.uint8
    assert (mixed.double() - expected).abs().max() <= 0.5 + 1e-3
    torch.testing.assert_close(targets.double(), expected_targets, atol=1e-6, rtol=0)
    if count % 2:
        assert torch.equal(mixed[-1], video[-1])


def test_shares_and_parts_of_a_batch_are_mixed_like_the_whole():
    video, label = batch(12)
    mixing = draws(BOTH, 12)
    whole = mix_pairs(video, label, mixing, 4)
    for parts in (2, 3, 6):
        shares = zip(*(tensor.chunk(parts) for tensor in (video, label, mixing)), strict=True)
        for got, wanted in zip(zip(*(mix_pairs(*share, 4) for share in shares), strict=True), whole, strict=True):
            assert torch.equal(torch.cat(got), wanted)


@pytest.mark.parametrize("name", ["MixUp", "CutMix"])
def test_a_pair_is_mixed_like_torchvision_s(name):
    """Compare on one pair, where torchvision's partner, the clip before, is ours."""
    augmentation = Augmentation(mixup_alpha=0.8) if name == "MixUp" else Augmentation(cutmix_alpha=1.0)
    video, label = batch(2)
    for seed in range(10):
        mixing = draws(augmentation, 2, seed)
        weight, top, bottom, left, right = mixing[0].tolist()
        transform = getattr(v2, name)(num_classes=4)
        share = weight if name == "MixUp" else 1 - (bottom - top) * (right - left) / 64
        drawn = {
            "labels": label, "batch_size": 2, "lam": share, "lam_adjusted": share,
            "box": tuple(map(int, (left, top, right, bottom))),
        }  # fmt: skip
        expected = transform.transform(tv_tensors.Video(video.float()), drawn)
        mixed, targets = mix_pairs(video, label, mixing, 4)
        assert (mixed.float() - expected).abs().max() <= 0.5 + 1e-3
        torch.testing.assert_close(targets, transform.transform(label, drawn).float(), atol=1e-6, rtol=0)


def test_draws_of_mixing_are_those_of_the_papers():
    mixup = draws(Augmentation(mixup_alpha=0.8), 4000)
    assert not mixup[:, 1:].any()
    assert mixup[:, 0].mean().item() == pytest.approx(0.5, abs=0.02)
    assert mixup[:, 0].var().item() == pytest.approx(1 / (4 * (2 * 0.8 + 1)), rel=0.05)
    cutmix = draws(Augmentation(cutmix_alpha=1.0), 4000, size=64)
    assert (cutmix[:, 0] == 1).all()
    top, bottom, left, right = cutmix[:, 1:].T
    assert ((top >= 0) & (bottom <= 64) & (left >= 0) & (right <= 64) & (top <= bottom) & (left <= right)).all()
    inner = (top > 0) & (bottom < 64) & (left > 0) & (right < 64)  # boxes that no border cuts
    assert torch.equal((bottom - top)[inner], (right - left)[inner])
    both = draws(BOTH, 2000)
    assert (both[:, 0] == 1).float().mean().item() == pytest.approx(0.5, abs=0.05)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_pairs_are_mixed_on_their_device():
    video, label = batch(5)
    mixing = draws(BOTH, 5)
    mixed, targets = mix_pairs(video.cuda(), label.cuda(), mixing.cuda(), 4)
    assert mixed.is_cuda
    expected, expected_targets = mix_pairs(video, label, mixing, 4)
    assert (mixed.cpu().int() - expected.int()).abs().max() <= 1
    torch.testing.assert_close(targets.cpu(), expected_targets)
