"""CLIP's preprocessing against torchvision, bit for bit."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dataloaders.transforms import CLIP_MEAN, CLIP_STD, INTERPOLATIONS, centre_crop, normalise, resize_and_crop, squash

v2 = pytest.importorskip("torchvision.transforms.v2")


def noise(n_frames: int, height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (n_frames, height, width, 3), dtype=np.uint8)


def by_torchvision(frames: np.ndarray, size: int) -> torch.Tensor:
    resize = v2.Resize(size, interpolation=v2.InterpolationMode.BICUBIC, antialias=True)
    return v2.CenterCrop(size)(resize(torch.from_numpy(frames).permute(0, 3, 1, 2)))


def assert_like_torchvision(height: int, width: int, size: int) -> None:
    frames = noise(2, height, width)
    video = resize_and_crop(frames, size)
    assert video.dtype == torch.uint8
    assert video.shape == (2, 3, size, size)
    assert video.is_contiguous()
    torch.testing.assert_close(video, by_torchvision(frames, size), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("height", "width"), [(240, 320), (320, 240), (224, 224), (225, 317), (720, 405), (224, 401), (100, 700)]
)
def test_video_sizes_as_met(height, width):
    assert_like_torchvision(height, width, 224)


@settings(max_examples=60)
@given(st.integers(1, 90), st.integers(1, 90), st.integers(1, 40))
def test_any_size(height, width, size):
    assert_like_torchvision(height, width, size)


@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
@settings(max_examples=30)
@given(st.integers(1, 90), st.integers(1, 90), st.integers(1, 40))
def test_any_size_in_every_way(interpolation, height, width, size):
    frames = noise(2, height, width)
    video, mode = torch.from_numpy(frames).permute(0, 3, 1, 2), v2.InterpolationMode(interpolation)
    whole = squash(frames, size, interpolation)
    assert whole.is_contiguous()
    assert torch.equal(whole, v2.Resize((size, size), interpolation=mode, antialias=True)(video))
    middle = v2.CenterCrop(size)(v2.Resize(size, interpolation=mode, antialias=True)(video))
    assert torch.equal(resize_and_crop(frames, size, interpolation), middle)


@settings(max_examples=40)
@given(st.integers(1, 90), st.integers(1, 90), st.integers(1, 40))
def test_resizing_without_antialiasing(height, width, size):
    """Compare with PySlowFast's way, which interpolates in fp32; uint8 rounds."""
    frames = noise(2, height, width)
    short = min(height, width)
    shape = size * height // short, size * width // short
    video = torch.from_numpy(frames).permute(0, 3, 1, 2).float()
    expected = v2.CenterCrop(size)(torch.nn.functional.interpolate(video, shape, mode="bilinear"))
    got = resize_and_crop(frames, size, "bilinear", antialias=False)
    assert got.dtype == torch.uint8
    assert (got - expected).abs().max() <= 1


def test_a_fitting_short_side_is_not_resampled():
    frames = noise(2, 32, 51)
    video = resize_and_crop(frames, 32)
    # 9.5 columns to cut off on the left; halves round to the even number
    assert (video.permute(0, 2, 3, 1).numpy() == frames[:, :, 10:42]).all()


@settings(max_examples=30)
@given(st.integers(0, 60), st.integers(0, 60), st.integers(1, 40))
def test_centre_crop_cuts_and_nothing_else(more_rows, more_columns, size):
    frames = noise(2, size + more_rows, size + more_columns)
    video = centre_crop(frames, size)
    assert video.is_contiguous()
    assert torch.equal(video, v2.CenterCrop(size)(torch.from_numpy(frames).permute(0, 3, 1, 2)))


@pytest.mark.parametrize("shape", [(3, 4, 5), (2, 3, 4, 5), (2, 6, 3, 4, 5)])
def test_normalise(shape):
    video = torch.from_numpy(np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8))
    untouched = video.clone()
    normalised = normalise(video)
    assert normalised.dtype == torch.float32
    expected = v2.functional.normalize(video.float() / 255, list(CLIP_MEAN), list(CLIP_STD))
    torch.testing.assert_close(normalised, expected, rtol=1e-6, atol=1e-6)
    assert torch.equal(video, untouched)


def test_normalise_with_other_statistics():
    video = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (2, 3, 4, 5), dtype=np.uint8))
    mean, std = (0.5, 0.25, 0.125), (0.5, 1.0, 2.0)
    expected = v2.functional.normalize(video.float() / 255, list(mean), list(std))
    torch.testing.assert_close(normalise(video, mean, std), expected, rtol=1e-6, atol=1e-6)
    assert not torch.equal(normalise(video), normalise(video, mean, std))


def test_normalise_by_hand():
    white = normalise(torch.full((3, 1, 1), 255, dtype=torch.uint8)).flatten()
    expected = [(1 - mean) / std for mean, std in zip(CLIP_MEAN, CLIP_STD, strict=True)]
    assert white.tolist() == pytest.approx(expected, rel=1e-6)


def test_clip_statistics():
    assert CLIP_MEAN == (0.48145466, 0.4578275, 0.40821073)
    assert CLIP_STD == (0.26862954, 0.26130258, 0.27577711)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_normalise_stays_on_its_device():
    video = torch.from_numpy(noise(2, 8, 8)).permute(0, 3, 1, 2)
    on_gpu = normalise(video.cuda())
    assert on_gpu.is_cuda
    torch.testing.assert_close(on_gpu.cpu(), normalise(video))
