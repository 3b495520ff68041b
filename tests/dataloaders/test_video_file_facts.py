"""The facts about a file before it is decoded: complete files are read in one pass, with ffmpeg's frames, times and
windows; files that are cut off are refused or named.

Shapes: T frames.
"""

from pathlib import Path

import numpy as np
import pytest

from dataloaders.decode import VideoError, read_frames
from dataloaders.frame_sampling import in_window
from dataloaders.video_file import length_of, open_video, survey
from preprocess.check_videos import check
from tests.ffmpeg_files import X264, ffmpeg, ffmpeg_frames, moving, shown_times, write
from tests.videos import cut, grey_ramp, write_video

VP8 = ("-c:v", "libvpx", "-b:v", "1M", "-auto-alt-ref", "0")
MPEG4 = ("-c:v", "mpeg4", "-q:v", "2")
DROPPED = ("-vf", "select='lt(mod(n,10),6)'", "-fps_mode", "passthrough")
SOUND = ("-f", "lavfi", "-i", "sine=duration=13", "-c:a")


def facts_of(path: Path, timed: bool = True):
    with open_video(path) as (container, stream):
        return survey(path, container, stream, float(stream.average_rate or stream.guessed_rate), timed)


# Complete files that were once taken for cut ones, or read twice. Each function gets an empty folder.


def dropped(name: str, *codec: str):
    return lambda folder: write(folder / name, moving(60), *codec, *DROPPED)


def avi_with_empty_slots(folder: Path) -> Path:
    """The rate is the clock of another container, and the header counts a slot for each tick."""
    first = write(folder / "a.mp4", moving(30), *X264, "-bf", "2")
    ffmpeg("-i", first, "-c", "copy", "-bsf:v", "h264_metadata=tick_rate=200:fixed_frame_rate_flag=0", folder / "b.mp4")
    ffmpeg("-i", folder / "b.mp4", "-c", "copy", "-r", "50", folder / "a.avi")
    return folder / "a.avi"


def rate_from_the_stream(folder: Path) -> Path:
    first = write(folder / "a.mp4", moving(30), *X264, "-bf", "2")
    ffmpeg("-i", first, "-c", "copy", "-bsf:v", "h264_metadata=tick_rate=200:fixed_frame_rate_flag=0", folder / "a.ts")
    return folder / "a.ts"


def no_rate(folder: Path) -> Path:
    uneven = ("-vf", "select='not(mod(n,4))+eq(mod(n,30),1)'", "-fps_mode", "vfr")
    return write(folder / "a.asf", moving(60), "-c:v", "msmpeg4v2", *uneven)


def edit_list(folder: Path) -> Path:
    whole = write(folder / "whole.mp4", moving(40), *X264, "-g", "20")
    ffmpeg("-ss", "1.0", "-i", whole, "-c", "copy", folder / "a.mp4")
    return folder / "a.mp4"


def sound_goes_on(folder: Path) -> Path:
    """The picture lasts 4 s, the sound 13 s, and the header says 13 s."""
    picture = write(folder / "a.mp4", moving(), *X264)
    ffmpeg("-i", picture, *SOUND, "aac", "-c:v", "copy", "-f", "matroska", "-live", "1", folder / "a.mkv")
    return folder / "a.mkv"


def sound_goes_on_in_flv(folder: Path) -> Path:
    picture = write(folder / "a.mp4", moving(), *X264)
    ffmpeg("-i", picture, *SOUND, "aac", "-ar", "44100", "-c:v", "copy", folder / "a.flv")
    return folder / "a.flv"


def avi_as_a_stream(folder: Path) -> Path:
    """Size and number of frames were unknown when the header was written, so it states the largest."""
    first = write(folder / "first.avi", moving(30), *MPEG4)
    (folder / "a.avi").write_bytes(ffmpeg("-i", first, "-c", "copy", "-f", "avi", "pipe:1"))
    return folder / "a.avi"


WHOLE = {
    "dropped frames in webm": (dropped("a.webm", *VP8), 36),
    "dropped frames in mkv": (dropped("a.mkv", *X264), 36),
    "dropped frames in flv": (dropped("a.flv", *X264), 36),
    "dropped frames in ts": (dropped("a.ts", *X264), 36),
    "dropped frames in mp4": (dropped("a.mp4", *X264), 36),
    "empty slots in avi": (avi_with_empty_slots, 30),
    "avi as a stream": (avi_as_a_stream, 30),
    "rate of the stream": (rate_from_the_stream, 30),
    "no rate": (no_rate, 17),
    "edit list": (edit_list, 35),
    "sound goes on": (sound_goes_on, 20),
    "sound goes on in flv": (sound_goes_on_in_flv, 20),
}


@pytest.fixture(scope="module", params=WHOLE.values(), ids=WHOLE.keys())
def whole(request, tmp_path_factory) -> tuple[Path, int]:
    make, n_frames = request.param
    return make(tmp_path_factory.mktemp("whole")), n_frames


def test_a_whole_file_is_decoded_once(whole, decoded_frames):
    path, n_frames = whole
    expected = ffmpeg_frames(path, 48, 64)
    assert len(expected) == n_frames
    asked = []

    def uniform(n, fps):
        asked.append(n)
        return np.linspace(0, n - 1, 12, dtype=np.int64)

    taken = expected[np.linspace(0, n_frames - 1, 12, dtype=np.int64)]
    assert np.array_equal(read_frames(path, uniform, thorough=True).frames, taken)
    assert asked == [n_frames]
    assert len(decoded_frames) == n_frames
    assert np.array_equal(read_frames(path, uniform).frames, taken)
    assert asked == [n_frames] * 2
    assert len(decoded_frames) <= 2 * n_frames


def test_a_whole_file_is_not_called_cut(whole):
    path, n_frames = whole
    finding = check(path, max_frames=12)
    assert (finding.status, finding.frames, finding.reason) == ("ok", n_frames, "")


def test_the_rate_fits_the_frames(whole):
    path, n_frames = whole
    times = shown_times(path)
    assert read_frames(path, lambda n, fps: [0]).fps == pytest.approx((n_frames - 1) / (times[-1] - times[0]), rel=0.06)


def test_a_last_frame_that_stays_does_not_make_the_rate_wrong(tmp_path):
    """Ten frames in two seconds and one for eight more are 1.1 a second, as the header says, with any window."""
    path = write(tmp_path / "a.mp4", moving(11), *X264, "-bf", "0", "-video_track_timescale", "1000")
    ffmpeg("-i", path, "-c", "copy", "-bsf:v", "setts=duration=if(eq(N\\,10)\\,8000\\,200)", tmp_path / "b.mp4")
    without = read_frames(tmp_path / "b.mp4", lambda n, fps: [0])
    within = read_frames(tmp_path / "b.mp4", lambda n, fps: range(n), start=1.9, end=6.0)
    assert without.fps == within.fps == pytest.approx(1.1)
    assert within.n_frames == 2


WINDOWS = [(0.0, 1.0), (1.0, 3.0), (2.5, 2.6), (0.95, 3.05), (3.0, None), (None, 2.0), (None, None), (-2.0, 99.0)]


def test_a_window_holds_what_is_on_screen_in_it(whole):
    """Each frame is on screen from its time, as ffmpeg shows it, until the next frame's time."""
    path, n_frames = whole
    if path.suffix == ".avi":
        pytest.skip("an AVI says in which order to decode, and FFmpeg guesses when to show")
    times = shown_times(path)
    times -= times[0]
    every = read_frames(path, lambda n, fps: range(n)).frames
    leaves = [*times[1:], np.inf]
    for start, end in WINDOWS:
        before_end = [end is None or times[f] < end - 1e-6 for f in range(n_frames)]
        after_start = [start is None or leaves[f] > start + 1e-6 for f in range(n_frames)]
        shown = np.flatnonzero(np.logical_and(before_end, after_start))
        chosen = read_frames(path, lambda n, fps: range(n), start=start, end=end)
        assert chosen.n_frames == len(shown)
        assert np.array_equal(chosen.frames, every[shown])


@pytest.mark.parametrize(
    ("name", "codec"), [("a.mp4", X264), ("a.mkv", X264), ("a.flv", X264), ("a.ts", X264), ("a.avi", MPEG4)]
)
def test_windows_of_a_constant_rate_follow_the_arithmetic(tmp_path, name, codec, monkeypatch):
    path = write(tmp_path / name, moving(40), *codec)
    counting = "dataloaders.video_file._list_packets"
    if name in ("a.mp4", "a.avi"):  # their headers say so
        monkeypatch.setattr(counting, None)
    facts = facts_of(path)
    assert (facts.n_frames, facts.rate, facts.times) == (40, 5.0, None)
    for tick in range(-10, 100):
        start, end = tick / 10, tick / 10 + 0.7
        assert facts.window(start, end) == in_window(40, 5.0, start, end)


def test_a_picture_that_comes_late_is_found_where_players_show_it(tmp_path):
    """The sound starts two seconds before the picture."""
    picture = write(tmp_path / "a.mp4", moving(40), *X264)
    ffmpeg("-itsoffset", "2", "-i", picture, *SOUND, "aac", "-c:v", "copy", "-t", "10", tmp_path / "late.mp4")
    assert shown_times(tmp_path / "late.mp4")[0] == pytest.approx(2, abs=0.05)
    every = read_frames(tmp_path / "late.mp4", lambda n, fps: range(n)).frames
    chosen = read_frames(tmp_path / "late.mp4", lambda n, fps: range(n), start=4.0, end=5.0).frames
    assert np.array_equal(chosen, every[10:15])
    with pytest.raises(VideoError, match="has no frame from 0 s until 1 s, it lasts 10 s"):
        read_frames(tmp_path / "late.mp4", lambda n, fps: range(n), start=0.0, end=1.0)


# Files whose end is missing.


@pytest.fixture(scope="module")
def downloads(tmp_path_factory) -> dict[str, Path]:
    """Write noise, so that a share of the bytes is about the same share of the frames."""
    folder = tmp_path_factory.mktemp("downloads")
    frames = np.random.default_rng(0).integers(0, 256, (60, 48, 64, 3), dtype=np.uint8)
    codecs = {"a.mp4": (*X264, "-movflags", "faststart"), "a.webm": VP8, "a.mkv": X264, "a.flv": X264, "a.avi": MPEG4}
    codecs |= {"a.wmv": ("-c:v", "msmpeg4v2", "-q:v", "2")}
    return {name: write(folder / name, frames, *codec) for name, codec in codecs.items()}


@pytest.mark.parametrize("name", ["a.mp4", "a.webm", "a.mkv", "a.flv", "a.avi", "a.wmv"])
@pytest.mark.parametrize("part", [0.25, 0.5, 0.65])
def test_a_file_that_lacks_much_of_its_end_is_refused(downloads, name, part):
    path = cut(downloads[name], part)
    for start in (None, 0.0):
        with pytest.raises(VideoError, match=r"is cut off, or its header is wrong: \d+ of its \d\d frames can be"):
            read_frames(path, lambda n, fps: [0, n - 1], start=start)
    assert check(path, max_frames=12).status == "broken"


@pytest.mark.parametrize("name", ["a.mp4", "a.webm", "a.mkv", "a.flv", "a.avi", "a.wmv"])
def test_a_file_that_lacks_little_of_its_end_is_read_and_named(downloads, name):
    whole = read_frames(downloads[name], lambda n, fps: range(n)).frames
    assert check(downloads[name], max_frames=12).status == "ok"
    path = cut(downloads[name], 0.9)
    found = read_frames(path, lambda n, fps: range(n))
    assert 45 <= found.n_frames < 60
    assert np.array_equal(found.frames, whole[: found.n_frames])
    finding = check(path, max_frames=12)
    assert (finding.status, finding.frames) == ("cut", found.n_frames)
    assert f"{path} is cut: {path.stat().st_size:,} of its " in finding.reason


def test_the_length_of_a_file(tmp_path):
    path = write_video(tmp_path / "a.mp4", grey_ramp(7), fps=2)
    assert length_of(path) == pytest.approx(3.5)
    (tmp_path / "b.mp4").write_bytes(b"no video")
    with pytest.raises(VideoError, match="not a video"):
        length_of(tmp_path / "b.mp4")
    with pytest.raises(VideoError, match="does not exist"):
        length_of(tmp_path / "c.mp4")
