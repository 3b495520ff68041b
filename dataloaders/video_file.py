"""Opening a video file: what may be opened at all, which of its streams is the picture, and one sentence where there
is none.

Only files that hold a video themselves are opened. FFmpeg would also follow playlists (ffconcat, HLS, DASH), run
scripts (AviSynth) and fetch addresses, whatever a file's name says, so that a text called .mp4 could be another file's
frames or a request to a server.
"""

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import av
from av.container import InputContainer
from av.stream import Disposition

MEND = "download it again, or re-encode it (ffmpeg -i IN -c:v libx264 OUT.mp4)"

# FFmpeg's names of the formats that hold pictures or sound themselves. Sound, because it may come with a picture, and
# to be told apart from damage.
FORMATS = (
    "mov", "matroska", "avi", "mpegts", "mpeg", "asf", "flv", "live_flv", "ogg", "rm", "mxf", "nut", "gxf", "wtv", "dv",
    "ivf", "gif", "amv", "nsv", "nuv", "swf", "pva", "ty", "dhav", "bink", "smk", "roq", "flic", "yuv4mpegpipe",
    "h264", "hevc", "vvc", "evc", "av1", "obu", "m4v", "mpegvideo", "h263", "h261", "vc1", "mjpeg",
    "dirac", "cavsvideo", "mp3", "flac", "wav", "aac", "aiff", "ac3", "ape", "wv", "tta",
)  # fmt: skip
FORMAT_WHITELIST = ",".join(FORMATS)
PROTOCOL_WHITELIST = "file"

# A title that is not UTF-8 must not keep a video from being read. PyAV 19 reads any title, without this option.
LENIENT: dict[str, Any] = {"metadata_errors": "replace"} if int(av.__version__.split(".")[0]) < 19 else {}


class VideoError(ValueError):
    """A file that cannot be read as a video; the message is one sentence with path, reason and mend."""


class DamagedVideoError(VideoError):
    """A video of which FFmpeg can only guess some frames."""


def file_status(path: Path) -> os.stat_result:
    """What the file system says about a video; VideoError if it is not a file that can hold one."""
    try:
        status = path.stat()
    except FileNotFoundError as error:
        raise VideoError(f"{path} does not exist: check --features_path, or download the video.") from error
    if stat.S_ISDIR(status.st_mode):
        raise VideoError(f"{path} is a directory, not a video file: give the path of the file in it.")
    if status.st_size == 0:
        raise VideoError(f"{path} is empty (0 bytes): download it again.")
    return status


def open_container(path: Path) -> InputContainer:
    """A file opened with PyAV, whatever its name and its titles hold; what PyAV raises is passed on."""
    options = {"protocol_whitelist": PROTOCOL_WHITELIST, "format_whitelist": FORMAT_WHITELIST}
    # An absolute path, because FFmpeg takes the "a:" of a relative "a:b.mp4" for a protocol.
    return av.open(str(path.absolute()), container_options=options, **LENIENT)


def picture_stream(container: InputContainer, path: Path) -> av.VideoStream:
    """The stream that FFmpeg would show; VideoError where there is none, or only a cover picture."""
    stream = container.streams.best("video")
    if not isinstance(stream, av.VideoStream) or stream.codec_context is None:
        raise VideoError(f"{path} is not a video (it holds no picture in a known codec): {MEND}.")
    # FFmpeg prefers any other picture, so that there is no video beside a cover that is the best.
    if stream.disposition & (Disposition.attached_pic | Disposition.timed_thumbnails):
        raise VideoError(f"{path} holds sound and a cover picture, no video: download the video itself.")
    if stream.disposition & Disposition.still_image:
        raise VideoError(f"{path} is not a video file (it is a still picture): download the video itself.")
    return stream


@contextmanager
def open_video(path: Path) -> Iterator[tuple[InputContainer, av.VideoStream]]:
    """A file and its picture stream, which decodes on one thread; VideoError where it is not a video."""
    try:
        container = open_container(path)
    except av.ArgumentError as error:  # what FFmpeg says of a format outside the whitelist
        raise VideoError(
            f"{path} is not a video file (it is a playlist, a script or a still picture, or its header is damaged): "
            "download the video itself."
        ) from error
    except av.FFmpegError as error:
        raise VideoError(f"{path} is not a video that can be opened ({error.strerror}): {MEND}.") from error
    with container:
        stream = picture_stream(container, path)
        if "enc_key_id" in stream.metadata:  # Matroska's; an mp4 says so packet by packet
            raise VideoError(f"{path} is encrypted: download a copy without copy protection.")
        stream.codec_context.thread_count = 1  # the loader's workers already use the cores
        yield container, stream
