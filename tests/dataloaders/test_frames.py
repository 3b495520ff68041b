"""From a video file, or a window of time in it, to the frames that a model sees."""

import numpy as np
import pytest
import torch

from dataloaders.decode import VideoError
from dataloaders.frames import FrameReader
from tests.dataloaders.small_clips import numbers
from tests.videos import grey_ramp, write_video


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


def test_dense_frames(data, tmp_path):
    reader = FrameReader(max_frames=4, image_size=32, frame_sampling="dense", frame_stride=3)
    assert numbers(reader(data[0].path)[0]) == [5, 8, 11, 14]
    assert numbers(reader(data[0].path, start=1.0, end=3.4)[0]) == [6, 9, 12, 15]
    training = FrameReader(max_frames=4, image_size=32, frame_sampling="dense", frame_stride=3, training=True)
    drawn = [numbers(training(data[0].path, np.random.default_rng(seed))[0]) for seed in range(6)]
    assert len({tuple(draw) for draw in drawn}) > 1
    assert all(np.diff(draw).tolist() == [3, 3, 3] for draw in drawn)
    short = write_video(tmp_path / "short.mp4", grey_ramp(5))
    for how in (reader, training):
        video, frame_mask = how(short, np.random.default_rng(0))
        assert numbers(video) == [0, 3, 4, 4]
        assert frame_mask.all()


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
        ({"frame_transform": "pad"}, "--frame_transform is 'pad': pass one of resize, crop, bilinear"),
        ({"feature_framerate": -1.0}, "--feature_framerate is -1"),
        ({"feature_framerate": float("nan")}, "--feature_framerate is nan"),
        ({"slice_framepos": 3}, "--slice_framepos is 3"),
        ({"frame_stride": 0}, "--frame_stride is 0"),
    ],
)
def test_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        FrameReader(**{"max_frames": 4, "image_size": 32, **settings})


def test_a_video_without_frame_rate_cannot_be_thinned_out(data, monkeypatch):
    monkeypatch.setattr("dataloaders.decode.stated_rate", lambda capture: 0.0)
    with pytest.raises(VideoError, match=r"video0\.mp4 states no frame rate"):
        FrameReader(4, 32, feature_framerate=1.0)(data[0].path)
    assert FrameReader(4, 32)(data[0].path)[1].all()
    with pytest.raises(VideoError, match="states no frame rate, so that seconds"):
        FrameReader(4, 32)(data[0].path, start=1.0)


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
def test_frames_come_from_the_window_only(data, start, end, expected):
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


@pytest.mark.parametrize("frame_transform", ["resize", "crop"])
def test_a_still_picture_is_a_clip_in_which_nothing_moves(tmp_path, frame_transform):
    picture = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    reader = FrameReader(4, 32, frame_transform=frame_transform)
    video, frame_mask = reader.still(picture, tmp_path / "a.png")
    assert video.shape == (4, 3, 32, 32)
    assert frame_mask.all()
    assert (video == video[:1]).all()
    assert (video[0].numpy() == reader.picture(picture, tmp_path / "a.png")).all()
