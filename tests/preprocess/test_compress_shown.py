"""Re-encoded videos look as players show them: turned, mirrored, in square pixels, from the same picture stream."""

import os
import struct
import subprocess
import sys
from pathlib import Path

import av
import imageio_ffmpeg
import numpy as np
import pytest

from dataloaders.decode import read_frames
from preprocess.compress_video import Encoding, find_ffmpeg, main
from tests.videos import grey_ramp, write_damaged_video, write_video

try:
    find_ffmpeg()
except FileNotFoundError as error:
    pytest.skip(str(error), allow_module_level=True)
# Makes the videos: -display_rotation came with FFmpeg 6. `compress` may find an older one on the path.
FFMPEG = imageio_ffmpeg.get_ffmpeg_exe()

ORIENTATIONS = [(turn, mirror) for turn in (0, 90, 180, 270) for mirror in ((), ("-display_hflip",))]


def ffmpeg(*arguments: str | Path) -> bytes:
    return subprocess.run([FFMPEG, "-v", "error", *arguments], check=True, capture_output=True).stdout


def compress(source: Path, output: Path, *flags: str) -> int:
    return main(
        ["--input_root", str(source), "--output_root", str(output), "--jobs", "1", "--short_side", "48", *flags]
    )


def corners(n_frames: int = 3) -> np.ndarray:
    """Draw frames uint8 [T, 48, 80, 3] that look different in each of the eight orientations."""
    frames = np.zeros((n_frames, 48, 80, 3), np.uint8)
    frames[:, :24, :40] = (230, 30, 30)
    frames[:, 24:, :40] = (30, 210, 40)
    frames[:, :24, 40:] = (40, 50, 220)
    return frames


def first_frame(path: Path, width: int, height: int) -> np.ndarray:
    """Return a frame as FFmpeg shows it, int [H, W, 3]."""
    content = ffmpeg("-i", path, "-frames:v", "1", "-f", "rawvideo", "-pix_fmt", "rgb24", "-")
    return np.frombuffer(content, np.uint8).reshape(height, width, 3).astype(int)


def stored(path: Path) -> tuple[int, int, float, list[str]]:
    """Return stored width and height in pixels, the shape of a pixel, and the display matrix."""
    with av.open(str(path)) as container:
        frame = next(container.decode(video=0))
        ratio = float(container.streams.video[0].sample_aspect_ratio or 1)
        return frame.width, frame.height, ratio, [entry.type.name for entry in frame.side_data.keys()]  # noqa: SIM118


@pytest.mark.parametrize("suffix", [".mp4", ".mov"])
def test_all_eight_orientations_are_ffmpeg_s_own(source, output, suffix):
    upright = write_video(source.parent / f"upright{suffix}", corners())
    for turn, mirror in ORIENTATIONS:
        name = source / f"{turn}{''.join(mirror)}{suffix}"
        ffmpeg("-display_rotation", str(turn), *mirror, "-i", upright, "-c", "copy", name)
    assert compress(source, output) == 0
    shown = []
    for path in sorted(source.iterdir()):
        size = (48, 80) if path.name[:2] in ("90", "27") else (80, 48)
        made = output / f"{path.stem}.mp4"
        assert stored(made)[:3] == (*size, 1.0)
        assert "DISPLAYMATRIX" not in stored(made)[3]
        raw = first_frame(path, *size)
        assert np.abs(raw - first_frame(made, *size)).mean() < 5
        for read in (path, made):
            assert np.abs(raw - read_frames(read, lambda n, fps: [0]).frames[0]).mean() < 5
        shown.append(raw)
    assert len(shown) == 8
    # The eight differ, and by far more than re-encoding changes.
    for row, one in enumerate(shown):
        for other in shown[:row]:
            assert one.shape != other.shape or np.abs(one - other).mean() > 50


def test_a_matrix_of_zeros_turns_nothing(source, output):
    path = write_video(source / "a.mp4", corners())
    content = bytearray(path.read_bytes())
    matrix = content.index(b"tkhd") + 44  # ISO/IEC 14496-12: after 40 bytes of a version 0 track header
    content[matrix : matrix + 36] = struct.pack(">9i", *[0] * 9)
    path.write_bytes(content)
    assert compress(source, output) == 0
    for read in (path, output / "a.mp4"):
        assert np.abs(first_frame(read, 80, 48) - corners()[0]).mean() < 5
        assert np.abs(read_frames(read, lambda n, fps: [0]).frames[0] - corners()[0].astype(int)).mean() < 5


@pytest.mark.parametrize(
    ("width", "height", "pixel", "shown"),
    [
        (720, 576, "64/45", (86, 48)),  # 16:9 as television stores it
        (720, 480, "8/9", (64, 48)),  # 4:3
        (96, 96, "1/2", (48, 96)),
        (96, 64, "1/2", (48, 64)),  # wide in pixels, but upright when shown
        (64, 96, "2/1", (64, 48)),
    ],
)
@pytest.mark.parametrize("turn", [0, 90])
def test_pixels_that_are_not_square_come_out_as_shown(source, output, width, height, pixel, shown, turn):
    frames = np.broadcast_to(grey_ramp(3, 1, 1), (3, height, width, 3)).copy()
    frames[:, : height // 2, : width // 2, 0] = 230
    plain = write_video(source.parent / "plain.mp4", frames)
    flagged = source.parent / "flagged.mp4"
    ffmpeg("-i", plain, "-c", "copy", "-bsf:v", f"h264_metadata=sample_aspect_ratio={pixel}", flagged)
    ffmpeg("-display_rotation", str(turn), "-i", flagged, "-c", "copy", source / "a.mp4")
    assert compress(source, output) == 0
    assert stored(output / "a.mp4")[:3] == (*(shown if turn == 0 else shown[::-1]), 1.0)


def test_older_files_with_pixels_that_are_not_square_are_made_again(source, output, capsys):
    write_video(source / "a.mp4", corners())
    write_video(source / "b.mp4", corners())
    assert compress(source, output) == 0
    whole = (output / "a.mp4").read_bytes()
    # 80 x 48 pixels that are shown twice as wide, and half a pixel off, as after scaling to whole pixels.
    ffmpeg("-i", output / "a.mp4", "-c", "copy", "-f", "mp4", "-aspect", "160:48", output / "wide")
    ffmpeg("-i", output / "b.mp4", "-c", "copy", "-f", "mp4", "-aspect", "161:96", output / "rounded")
    (output / "wide").rename(output / "a.mp4")
    (output / "rounded").rename(output / "b.mp4")
    capsys.readouterr()
    assert compress(source, output) == 0
    assert "1 videos made, 1 already there" in capsys.readouterr().out
    assert (output / "a.mp4").read_bytes() == whole


def test_a_video_that_is_newer_than_its_output_is_made_again(source, output, capsys):
    for name in ("a.mp4", "b.mp4"):
        write_video(source / name, corners())
    assert compress(source, output) == 0
    write_video(source / "a.mp4", corners()[:, :, ::-1])
    later = (output / "a.mp4").stat().st_mtime_ns + 10**9
    os.utime(source / "a.mp4", ns=(later, later))
    capsys.readouterr()
    assert compress(source, output) == 0
    assert "1 videos made, 1 already there" in capsys.readouterr().out
    assert np.abs(first_frame(output / "a.mp4", 80, 48) - corners()[0, :, ::-1]).mean() < 5


@pytest.mark.parametrize("seed", range(4))
def test_square_pixels_keep_the_size_that_ffmpeg_itself_chooses(seed):
    rng = np.random.default_rng(seed)
    side = int(rng.integers(8, 120)) * 2
    ours = Encoding(fps=3, short_side=side, rate_control="r", fast_decode=False).flags()
    for width, height in rng.integers(2, 700, (6, 2)).tolist():
        wide = width > height
        scale = f"scale={-2 if wide else side}:{side if wide else -2}"
        frame = ("-f", "lavfi", "-i", f"color=size={width}x{height}:duration=0.1:rate=10")
        sizes = []
        for filters in (scale, ours[ours.index("-vf") + 1]):
            picture = ffmpeg(*frame, "-vf", filters, "-frames:v", "1", "-f", "image2pipe", "-c:v", "ppm", "-")
            sizes.append(picture.split(maxsplit=3)[1:3])
        assert sizes[0] == sizes[1], (width, height, side)


def test_the_picture_stream_that_training_reads_is_taken(source, output):
    small = write_video(source.parent / "small.mp4", corners()[:, ::2, ::2])
    large = write_video(source.parent / "large.mp4", corners()[:, :, ::-1])
    flags = ("-map", "0", "-map", "1", "-c", "copy", "-disposition:v:0", "0", "-disposition:v:1", "default")
    ffmpeg("-i", small, "-i", large, *flags, source / "a.mkv")
    with av.open(str(source / "a.mkv")) as container:
        assert container.streams.best("video").index == 1
    assert compress(source, output) == 0
    assert np.abs(first_frame(output / "a.mp4", 80, 48) - corners()[0, :, ::-1]).mean() < 5


def test_a_playlist_is_no_video(source, output, capsys):
    write_video(source.parent / "sibling.mp4", corners())
    playlist = source / "a.mp4"
    playlist.write_text(f"ffconcat version 1.0\nfile {source.parent / 'sibling.mp4'}\n")
    assert compress(source, output) == 1
    assert f"failed: {playlist} is not a video file (it is a playlist" in capsys.readouterr().err
    assert not list(output.glob("*.mp4"))


def test_a_header_beyond_the_last_frame_is_no_missing_end(source, output, reference):
    """The ASF file states 15 s, and its last frame comes at 14.1 s."""
    content = (reference / "data/videos/tika__testASF.asf").read_bytes()
    (source / "whole.asf").write_bytes(content)
    (source / "cut.asf").write_bytes(content[: len(content) * 9 // 10])
    assert compress(source, output) == 1
    (failed,) = (output / "failed.txt").read_text().splitlines()
    assert failed.startswith(f"{source / 'cut.asf'}\t")
    assert (output / "whole.mp4").exists()


@pytest.fixture
def song(source) -> Path:
    """Write sound with a cover picture, as music is sold."""
    cover = source.parent / "cover.png"
    ffmpeg("-f", "lavfi", "-i", "color=red:size=64x48:duration=0.1", "-frames:v", "1", cover)
    flags = ("-map", "0", "-map", "1", "-c:a", "aac", "-c:v", "png", "-disposition:v:0", "attached_pic")
    ffmpeg("-f", "lavfi", "-i", "sine=duration=3", "-i", cover, *flags, source / "song.mp4")
    return source / "song.mp4"


def test_a_cover_picture_is_no_video(source, output, song):
    write_video(source / "a.mp4", corners())
    (source / "b.mp3").touch()
    assert compress(source, output) == 1
    reason = f"{song} holds sound and a cover picture, no video: download the video itself."
    assert (output / "failed.txt").read_text() == f"{song}\t{reason}\n"
    assert (output / "a.mp4").exists()


def test_a_cover_beside_a_video_is_left_out(source, output, song):
    video = write_video(source.parent / "a.mkv", corners())
    flags = ("-map", "1:v", "-map", "0", "-c", "copy", "-disposition:v:0", "attached_pic")
    ffmpeg("-i", video, "-i", song, *flags, source / "b.mp4")
    song.unlink()
    assert compress(source, output) == 0
    assert np.abs(first_frame(output / "b.mp4", 80, 48) - corners()[0]).mean() < 5


def test_what_is_passed_over_is_in_the_summary(source, output, capsys):
    write_video(source / "a.mp4", corners())
    (source / "a.srt").touch()
    for shard, named in (("0/2", True), ("1/2", False)):
        assert compress(source, output, "--shard", shard) == 0
        printed = capsys.readouterr()
        assert (f"passed over: {source / 'a.srt'}\n" in printed.err) == named
        assert "0 failed." in printed.out


def program(path: Path, script: str) -> str:
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return str(path)


@pytest.mark.parametrize(("version", "taken"), [("7. 57.100 /  7. 57.100", False), ("8. 24.100 /  8. 24.100", True)])
def test_an_ffmpeg_that_does_not_mirror_is_too_old(tmp_path, monkeypatch, version, taken):
    old = program(tmp_path / "ffmpeg", f'echo "  libavfilter     {version}" >&2; echo " V....D libx264"')
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    assert (find_ffmpeg() == old) == taken
    if not taken:
        monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)
        with pytest.raises(FileNotFoundError, match="no ffmpeg of version 5 or newer with libx264"):
            find_ffmpeg()


def test_a_frame_that_ffmpeg_makes_up_is_not_hidden_in_a_copy(source, output, capsys):
    number = write_damaged_video(source / "a.mp4")
    write_video(source / "b.mp4", corners())
    assert compress(source, output) == 1
    assert sorted(path.name for path in output.glob("*.mp4")) == ["b.mp4"]
    assert f"a.mp4 is damaged: its frame {number}, at" in capsys.readouterr().err


@pytest.mark.parametrize("rate_control", ["r", "filter"])
@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".ts", ".mpg"])
def test_seconds_count_from_where_the_sound_began(source, output, suffix, rate_control):
    """The picture begins 2 s after the sound. The copy begins with the first frame, and [3.2, 3.8) s look the same."""
    colours = np.repeat(np.arange(20, 250, 50, dtype=np.uint8), 24)  # a different grey each second
    frames = np.broadcast_to(colours[:, None, None, None], (120, 48, 80, 3))
    picture = write_video(source.parent / "picture.mp4", np.ascontiguousarray(frames), fps=24)
    codec = ("-c:v", "mpeg2video", "-q:v", "2") if suffix == ".mpg" else ("-c:v", "libx264")
    sound = ("-f", "lavfi", "-i", "sine=duration=8", "-map", "0:v", "-map", "1:a")
    ffmpeg(
        "-i", picture, *sound, "-vf", "setpts=PTS+2/TB", "-fps_mode", "passthrough", *codec, source / f"late{suffix}"
    )
    ffmpeg("-i", picture, "-c", "copy", source / "alone.mp4")
    flags = ("--fps", "12", "--rate_control", rate_control)
    made = output / "late.mp4"
    assert compress(source, output, *flags) == 0
    for path in (source / f"late{suffix}", made):
        read = read_frames(path, lambda n, fps: range(n), start=3.2, end=3.8).frames
        assert np.abs(read.mean((1, 2, 3)) - colours[24]).max() < 10
    assert np.abs(read_frames(made, lambda n, fps: range(n), end=1.9).frames.mean((1, 2, 3)) - colours[0]).max() < 10
    with av.open(str(made)) as container:
        assert not container.streams.audio

    before = made.stat().st_mtime_ns
    assert compress(source, output, *flags) == 0
    assert made.stat().st_mtime_ns == before
