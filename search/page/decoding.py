"""What the server does with video files and pictures, in a child process (`search.page.children`).

Thumbnails and previews are for people: to be quick in long files, they are found by seeking, which may miss by some
frames. What the model gets is never read in that way.

Shapes: T frames of a window, S image side, h x w pixels of a picture as players show it.
"""

from collections.abc import Iterator
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import NamedTuple

import av
import cv2
import numpy as np
import torch

from dataloaders.decode import read_frames
from dataloaders.frames import FrameReader
from dataloaders.picture_shape import display_matrix, shown_width, turned
from dataloaders.video_file import open_video, picture_offset, stated_rate, survey
from search.reading import read_picture

THUMB = 320  # pixels of a thumbnail's width
TALLEST = 640  # pixels of its height, above which it becomes narrower
FLAT = 4.0  # grey levels: a picture that deviates less from its mean shows nothing
MOST_LOOKED_AT = 300  # frames that are searched for one that is not flat
PREVIEW = 640  # most pixels of a preview's longer side
FASTEST = 30  # frames a second of a preview
LONGEST = 60.0  # seconds of a preview
CLOCK = 90_000  # ticks a second of a preview's times
FAR = 60.0  # seconds of a file that are decoded rather than sought
EARLY = 1e-3  # seconds by which a frame may come before a window that it belongs to: times are rounded
LATE = 0.5  # seconds that seeking may miss a moment by


class Frames(NamedTuple):
    """The frames of a window as the model sees them: uint8 [T, 3, S, S] and bool [T]; the seconds in the file of the
    real ones, and the part of the picture that the squares show: left, top, width, height as shares of it."""

    video: np.ndarray
    frame_mask: np.ndarray
    times: list[float]
    seen: tuple[float, float, float, float]


def read_clip(reader: FrameReader, path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return the frames of a whole clip, uint8 [T, 3, S, S], and frame_mask bool [T]; VideoError if it is none."""
    video, frame_mask = reader(path)
    return video.numpy(), frame_mask.numpy()


def read_still(reader: FrameReader, path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return a picture as a clip in which nothing moves; ValueError if it is none."""
    video, frame_mask = reader.still(read_picture(path), path)
    return video.numpy(), frame_mask.numpy()


def read_window(reader: FrameReader, path: Path, start: float | None, end: float | None) -> Frames:
    """Return the frames of a window, which begins and ends as it was asked for when it was indexed.

    They are those that the model saw. More than FAR seconds into a file they are found by seeking, since decoding all
    that comes before would take minutes, and may then be the next ones.
    """
    if start is not None and end is not None and start > FAR:
        return _sought_window(reader, path, start, end)
    chosen, shape = np.empty(0, dtype=np.int64), (1, 1)
    choose_among = reader.chooser(path, partial(reader.positions, generator=None))

    def choose(n_frames: int, fps: float) -> np.ndarray:
        nonlocal chosen
        chosen = np.asarray(choose_among(n_frames, fps))
        return chosen

    def convert(frame: np.ndarray) -> np.ndarray:
        nonlocal shape
        shape = frame.shape[:2]
        return reader.picture(frame, path)

    read = read_frames(path, choose, convert, start=start, end=end, square_pixels=True)
    video, frame_mask = reader.pad(torch.from_numpy(read.frames))
    with open_video(path) as (container, stream):
        facts = survey(path, container, stream, stated_rate(stream), timed=start is not None)
    numbers = (facts.window(start, end)[0] + chosen).clip(max=facts.n_frames - 1)
    if facts.times is not None:
        times = facts.times[numbers]
    else:
        times = facts.offset + numbers / (facts.rate or 1)
    return Frames(video.numpy(), frame_mask.numpy(), times.tolist(), seen_part(reader, *shape))


def _sought_window(reader: FrameReader, path: Path, start: float, end: float) -> Frames:
    times, pictures, shape = list[float](), list[np.ndarray](), (1, 1)
    for time, picture in frames_from(path, start):
        if time >= end and pictures:
            break
        if time >= start - EARLY:
            shape = picture.shape[:2]
            times.append(time)
            pictures.append(reader.picture(np.ascontiguousarray(picture[..., ::-1]), path))
    if not pictures:
        raise ValueError(f"{path} has no frame at {start:g} s that can be decoded")
    choose = reader.chooser(path, partial(reader.positions, generator=None))
    chosen = np.asarray(choose(len(pictures), len(pictures) / (end - start))).clip(max=len(pictures) - 1)
    video, frame_mask = reader.pad(torch.from_numpy(np.stack([pictures[place] for place in chosen])))
    return Frames(video.numpy(), frame_mask.numpy(), [times[place] for place in chosen], seen_part(reader, *shape))


def seen_part(reader: FrameReader, height: int, width: int) -> tuple[float, float, float, float]:
    """Return which part of a picture of height x width pixels a reader cuts out: left, top, width, height as shares."""
    if reader.resize_mode == "squash" and reader.frame_transform == "resize":
        return 0.0, 0.0, 1.0, 1.0
    side = float(reader.image_size)
    if reader.frame_transform != "crop":
        side *= min(height, width) / (reader.short_side or reader.image_size)
    return (1 - side / width) / 2, (1 - side / height) / 2, side / width, side / height


def write_thumb(path: Path, start: float, end: float, output: Path) -> None:
    """Write a JPEG of the middle of [start, end) seconds of a file, or of the next frame that is not flat."""
    chosen, middle = None, (start + end) / 2
    for looked_at, (time, picture) in enumerate(frames_from(path, middle)):
        if chosen is not None and (time >= end or looked_at >= MOST_LOOKED_AT):
            break
        small = cv2.resize(picture, (32, 32), interpolation=cv2.INTER_AREA)
        if cv2.cvtColor(small, cv2.COLOR_BGR2GRAY).std() >= FLAT:
            chosen = picture
            break
        chosen = picture if chosen is None else chosen
    if chosen is None:
        raise ValueError(f"{path} has no frame at {middle:g} s that can be decoded")
    height, width = chosen.shape[:2]
    scale = min(THUMB / width, TALLEST / height)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    way = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
    done, encoded = cv2.imencode(".jpg", cv2.resize(chosen, size, interpolation=way), [cv2.IMWRITE_JPEG_QUALITY, 80])
    assert done
    output.write_bytes(encoded.tobytes())


def frames_from(path: Path, start: float) -> Iterator[tuple[float, np.ndarray]]:
    """Yield the frames of a file from about `start` seconds on: the second of each, and uint8 [h, w, 3], BGR."""
    with open_video(path) as (container, stream):
        tick = float(stream.time_base or 0)
        begins = float((stream.start_time or 0) * tick)
        zero = begins - picture_offset(container, stream, stated_rate(stream))
        sought = bool(tick) and start > LATE
    while True:
        with open_video(path) as (container, stream):
            if sought:
                try:
                    container.seek(int((zero + start) / tick), stream=stream)
                except av.FFmpegError:  # a file without an index
                    sought = False
                    continue
            step, size, found = 1 / (stated_rate(stream) or 25), (0, 0), False
            now = 0.0
            for frame in decoded(container, stream):
                now = frame.time - zero if frame.time is not None else now + step
                if now + step <= start:
                    continue
                if sought and not found and now > start + LATE:
                    break  # beyond the moment: decode from the beginning
                found = True
                if not size[0]:
                    size = shown_width(frame.width, frame.height, stream.sample_aspect_ratio), frame.height
                pixels = frame.to_ndarray(format="bgr24", width=size[0], height=size[1], threads=1)
                yield now, np.ascontiguousarray(turned(pixels, display_matrix(frame)))
            if found or not sought:
                return
            sought = False


def decoded(container: av.container.InputContainer, stream: av.VideoStream) -> Iterator[av.VideoFrame]:
    """Yield the frames of a stream; what cannot be decoded is left out."""
    try:
        for packet in container.demux(stream):
            try:
                yield from packet.decode()
            except av.FFmpegError:
                continue
    except av.FFmpegError:
        return  # the file ends here


def write_preview(path: Path, start: float, end: float, output: Path) -> None:
    """Write [start, end) seconds of a file as an h264 mp4 without sound, which every browser plays."""
    end = min(end, start + LONGEST) if end > start else start + LONGEST
    shape: tuple[int, int] | None = None
    next_time = start
    with av.open(str(output), "w", format="mp4", options={"movflags": "faststart"}) as container:
        stream = container.add_stream("libx264", rate=FASTEST)
        assert isinstance(stream, av.VideoStream)
        stream.options = {"preset": "veryfast", "crf": "26"}
        stream.pix_fmt, stream.codec_context.time_base = "yuv420p", Fraction(1, CLOCK)
        for time, picture in frames_from(path, start):
            if time >= end:
                break
            if time < next_time and shape is not None:
                continue
            next_time = time + 0.9 / FASTEST
            if shape is None:
                scale = min(1.0, PREVIEW / max(picture.shape[:2]))
                stream.height, stream.width = (max(2, 2 * round(side * scale / 2)) for side in picture.shape[:2])
                shape = stream.height, stream.width
            resized = cv2.resize(picture, shape[::-1], interpolation=cv2.INTER_AREA).astype(np.uint8, copy=False)
            frame = av.VideoFrame.from_ndarray(resized, format="bgr24")
            frame.pts, frame.time_base = round(max(0.0, time - start) * CLOCK), Fraction(1, CLOCK)
            container.mux(stream.encode(frame))
        if shape is None:
            raise ValueError(f"{path} has no frame at {start:g} s that can be decoded")
        container.mux(stream.encode())
