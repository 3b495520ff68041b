"""Views of videos: which frames and which squares, against slices of the whole decoded video."""

import pickle
import weakref
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from dataloaders import frames as frames_module
from dataloaders.cache import FrameCache
from dataloaders.datasets import GalleryVideos, ViewedVideos, make_evaluation_loader
from dataloaders.decode import read_frames
from dataloaders.frame_sampling import (
    dense_views,
    released_views,
    segment_views,
    slowfast_views,
    stan_views,
    uniform_views,
)
from dataloaders.frames import FrameReader
from dataloaders.samples import Sample
from dataloaders.views import Views, squares
from tests.dataloaders.small_clips import waves
from tests.videos import cut, grey_ramp, noise, write_video

v2 = pytest.importorskip("torchvision.transforms.v2")

SIZE, FRAMES, STRIDE = 32, 4, 3
SAMPLINGS = ("uniform", "segment", "released", "dense", "slowfast", "stan")
OTHERS = ("uniform", "released", "dense", "slowfast")


def reader(sampling: str = "segment", **settings) -> FrameReader:
    return FrameReader(FRAMES, SIZE, sampling, **{"frame_stride": STRIDE} | settings)


def clips_of(sampling: str, n: int, fps: float, n_clips: int) -> np.ndarray:
    """Return the positions of the frames of each clip, int64 [V, K]."""
    if sampling == "dense":
        return dense_views(n, FRAMES, STRIDE, n_clips)
    if sampling == "slowfast":
        return slowfast_views(n, fps, FRAMES, STRIDE, n_clips)
    placed = {"uniform": uniform_views, "segment": segment_views, "released": released_views, "stan": stan_views}
    return placed[sampling](n, FRAMES, n_clips)


def by_slices(
    path: Path, sampling: str, views: Views, start: float | None = None, end: float | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Decode the whole video, and slice it view by view, frame by frame, each resized with torchvision."""
    read = read_frames(path, lambda n, fps: np.arange(n), start=start, end=end, square_pixels=True)
    whole, fps = read.frames, read.fps
    whole = torch.from_numpy(whole).permute(0, 3, 1, 2)
    resize = v2.Resize(SIZE, interpolation=v2.InterpolationMode.BICUBIC, antialias=True)
    height, width = resize(whole[:1]).shape[-2:]
    video = torch.zeros(len(views), FRAMES, 3, SIZE, SIZE, dtype=torch.uint8)
    frame_mask = torch.zeros(len(views), FRAMES, dtype=torch.bool)
    for clip, positions in enumerate(clips_of(sampling, len(whole), fps, views.temporal)):
        for square in range(views.spatial):
            place = 0.5 if views.spatial == 1 else square / 2
            top = round((height - SIZE) / 2) if width >= height else round((height - SIZE) * place)
            left = round((width - SIZE) * place) if width >= height else round((width - SIZE) / 2)
            for number, position in enumerate(positions.tolist()):
                row = clip * views.spatial + square
                video[row, number] = resize(whole[position])[:, top : top + SIZE, left : left + SIZE]
                frame_mask[row, number] = True
    return video, frame_mask


@pytest.mark.parametrize("text", ["1x1", "3x1", "1x3", "10x3"])
def test_views_are_read_from_text(text):
    views = Views.parse(text)
    assert str(views) == text
    assert len(views) == views.temporal * views.spatial
    assert views == Views(*map(int, text.split("x")))


@pytest.mark.parametrize("text", ["", "3", "3x", "x3", "3x1x1", "3 x 1", "-1x1", "3X1", "٣x1", "1e1x1", "99999x1"])
def test_other_texts_are_no_views(text):
    with pytest.raises(ValueError, match=r"^--test_views is '.*': pass CLIPSxSQUARES, such as 1x1, 3x1 or 4x3\.$"):
        Views.parse(text)


@pytest.mark.parametrize("text", ["0x1", "3x0", "3x2", "1x5", "101x1", "9999x3"])
def test_impossible_numbers_of_views_are_refused(text):
    with pytest.raises(ValueError, match=rf"^--test_views is {text}: pass .*1 to 100 clips and 1 or 3 squares"):
        Views.parse(text)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"frame_sampling": "uniform", "slice_framepos": 0, "views": Views(3, 1)}, "3x1 .* pass --slice_framepos 2"),
        ({"resize_mode": "squash", "views": Views(1, 3)}, "--test_views 1x3 .* squashed to a square: pass 1 square"),
        ({"frame_sampling": "dense", "frame_stride": 0}, "--frame_stride is 0: pass 1 .* or more"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        FrameReader(FRAMES, SIZE, **settings)


@pytest.mark.parametrize(("height", "width"), [(4, 10), (10, 4), (4, 4), (5, 9)])
def test_three_squares_lie_along_the_long_side(height, width):
    frames = torch.arange(2 * 3 * height * width).view(2, 3, height, width)
    first, middle, last = squares(frames, 4, 3)
    assert torch.equal(middle, squares(frames, 4, 1)[0])
    if width >= height:
        top = round((height - 4) / 2)
        assert torch.equal(first, frames[..., top : top + 4, :4])
        assert torch.equal(last, frames[..., top : top + 4, -4:])
    else:
        assert torch.equal(first, frames[..., :4, :])
        assert torch.equal(last, frames[..., -4:, :])


@pytest.mark.parametrize("views", ["1x1", "4x3"])
@pytest.mark.parametrize("sampling", SAMPLINGS)
@pytest.mark.parametrize("n_frames", [1, 3, 25])
def test_views_are_slices_of_the_decoded_video(tmp_path, decoded, sampling, n_frames, views):
    path = write_video(tmp_path / "a.mp4", waves(n_frames))
    videos = ViewedVideos([Sample("a", path, ())], reader(sampling), Views.parse(views))
    item = videos[0]
    expected, frame_mask = by_slices(path, sampling, Views.parse(views))
    assert torch.equal(item["video"], expected)
    assert torch.equal(item["frame_mask"], frame_mask)
    assert (item["index"], videos.video_id(0), len(videos)) == (0, "a", 1)
    assert decoded == {"a.mp4": 1}


@pytest.mark.parametrize("frame_transform", ["resize", "crop"])
@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_one_view_is_what_the_gallery_has(tmp_path, sampling, frame_transform):
    samples = [
        Sample("a", write_video(tmp_path / "a.mp4", waves(25)), ()),
        Sample("b", tmp_path / "a.mp4", (), start=1.0, end=2.0),
    ]
    frames = reader(sampling, frame_transform=frame_transform)
    for index in range(2):
        item, viewed = GalleryVideos(samples, frames)[index], ViewedVideos(samples, frames, Views())[index]
        assert torch.equal(viewed["video"], item["video"][None])
        assert torch.equal(viewed["frame_mask"], item["frame_mask"][None])


def test_views_come_from_the_window_only(tmp_path):
    path = write_video(tmp_path / "a.mp4", waves(25), fps=5)
    for sampling in SAMPLINGS:
        video, _ = reader(sampling, views=Views(3, 3)).read_views(path, 1.0, 4.0)
        assert torch.equal(video, by_slices(path, sampling, Views(3, 3), 1.0, 4.0)[0])


def test_squares_of_uncut_frames(tmp_path):
    """Check that --frame_transform crop takes three squares without resizing."""
    frames = grey_ramp(4, SIZE, 64)
    frames[:, :, :16], frames[:, :, 48:] = 0, 255
    path = write_video(tmp_path / "a.mp4", frames)
    video, _ = reader(frame_transform="crop", views=Views(1, 3)).read_views(path)
    assert video[0, ..., :12].max() < 40
    assert video[1].min() > 12
    assert video[1].max() < 60
    assert video[2, ..., 20:].min() > 215


@pytest.mark.parametrize("views", ["1x1", "4x3"])
@pytest.mark.parametrize("sampling", SAMPLINGS)
@pytest.mark.parametrize("n_frames", [3, 25])
def test_cached_views_are_the_same(tmp_path, decoded, sampling, n_frames, views):
    path = write_video(tmp_path / "a.mp4", waves(n_frames))
    plain = reader(sampling, views=Views.parse(views))
    cached = replace(plain, cache=FrameCache(tmp_path / "cache"))
    expected = plain.read_views(path)
    cached.prepare(path)
    assert cached.cache_place(path).is_file()
    decoded.clear()
    for _ in range(2):
        for got, wanted in zip(cached.read_views(path), expected, strict=True):
            assert torch.equal(got, wanted)
    assert decoded == {}


def test_jpeg_views_are_nearly_the_same(tmp_path):
    path = write_video(tmp_path / "a.mp4", waves(25))
    plain = reader(views=Views(3, 3))
    video, _ = replace(plain, cache=FrameCache(tmp_path / "cache", "jpeg")).read_views(path)
    assert (video.int() - plain.read_views(path)[0].int()).abs().float().mean() < 4


@pytest.mark.parametrize("is_cached", [False, True])
def test_views_of_a_video_that_ends_early_are_placed_by_the_frames_that_it_has(tmp_path, is_cached):
    path = cut(write_video(tmp_path / "a.mp4", noise(40)), 0.85)
    counts = []
    read_frames(path, lambda n, fps: counts.append(n) or [n - 1])
    assert 40 == counts[0] > counts[1] > 30
    views = Views(10, 1)  # of 40 frames; fewer are repeated
    cache = FrameCache(tmp_path / "cache") if is_cached else None
    for sampling in SAMPLINGS:
        video, _ = reader(sampling, cache=cache, views=views).read_views(path)
        assert torch.equal(video, by_slices(path, sampling, views)[0])


def test_entries_are_named_by_their_views_and_older_ones_keep_their_names(tmp_path):
    path = write_video(tmp_path / "a.mp4", waves(25))
    named = {
        "segment 4, 0 fps, resize to 32": reader(),
        "segment 4 in 3 clips, 0 fps, resize to 32": reader(views=Views(3, 1)),
        "segment 4, 0 fps, resize whole to 32": reader(views=Views(1, 3)),
        "uniform 4 slice_framepos 2 in 3 clips, 0 fps, crop whole to 32": reader(
            "uniform", frame_transform="crop", views=Views(3, 3)
        ),
        "dense 4 stride 3, 0 fps, resize to 32": reader("dense"),
        "every candidate, 0 fps, resize to 32": reader("dense", training=True),
        "every candidate, 0 fps, resize bilinear whole with a margin to 32": reader(
            training=True, whole=True, interpolation="bilinear", resize_mode="shortest"
        ),
    }
    for text, frames in named.items():
        name = text.replace("resize bilinear", "resize shortest bilinear")
        assert frames._stored_frames == name
    places = {replace(frames, cache=FrameCache(tmp_path)).cache_place(path) for frames in named.values()}
    assert len(places) == len(named)


@pytest.mark.parametrize("sampling", ["segment", *(pytest.param(name, marks=pytest.mark.slow) for name in OTHERS)])
def test_views_of_real_files(reference, decoded, sampling):
    folder = reference / "data" / "videos"
    files = sorted(path for path in folder.iterdir() if path.suffix not in (".md", ".json", ".sh"))
    assert len(files) == 9
    videos = ViewedVideos([Sample(path.stem, path, ()) for path in files], reader(sampling), Views(3, 3))
    for row, path in enumerate(files):
        item, (expected, frame_mask) = videos[row], by_slices(path, sampling, Views(3, 3))
        assert torch.equal(item["video"], expected), path
        assert torch.equal(item["frame_mask"], frame_mask), path
    assert decoded == {path.name: 1 for path in files}


def test_workers_read_the_same_views(data):
    videos = ViewedVideos(data, reader(), Views(3, 3))
    assert pickle.loads(pickle.dumps(videos))[0].keys() == videos[0].keys()
    loaders = [make_evaluation_loader(videos, 2, [4, 0, 3], workers) for workers in (0, 2)]
    for plain, parallel in zip(*loaders, strict=True):
        assert plain["video"].shape[1:] == (9, FRAMES, 3, SIZE, SIZE)
        assert plain.keys() == parallel.keys()
        assert all(torch.equal(plain[name], parallel[name]) for name in plain)


def test_no_pixels_stay_behind(tmp_path, monkeypatch):
    """Count the arrays of decoded frames, and the views made of them, over many videos: the memory stays flat."""
    decoded, viewed, most = [], [], 0

    def watched(*args, **settings):
        read = read_frames(*args, **settings)
        decoded.append(weakref.ref(read.frames))
        return read

    monkeypatch.setattr(frames_module, "read_frames", watched)
    path = write_video(tmp_path / "a.mp4", waves(12))
    videos = ViewedVideos([Sample(str(row), path, ()) for row in range(100)], reader(), Views(3, 3))
    for row in range(100):
        viewed.append(weakref.ref(videos[row]["video"]))
        most = max(most, sum(array() is not None for array in decoded + viewed))
    assert len(decoded) == 100
    assert most == 0
