"""Frames that nobody asked for are left out only where the others stay exactly the same.

Shapes: T frames, H x W pixels.
"""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dataloaders import decode, skipping
from dataloaders.decode import VideoError, Window, read_frames, read_windows
from dataloaders.frames import FrameReader
from tests.ffmpeg_files import X264, ffmpeg, ffmpeg_frames, moving, write

X265 = ("-c:v", "libx265", "-pix_fmt", "yuv420p", "-tag:v", "hvc1", "-x265-params")
FORCED = ("-bf", "3", "-b_strategy", "0")  # three B frames in a row, whatever the picture
T = 60

# Files of which frames can be left out.
SKIPPED = {
    "one B frame.mp4": (*X264, "-bf", "1"),
    "no pyramid.mp4": (*X264, *FORCED, "-x264-params", "b-pyramid=none"),
    "strict pyramid.mp4": (*X264, *FORCED, "-x264-params", "b-pyramid=strict"),
    "pyramid.mkv": (*X264, "-bf", "7", "-b_strategy", "0", "-x264-params", "b-pyramid=normal:ref=8"),
    "open groups.mp4": (*X264, *FORCED, "-g", "12", "-x264-params", "open-gop=1"),
    "intra refresh.mp4": (*X264, *FORCED, "-g", "20", "-x264-params", "intra-refresh=1"),
    "slices and headers.ts": (*X264, *FORCED, "-g", "12", "-x264-params", "slices=3:repeat-headers=1"),
    "start codes.ts": (*X264, *FORCED),
    "fragments.mp4": (*X264, *FORCED, "-movflags", "frag_keyframe+empty_moov"),
    "half.flv": (*X264, *FORCED),
    "hevc.mp4": (*X265, "log-level=error:bframes=3:b-adapt=0"),
    "hevc open groups.mkv": (*X265, "log-level=error:keyint=12:open-gop=1"),
    "hevc start codes.ts": (*X265, "log-level=error:keyint=12"),
}
# Files of which none are.
WHOLE = {
    "no B frame.mp4": (*X264, "-bf", "0"),
    "interlaced.mp4": (*X264, *FORCED, "-x264opts", "tff=1"),
    "uneven.mp4": (*X264, *FORCED, "-vf", "setpts=(N+3*floor(N/4))/5/TB", "-fps_mode", "passthrough"),
    "no times.h264": (*X264, *FORCED),
    "guessed times.avi": (*X264, *FORCED),
    "layers.mp4": (*X265, "log-level=error:temporal-layers=3"),
    "part 2.mp4": ("-c:v", "mpeg4", "-bf", "2"),
    "part 2.avi": ("-c:v", "mpeg4", "-bf", "2"),
    "mpeg2.ts": ("-c:v", "mpeg2video", "-bf", "2", "-r", "25"),
    "motion jpeg.avi": ("-c:v", "mjpeg", "-pix_fmt", "yuvj420p"),
    "vp9.webm": ("-c:v", "libvpx-vp9", "-deadline", "realtime", "-cpu-used", "8"),
}
# Files whose kinds of frames and container others have too.
SLOW = {
    "no pyramid.mp4", "pyramid.mkv", "intra refresh.mp4", "fragments.mp4", "half.flv", "hevc.mp4", "part 2.mp4",
    "mpeg2.ts", "motion jpeg.avi",
}  # fmt: skip


def every_frame(n_frames: int, fps: float) -> range:
    return range(n_frames)


@pytest.fixture
def skipped(monkeypatch) -> list[int]:
    """Collect the numbers of the frames that are left out, in the order of decoding."""
    numbers: list[int] = []

    class Watched(skipping.Skipping):
        def send(self, packet):
            super().send(packet)
            if self._is_skipping:
                numbers.append(self._count(packet.pts))

    monkeypatch.setattr(decode, "Skipping", Watched)
    return numbers


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("skipping")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * (name in SLOW)) for name in (*SKIPPED, *WHOLE)]
)
def test_chosen_frames_are_those_of_a_decoder_that_leaves_none_out(folder, name, skipped):
    path = write(folder / name, moving(T), *(SKIPPED | WHOLE)[name])
    every = read_frames(path, every_frame).frames
    assert skipped == []
    if name != "interlaced.mp4":  # versions of FFmpeg place the colours of fields differently
        assert np.array_equal(every, ffmpeg_frames(path, 48, 64))
    choices = [np.array([0, len(every) - 1]), np.array([30, 30]), np.linspace(0, len(every) - 1, 12).astype(int)]
    choices += [np.sort(np.random.default_rng(seed).integers(0, len(every), 5)) for seed in range(4)]
    for numbers in choices:
        skipped.clear()
        found = read_frames(path, lambda n, fps, numbers=numbers: numbers)
        assert found.n_frames == len(every)
        assert np.array_equal(found.frames, every[numbers])
        assert not set(skipped) & set(numbers.tolist())
        if numbers[-1] == len(every) - 1:
            assert bool(skipped) == (name in SKIPPED)
    if name in SKIPPED or name == "uneven.mp4":
        for start, end in ((2.0, 7.3), (None, 4.0), (8.0, None)):
            window = read_frames(path, every_frame, start=start, end=end).frames
            ends = read_frames(path, lambda n, fps: [0, n // 2, n - 1], start=start, end=end).frames
            assert np.array_equal(ends, window[[0, len(window) // 2, -1]])


def test_a_thorough_reading_leaves_nothing_out(folder, skipped, decoded_frames):
    path = write(folder / "thorough.mp4", moving(T), *X264, *FORCED)
    read_frames(path, lambda n, fps: [0, n - 1], thorough=True)
    assert len(decoded_frames) == T
    FrameReader(3, 32).prepare(path)
    assert len(decoded_frames) == 2 * T
    assert skipped == []
    FrameReader(3, 32)(path)
    assert len(decoded_frames) + len(skipped) == 3 * T
    assert len(skipped) > T / 4


def test_two_recordings_joined(folder, skipped):
    """Times begin anew, where the frames of the second recording would get the numbers of the first."""
    part = write(folder / "part.ts", moving(T), *X264, *FORCED)
    path = folder / "joined.ts"
    path.write_bytes(part.read_bytes() * 2)
    every = read_frames(path, every_frame).frames
    assert len(every) == 2 * T
    found = read_frames(path, lambda n, fps: [3, 50, 70, n - 1]).frames
    assert skipped
    assert np.array_equal(found, every[[3, 50, 70, 2 * T - 1]])


@pytest.mark.parametrize("name", ["strict pyramid.mp4", "hevc.mp4"])
def test_zeros_in_a_frame_that_is_left_out_are_damage(folder, name, skipped):
    path = write(folder / f"zeros in {name}", moving(T), *SKIPPED[name])
    read_frames(path, lambda n, fps: [0, n - 1])
    assert skipped
    with decode.open_video(path) as (container, stream):
        frames_a_tick = decode.stated_rate(stream) * float(stream.time_base)
        places = [
            packet.pos
            for packet in container.demux(stream)
            if packet.size > 60 and round(packet.pts * frames_a_tick) in skipped
        ]
    whole, outcomes = path.read_bytes(), []
    for place in places[::5]:
        path.write_bytes(whole[: place + 24] + bytes(24) + whole[place + 48 :])
        for thorough in (False, True):
            try:
                outcomes.append(read_frames(path, lambda n, fps: [0, n - 1], thorough=thorough).frames.tolist())
            except VideoError as error:
                outcomes.append(str(error))
    assert outcomes[::2] == outcomes[1::2]
    if name != "hevc.mp4":  # FFmpeg marks little damage in HEVC
        assert any("is damaged" in outcome for outcome in outcomes)


def test_a_file_cut_in_the_middle_of_frames_that_are_left_out(folder, skipped):
    whole = write(folder / "whole.mp4", moving(T), *X264, *FORCED, "-movflags", "faststart")
    path = folder / "cut.mp4"
    path.write_bytes(whole.read_bytes()[: int(whole.stat().st_size * 0.9)])
    asked = []

    def ends(n_frames, fps):
        asked.append(n_frames)
        return [0, n_frames // 2, n_frames - 1]

    found = read_frames(path, ends)
    assert asked == [T, found.n_frames]
    every = read_frames(whole, every_frame).frames
    assert np.array_equal(found.frames, every[[0, found.n_frames // 2, found.n_frames - 1]])
    assert np.array_equal(found.frames, read_frames(path, ends, thorough=True).frames)


@pytest.fixture(scope="module")
def good(folder) -> tuple[Path, np.ndarray]:
    path = write(folder / "good.mp4", moving(T), *X264, *FORCED)
    return path, read_frames(path, every_frame).frames


@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(numbers=st.lists(st.integers(0, T - 1), min_size=1, max_size=20).map(sorted))
def test_any_choice_gives_the_frames_of_the_whole(good, numbers):
    path, every = good
    assert np.array_equal(read_frames(path, lambda n, fps: numbers).frames, every[numbers])


class Packet:
    """What `Skipping.send` reads of a packet: an H.264 frame that nothing needs, or one that others do."""

    size, is_discard, is_corrupt = 9, False, False

    def __init__(self, pts: int | None, unit: int = 0x01, **facts: bool) -> None:
        self.pts = pts
        self.data = bytes([0, 0, 1, unit, 9, 9, 9, 9, 9])
        self.__dict__.update(facts)

    def __bytes__(self) -> bytes:
        return self.data


@pytest.fixture
def following(good) -> skipping.Skipping:
    """Return what numbers the packets of a stream with start codes, at one frame a tick."""
    with decode.open_video(good[0]) as (_, stream):
        follower = skipping.Skipping(stream, 1 / float(stream.time_base), [0, 50])
        follower._length_bytes = 0
        return follower


@pytest.mark.parametrize(
    "packets",
    [
        [Packet(None)],
        [Packet(0), Packet(0)],
        [Packet(0), Packet(1), Packet(1)],
        [Packet(0), Packet(-1)],
        [Packet(0), Packet(4), Packet(4)],
        [Packet(0, is_discard=True)],
        [Packet(0), Packet(1, is_corrupt=True)],
        [Packet(0), *(Packet(time) for time in range(2, 19))],  # frame 1 never comes
    ],
)
def test_odd_times_and_marks_are_unsure(following, packets):
    for packet in packets[:-1]:
        following.send(packet)
    with pytest.raises(skipping.Unsure):
        following.send(packets[-1])


def test_windows_and_single_readings_leave_out_what_nobody_asked_for(good, skipped):
    path, every = good
    windows = [Window(lambda n, fps: [0, n - 1], start, start + 4) for start in (0.0, 2.0, 6.0)]
    found = dict(read_windows(path, windows))
    assert skipped
    for index, first in enumerate((0, 10, 30)):
        assert np.array_equal(found[index].frames, every[[first, first + 19]])


def test_ffmpeg_leaves_out_the_same_frames(folder, good, skipped):
    """FFmpeg itself, told to leave out every frame that no other needs, gives the rest."""
    path, every = good
    read_frames(path, lambda n, fps: [n - 1])
    raw = ffmpeg(
        "-skip_frame", "noref", "-i", path, "-fps_mode", "passthrough", "-f", "rawvideo", "-pix_fmt", "rgb24", "-"
    )
    kept = np.frombuffer(raw, np.uint8).reshape(-1, 48, 64, 3)
    numbers = [np.abs(every.astype(int) - frame).sum(axis=(1, 2, 3)).argmin() for frame in kept]
    assert all(np.array_equal(every[number], frame) for number, frame in zip(numbers, kept, strict=True))
    assert not set(numbers) & set(skipped)
    assert set(range(T)) - set(numbers) - set(skipped) <= set(range(8)) | {T - 1}  # the first, until one came out
