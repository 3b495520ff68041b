"""What is stored of a video: the right frames by time, small, the same bytes each time; damage is named."""

import io
import json
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dataloaders.samples import Sample
from dataloaders.video_file import VideoError
from preprocess.shard_clips import Storing, moments, small_size, store_clip
from tests.videos import cut, flag_rotation, frame_numbers, grey_ramp, write_damaged_video, write_video

H264 = Storing("h264", 3.0, 32, 12, "veryfast", False, 95, 0.05)
JPEG, ORIGINAL = replace(H264, store="jpeg"), replace(H264, store="original")


def sample(path: Path, start: float | None = None, end: float | None = None) -> Sample:
    return Sample(path.stem, path, ("a ü", "b"), start, end)


def decoded(content: bytes | Path) -> np.ndarray:
    assert isinstance(content, bytes)
    with av.open(io.BytesIO(content)) as container:
        assert container.streams.video[0].average_rate == 3
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def stored_frames(
    path: Path, storing: Storing = H264, start: float | None = None, end: float | None = None
) -> np.ndarray:
    """Return the frames that a sample stores, uint8 [T, H, W, 3]."""
    clip = store_clip(sample(path, start, end), storing)
    pictures = [content for extension, content in clip.members if extension != "json"]
    if storing.store == "h264":
        return decoded(pictures[0])
    return np.stack([cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR) for jpeg in pictures])  # type: ignore[arg-type]


@pytest.mark.parametrize("storing", [H264, JPEG], ids=["h264", "jpeg"])
def test_the_frame_in_the_middle_of_each_third_of_a_second(tmp_path, storing):
    path = write_video(tmp_path / "a.mp4", grey_ramp(50), fps=24)  # thirds of a second of 8 frames, and two more
    assert frame_numbers(stored_frames(path, storing)) == [4, 12, 20, 28, 36, 44]


def test_a_video_of_that_rate_keeps_each_frame(tmp_path):
    path = write_video(tmp_path / "a.mkv", grey_ramp(12, step=12))
    assert frame_numbers(stored_frames(path), step=12) == list(range(12))


@pytest.mark.parametrize(
    ("start", "end", "numbers"),
    [(1.0, 2.0, [28, 36, 44]), (None, 0.5, [4]), (1.5, None, [40, 48]), (0.5, 0.6, [13]), (1.0, 60, [28, 36, 44])],
)
def test_windows_of_time_are_cut(tmp_path, start, end, numbers):
    path = write_video(tmp_path / "a.mp4", grey_ramp(50), fps=24)
    assert frame_numbers(stored_frames(path, JPEG, start, end)) == numbers


def test_a_variable_rate_is_sampled_by_time(tmp_path):
    path = tmp_path / "a.mkv"
    times = [*range(0, 1000, 40), *range(1000, 3000, 200)]  # ms: 25 frames in the first second, then 5 a second
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25, options={"crf": "12", "bf": "0"})
        stream.height, stream.width, stream.pix_fmt = 32, 48, "yuv420p"
        for time, pixels in zip(times, grey_ramp(len(times)), strict=True):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts, frame.time_base = time, Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    middles = [(number + 0.5) / 3 for number in range(9)]
    expected = [max(i for i, time in enumerate(times) if time <= 1000 * middle) for middle in middles]
    assert frame_numbers(stored_frames(path))[:9] == expected


@pytest.mark.parametrize("size", [(64, 128, 32, 64), (128, 64, 64, 32), (24, 46, 24, 46), (33, 33, 32, 32)])
def test_sizes(tmp_path, size):
    height, width, small_height, small_width = size
    path = write_video(tmp_path / "a.mp4", grey_ramp(2, height, width), pixel_format="yuv444p")
    assert stored_frames(path).shape == (2, small_height, small_width, 3)


@given(st.integers(2, 3000), st.integers(2, 3000), st.integers(8, 500))
def test_a_small_size_keeps_the_shape(height, width, half):
    rows, columns = small_size(height, width, 2 * half)
    assert rows % 2 == columns % 2 == 0
    assert min(rows, columns) <= min(2 * half, min(height, width))
    assert abs(max(rows, columns) - min(rows, columns) * max(height, width) / min(height, width)) <= 1 + 1e-6
    assert (rows >= columns) == (height >= width) or rows == columns


def test_a_turned_video_is_stored_as_it_is_shown(tmp_path):
    frames = np.zeros((3, 64, 96, 3), np.uint8)
    frames[:, :32] = 230
    path = flag_rotation(write_video(tmp_path / "a.mp4", frames))
    shown = stored_frames(path)
    assert shown.shape == (3, 48, 32, 3)
    assert abs(float(shown[:, :, :14].mean()) - float(shown[:, :, -14:].mean())) > 150


@settings(max_examples=60)
@given(st.floats(0, 50), st.floats(0.01, 50), st.sampled_from([0.5, 1.0, 3.0, 10.0]))
def test_moments_lie_in_the_middles(start, length, fps):
    found = moments(start, start + length, fps)
    assert len(found) >= 1
    assert start <= found[0]
    assert found[-1] < start + length
    assert np.allclose(np.diff(found), 1 / fps)
    assert abs(len(found) - max(1, length * fps)) <= 0.5 + 1e-5


@pytest.mark.parametrize("storing", [H264, replace(H264, fast_decode=True), JPEG], ids=["h264", "fast", "jpeg"])
def test_the_same_bytes_each_time(tmp_path, storing):
    rng = np.random.default_rng(0)
    walk = rng.integers(0, 256, (1, 40, 70, 3)) + np.cumsum(rng.integers(-9, 10, (48, 40, 70, 3)), axis=0)
    path = write_video(tmp_path / "a.mp4", np.clip(walk, 0, 255).astype(np.uint8), fps=3)
    first = store_clip(sample(path), storing)
    for _ in range(3):
        assert store_clip(sample(path), storing) == first


def test_the_text_and_the_size_in_a_tar(tmp_path):
    path = write_video(tmp_path / "a.mp4", grey_ramp(4))
    clip = store_clip(sample(path), JPEG)
    assert [extension for extension, _ in clip.members] == ["000.jpg", "001.jpg", "002.jpg", "003.jpg", "json"]
    text = clip.members[-1][1]
    assert isinstance(text, bytes)
    assert json.loads(text) == {"video_id": "a", "captions": ["a ü", "b"], "fps": 3.0}
    assert clip.size == sum(512 + -(-len(content) // 512) * 512 for _, content in clip.members)  # type: ignore[arg-type]


def test_original_files(tmp_path):
    path = write_video(tmp_path / "a.MOV", grey_ramp(8), fps=12)
    clip = store_clip(sample(path), ORIGINAL)
    assert clip.members[1] == ("mov", path)
    text = clip.members[0][1]
    assert isinstance(text, bytes)
    assert json.loads(text)["fps"] == 12
    path.write_bytes(b"no video" * 100)
    with pytest.raises(VideoError, match=r"a\.MOV"):
        store_clip(sample(path), ORIGINAL)


def test_broken_videos_are_named(tmp_path):
    write_damaged_video(tmp_path / "damaged.mp4")
    whole = write_video(tmp_path / "whole.mp4", np.random.default_rng(0).integers(0, 256, (40, 32, 48, 3), np.uint8))
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "text.mp4").write_text("video_id,caption\n" * 50)
    for name in ("damaged", "empty", "text", "absent"):
        with pytest.raises(VideoError, match=rf"{name}\.mp4"):
            store_clip(sample(tmp_path / f"{name}.mp4"), H264)
    with pytest.raises(VideoError, match="cut off"):
        store_clip(sample(cut(whole, 0.85)), H264)
    assert len(stored_frames(cut(whole, 0.85), replace(H264, max_shortfall=0.2))) in range(30, 36)
    with pytest.raises(VideoError, match=r"no frame after 20 s"):
        store_clip(sample(whole, 20.0), H264)


def test_a_size_that_the_encoder_does_not_take(tmp_path):
    path = write_video(tmp_path / "a.mkv", grey_ramp(1, 16, 17000), codec="ffv1", pixel_format="yuv444p")
    with pytest.raises(VideoError, match=r"a\.mkv cannot be encoded"):
        store_clip(sample(path), H264)


@pytest.mark.parametrize(
    ("name", "frames", "size"),
    [
        ("decord__video_90.mov", 1, (114, 64)),  # of 0.1 s, turned
        ("mp4parser__MOV00006.3gp", 45, (64, 86)),  # of 15.04 s, gaps of several lengths, wide pixels
        ("torchcodec__discard_first_keyframe.mp4", 3, (64, 64)),  # of 1 s; an edit list hides more
    ],
)
def test_real_files(reference, name, frames, size):
    assert stored_frames(reference / "data/videos" / name, replace(JPEG, short_side=64)).shape == (frames, *size, 3)


@pytest.mark.parametrize(
    ("field", "value"),
    [("fps", 0), ("fps", 241), ("short_side", 31), ("short_side", 14), ("crf", 52), ("jpeg_quality", 0)],
)
def test_settings_out_of_range(field, value):
    with pytest.raises(ValueError, match=f"--{field} must be"):
        replace(H264, **{field: value})
