"""Odd and broken video files: functions that write each, what a reader must find in it, or why it must refuse it."""

import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np

from tests.ffmpeg_files import X264, ffmpeg, moving, replace, write
from tests.videos import cut, flag_rotation

X265 = ("-c:v", "libx265", "-x265-params", "log-level=error", "-tag:v", "hvc1")
VP9 = ("-c:v", "libvpx-vp9", "-deadline", "realtime", "-cpu-used", "8", "-b:v", "2M", "-pix_fmt", "yuv420p")
AV1 = ("-c:v", "libsvtav1", "-svtav1-params", "lp=1", "-pix_fmt", "yuv420p")
FRONT_INDEX = ("-movflags", "faststart")
UNEVEN = (
    "-vf",
    "setpts=(N+3*floor(N/4))/5/TB",
    "-fps_mode",
    "passthrough",
)  # every fourth frame stays on screen longer


# Files that decode. Each function gets an empty folder.


def h264(folder: Path) -> Path:
    return write(folder / "a.mp4", moving(), *X264, *FRONT_INDEX)


def index_at_the_end(folder: Path) -> Path:
    return write(folder / "a.mov", moving(), *X264)


def odd_size(folder: Path) -> Path:
    return write(folder / "a.mp4", moving(20, 47, 33), *X264[:-1], "yuv444p")


def odd_size_with_half_chroma(folder: Path) -> Path:
    return write(folder / "a.webm", moving(20, 47, 33), *VP9)


def portrait_by_a_flag(folder: Path) -> Path:
    return flag_rotation(h264(folder))


def variable_rate(folder: Path) -> Path:
    return write(folder / "a.mp4", moving(), *X264, *UNEVEN)


def uneven_matroska(folder: Path) -> Path:
    """20 frames in the time of 32, the count that a Matroska header's length and rate give."""
    return write(folder / "a.mkv", moving(), *X264, *UNEVEN)


def ten_bits(folder: Path) -> Path:
    return write(folder / "a.mp4", moving(), *X264[:-1], "yuv420p10le")


def hevc(folder: Path) -> Path:
    return write(folder / "a.mp4", moving(), *X265, "-pix_fmt", "yuv420p")


def hevc_of_ten_bits(folder: Path) -> Path:
    return write(folder / "a.mp4", moving(), *X265, "-pix_fmt", "yuv420p10le")


def vp9(folder: Path) -> Path:
    return write(folder / "a.webm", moving(), *VP9)


def av1(folder: Path) -> Path:
    return write(folder / "a.mp4", moving(), *AV1)


def mpeg4_avi(folder: Path) -> Path:
    return write(folder / "a.avi", moving(), "-c:v", "mpeg4", "-q:v", "2")


def flv(folder: Path) -> Path:
    return write(folder / "a.flv", moving(), *X264)


def transport_stream(folder: Path) -> Path:
    return write(folder / "a.ts", moving(), *X264)


def bare_stream(folder: Path) -> Path:
    return write(folder / "a.h264", moving(), *X264)


def interlaced(folder: Path) -> Path:
    return write(folder / "a.mp4", moving(), *X264[:-1], "yuv422p", "-x264opts", "tff=1")


def interlaced_with_half_chroma(folder: Path) -> Path:
    return write(folder / "a.mts", moving(), *X264, "-x264opts", "tff=1")


def interlaced_from_the_middle(folder: Path) -> Path:
    first = write(folder / "1.ts", moving(40)[:20], *X264[:-1], "yuv422p")
    second = write(folder / "2.ts", moving(40)[20:], *X264[:-1], "yuv422p", "-x264opts", "tff=1")
    return joined(first, second)


def joined(first: Path, second: Path) -> Path:
    path = first.with_name("joined.ts")
    path.write_bytes(first.read_bytes() + second.read_bytes())
    return path


def two_streams_joined(folder: Path) -> Path:
    """The length, from the first and last time stamp, is that of one of the parts."""
    frames = moving(40)
    return joined(write(folder / "1.ts", frames[:20], *X264), write(folder / "2.ts", frames[20:], *X264))


def two_sizes_joined(folder: Path) -> Path:
    return joined(write(folder / "1.ts", moving(), *X264), write(folder / "2.ts", moving(10, 32, 96)[5:], *X264))


def piped(source: Path, form: str, *flags: str) -> Path:
    """The same stream written to a pipe, where the header cannot be completed at the end."""
    path = source.with_name(f"piped{source.suffix}")
    path.write_bytes(ffmpeg("-i", source, "-c", "copy", *flags, "-f", form, "pipe:1"))
    return path


LENGTH = b"\x44\x89\x88"  # in Matroska and WebM the id and size of this element; milliseconds follow


def webm_without_a_length(folder: Path) -> Path:
    path = piped(vp9(folder), "webm", "-live", "1")
    assert LENGTH not in path.read_bytes()
    return path


def fragmented(folder: Path) -> Path:
    return piped(h264(folder), "mp4", "-movflags", "frag_keyframe+empty_moov")


def fragmented_with_a_count_of_the_first_fragment(folder: Path) -> Path:
    path = write(folder / "a.mp4", moving(40), *X264, "-g", "10", "-movflags", "frag_keyframe")
    with av.open(str(path)) as container:
        assert container.streams.video[0].frames == 10
    return path


def count_of_ten_million(folder: Path) -> Path:
    one_entry = b"stts" + struct.pack(">2i", 0, 1)  # the table of how many frames are shown for how long
    return replace(h264(folder), one_entry + struct.pack(">i", 20), one_entry + struct.pack(">i", 10**7))


def half_the_frame_rate(folder: Path) -> Path:
    """A Matroska header has no count; length and rate give 10."""
    path = write(folder / "a.mkv", moving(), *X264)
    frame_time = b"\x23\xe3\x83\x84"  # the element's id and size; nanoseconds follow
    return replace(path, frame_time + struct.pack(">i", 2 * 10**8), frame_time + struct.pack(">i", 4 * 10**8))


def length(seconds: float) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        path = vp9(folder)
        stated = path.read_bytes().partition(LENGTH)[2][:8]
        return replace(path, LENGTH + stated, LENGTH + struct.pack(">d", seconds * 1000))

    return make


def hidden_frames(folder: Path) -> Path:
    """Cut without re-encoding: five frames before the cut are kept to decode from, and an edit list hides them."""
    path = write(folder / "whole.mp4", moving(40), *X264)
    ffmpeg("-ss", "1.0", "-i", path, "-c", "copy", folder / "a.mp4")
    return folder / "a.mp4"


def cut_mp4(folder: Path) -> Path:
    return cut(h264(folder), 0.9)


def cut_webm(folder: Path) -> Path:
    return cut(vp9(folder), 0.9)


def latin_1_title(folder: Path) -> Path:
    return write(folder / "a.mkv", moving(), *X264, "-metadata", b"title=caf\xe9")


def named(name: str) -> Callable[[Path], Path]:
    return lambda folder: h264(folder).rename(folder / name)


@dataclass(frozen=True)
class Good:
    """A file, what ffmpeg must find in it, the tolerance of a mean pixel, and the verdict of `check_videos` for 12."""

    make: Callable[[Path], Path]
    n_frames: int | range = 20
    size: tuple[int, int] = (48, 64)
    tolerance: float = 0.0
    status: str = "ok"


GOOD = {
    "h264": Good(h264),
    "index at the end": Good(index_at_the_end),
    "odd size": Good(odd_size, size=(47, 33)),
    "odd size, half chroma": Good(odd_size_with_half_chroma, size=(47, 33)),
    "portrait by a flag": Good(portrait_by_a_flag, size=(64, 48)),
    "variable rate": Good(variable_rate),
    "variable rate in matroska": Good(uneven_matroska),
    "10 bits": Good(ten_bits, tolerance=3.5),  # rounded differently on the way to 8
    "hevc": Good(hevc),
    "hevc, 10 bits": Good(hevc_of_ten_bits, tolerance=3.5),
    "vp9": Good(vp9),
    "av1": Good(av1),
    "mpeg4 in avi": Good(mpeg4_avi),
    "flv": Good(flv),  # states a length of two frames too many
    "transport stream": Good(transport_stream),
    "bare stream": Good(bare_stream),
    "interlaced": Good(interlaced),
    # Versions of FFmpeg place colours between the lines of a field differently.
    "interlaced, half chroma": Good(interlaced_with_half_chroma, tolerance=8.0),
    "interlaced from the middle": Good(interlaced_from_the_middle, n_frames=40),
    "two streams joined": Good(two_streams_joined, n_frames=40),
    "two sizes joined": Good(two_sizes_joined, n_frames=25, tolerance=3.5),
    "webm without a length": Good(webm_without_a_length),
    "fragmented": Good(fragmented),
    "count of the first fragment": Good(fragmented_with_a_count_of_the_first_fragment, n_frames=40),
    "count of ten million": Good(count_of_ten_million),
    "half the frame rate": Good(half_the_frame_rate),
    "length zero": Good(length(0)),
    "length below zero": Good(length(-5)),
    "length of a million seconds": Good(length(1e6)),
    "length infinite": Good(length(float("inf"))),
    "length no number": Good(length(float("nan"))),
    "hidden frames": Good(hidden_frames, n_frames=35),
    "cut mp4": Good(cut_mp4, n_frames=range(15, 20), status="cut"),
    "cut webm": Good(cut_webm, n_frames=range(15, 20), status="cut"),
    "latin-1 title": Good(latin_1_title),
    "a space": Good(named("two words.mp4")),
    "unicode": Good(named("вид\u0435о 视频 é.mp4")),
    "percent and brackets": Good(named("50%d of [a].mp4")),
    "colon and quotes": Good(named("http:a'b\"c.mp4")),
}


# Files that do not decode.


def missing(folder: Path) -> Path:
    return folder / "none.mp4"


def dangling(folder: Path) -> Path:
    (folder / "link.mp4").symlink_to(folder / "none.mp4")
    return folder / "link.mp4"


def directory(folder: Path) -> Path:
    (folder / "folder.mp4").mkdir()
    return folder / "folder.mp4"


def zero_bytes(folder: Path) -> Path:
    (folder / "zero.mp4").touch()
    return folder / "zero.mp4"


def text(folder: Path) -> Path:
    (folder / "text.mp4").write_text("<html>404 Not Found</html>\n" * 50)
    return folder / "text.mp4"


def random_bytes(folder: Path) -> Path:
    (folder / "random.mp4").write_bytes(np.random.default_rng(0).bytes(5000))
    return folder / "random.mp4"


def sound(folder: Path) -> Path:
    source = ("-f", "lavfi", "-i", "sine=duration=1")
    ffmpeg(*source, "-c:a", "aac", folder / "sound.mp4")
    return folder / "sound.mp4"


def no_index(folder: Path) -> Path:
    return cut(index_at_the_end(folder), 0.6)


def index_only(folder: Path) -> Path:
    path = h264(folder)
    content = path.read_bytes()
    path.write_bytes(content[: content.index(b"mdat") + 4])
    return path


def unknown_codec(folder: Path) -> Path:
    path = h264(folder)
    path.write_bytes(path.read_bytes().replace(b"avc1\0\0\0\0", b"none\0\0\0\0"))
    return path


def no_picture_data(folder: Path) -> Path:
    """The index is complete, and everything it points to is zero."""
    path = h264(folder)
    content = path.read_bytes()
    start = content.index(b"mdat") + 4
    path.write_bytes(content[:start] + bytes(len(content) - start))
    return path


def half_an_mp4(folder: Path) -> Path:
    return cut(h264(folder), 0.5)


def half_a_webm(folder: Path) -> Path:
    return cut(vp9(folder), 0.5)


def half_an_avi(folder: Path) -> Path:
    return cut(mpeg4_avi(folder), 0.5)


BAD = [
    (missing, "does not exist: check --features_path, or download"),
    (dangling, "does not exist: check --features_path, or download"),
    (directory, "is a directory, not a video file: give the path of the file"),
    (zero_bytes, r"is empty \(0 bytes\): download it again"),
    (text, "is not a video that can be opened"),
    (random_bytes, "is not a video that can be opened"),
    (sound, r"is not a video \(it holds no picture in a known codec\)"),
    (no_index, "is not a video that can be opened"),
    (index_only, "holds no frame that can be decoded"),
    (unknown_codec, r"is not a video \(it holds no picture in a known codec\)"),
    (no_picture_data, "holds no frame that can be decoded"),
    (half_an_mp4, r"is cut off, or its header is wrong: \d+ of its 20 frames can be decoded"),
    (half_a_webm, r"is cut off, or its header is wrong: \d+ of its 20 frames can be decoded"),
    (half_an_avi, r"is cut off, or its header is wrong: \d+ of its 20 frames can be decoded"),
]
