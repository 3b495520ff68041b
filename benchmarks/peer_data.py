"""The contests of `benchmarks.peers` in decoding and in caches.

Shapes: T frames, S image side.
"""

import io
import tarfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import torch
from torch import Tensor

from benchmarks.data import write_made_clip
from benchmarks.peer_contests import Contest, Peer, Sizes, Work
from dataloaders.cache import FRAME_CACHE_FORMAT, JPEG_QUALITY, FrameCache
from dataloaders.decode import read_frames
from dataloaders.frame_sampling import segment_centres
from dataloaders.frames import FrameReader


def decoding(sizes: Sizes, folder: Path) -> Iterator[Contest]:
    """Decode T frames, the middles of equal segments, to RGB of full size."""
    for work, rate, height, width in (("3 fps, 320x224", 3, 224, 320), ("25 fps, 640x360", 25, 360, 640)):
        paths = [
            write_panning_clip(folder / f"{rate}_{number}.mp4", number, sizes.seconds, height, width, rate)
            for number in range(sizes.clips)
        ]
        numbers = segment_centres(rate * sizes.seconds, sizes.frames)

        readers = {"decord": _decord, "av": lambda: _pyav, "cv2": lambda: _opencv, "torchcodec": _torchcodec}
        peers = {
            PEER_NAMES.get(module, module): Peer(module, partial(_each, reader, paths, numbers))
            for module, reader in readers.items()
        }
        ours = _each(lambda: _ours, paths, numbers)
        yield Contest("decoding", f"{sizes.clips} clips, {work}, {_share_of_b_frames(paths)} % B frames", ours, peers)


def _share_of_b_frames(paths: list[Path]) -> int:
    """Return the percentage of B frames, which decoders may leave out where nobody asked for them."""
    kinds = []
    for path in paths:
        with av.open(str(path)) as container:
            kinds += [frame.pict_type == av.video.frame.PictureType.B for frame in container.decode(video=0)]
    return round(100 * float(np.mean(kinds)))


def write_panning_clip(path: Path, seed: int, seconds: int, height: int, width: int, rate: int) -> Path:
    """Write an h264 file of a noisy camera that pans slowly over a scene.

    The scene has the spectrum of natural images, whose amplitude falls with frequency. So x264, at its defaults, makes
    about as many B frames as of recorded videos; of patterns that deform it makes none.
    """
    rng = np.random.default_rng(seed)
    side = 2 * max(height, width)
    frequency = np.hypot(*np.meshgrid(np.fft.fftfreq(side), np.fft.fftfreq(side))) + 1 / side
    scene = np.stack([np.fft.ifft2(np.fft.fft2(rng.normal(size=(side, side))) / frequency).real for _ in range(3)], -1)
    scene = 127 + 45 * scene / scene.std(axis=(0, 1))
    phases = rng.uniform(0, 2 * np.pi, 2)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=rate)
        assert isinstance(stream, av.VideoStream)
        stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
        for frame in range(rate * seconds):
            down, right = (1 + np.sin(frame / rate * np.array([0.1, 0.13]) + phases)) / 2
            top, left = int(down * (side - height)), int(right * (side - width))
            picture = scene[top : top + height, left : left + width] + rng.normal(0, 2, (height, width, 1))
            pixels = np.clip(picture, 0, 255).astype(np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
    return path


Read = Callable[[Path, np.ndarray], Any]
PEER_NAMES = {"av": "PyAV", "cv2": "OpenCV"}


def _each(reader: Callable[[], Read], paths: list[Path], at: np.ndarray) -> Work:
    read = reader()
    return lambda: [read(path, at) for path in paths]


def _ours(path: Path, at: np.ndarray) -> np.ndarray:
    return read_frames(path, lambda n, fps: at).frames


def _decord() -> Read:
    import decord

    return lambda path, at: decord.VideoReader(str(path), num_threads=1).get_batch(at.tolist()).asnumpy()


def _torchcodec() -> Read:
    from torchcodec.decoders import VideoDecoder

    return lambda path, at: VideoDecoder(str(path), dimension_order="NHWC", num_ffmpeg_threads=1).get_frames_at(
        at.tolist()
    )


def _pyav(path: Path, at: np.ndarray) -> np.ndarray:
    import av

    wanted = set(at.tolist())
    found = {}
    with av.open(str(path)) as container:
        container.streams.video[0].thread_count = 1
        for number, frame in enumerate(container.decode(video=0)):
            if number in wanted:
                found[number] = frame.to_ndarray(format="rgb24")
            if number == at[-1]:
                break
    return np.stack([found[number] for number in at.tolist()])


def _opencv(path: Path, at: np.ndarray) -> np.ndarray:
    capture = cv2.VideoCapture(str(path), cv2.CAP_FFMPEG, [cv2.CAP_PROP_N_THREADS, 1])
    wanted = set(at.tolist())
    found = {}
    for number in range(int(at[-1]) + 1):
        capture.grab()
        if number in wanted:
            found[number] = cv2.cvtColor(capture.retrieve()[1], cv2.COLOR_BGR2RGB)
    capture.release()
    return np.stack([found[number] for number in at.tolist()])


# Caches


def caches(sizes: Sizes, folder: Path) -> Iterator[Contest]:
    """Read clips uint8 [T,3,S,S] from a cache, all files in the operating system's memory."""
    side = sizes.architecture.image_size
    paths = [write_made_clip(folder / f"{number}.mp4", number) for number in range(sizes.clips)]
    plain = FrameReader(sizes.frames, side, "segment")
    clips = [plain(path)[0].numpy() for path in paths]
    for encoding in FRAME_CACHE_FORMAT:
        reader = partial(_reader, sizes, folder / encoding, encoding)
        kept = reader()
        _read_all(kept, paths)  # fills the cache
        blobs = [[clip.tobytes()] if encoding == "raw" else _jpegs(clip) for clip in clips]
        decode = partial(_from_blobs, clips[0].shape)
        peers = {
            "LMDB": Peer("lmdb", partial(_lmdb, folder / f"{encoding}.lmdb", blobs, decode, True)),
            "webdataset": Peer("webdataset", partial(_webdataset, folder / f"{encoding}.tar", blobs, decode)),
        }
        if encoding == "jpeg":
            peers["OpenCV, a file a frame"] = Peer("cv2", partial(_files, folder / "frames", blobs, decode))
        yield Contest(
            "cache", f"{encoding}, {sizes.clips} clips, opened before", partial(_read_all, kept, paths), peers
        )
        again = {"LMDB": Peer("lmdb", partial(_lmdb, folder / f"{encoding} again.lmdb", blobs, decode, False))}
        first = partial(_read_anew, reader, paths)
        yield Contest("cache", f"{encoding}, {sizes.clips} clips, first read of a process", first, again)


def _reader(sizes: Sizes, folder: Path, encoding: str) -> FrameReader:
    side = sizes.architecture.image_size
    return FrameReader(sizes.frames, side, "segment", cache=FrameCache(folder, encoding))


def _read_all(read: FrameReader, paths: list[Path]) -> list[Tensor]:
    return [read(path)[0] for path in paths]


def _read_anew(reader: Callable[[], FrameReader], paths: list[Path]) -> list[Tensor]:
    return _read_all(reader(), paths)


def _jpegs(clip: np.ndarray) -> list[bytes]:
    quality = [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY]
    bgr = [np.ascontiguousarray(frame[::-1].transpose(1, 2, 0)) for frame in clip]
    return [cv2.imencode(".jpg", frame, quality)[1].tobytes() for frame in bgr]


def _from_blobs(shape: tuple[int, ...], blobs: list[bytes]) -> Tensor:
    """Return the clip of one raw blob, or of a JPEG file for each frame."""
    if len(blobs) == 1 and len(blobs[0]) == np.prod(shape):
        return torch.from_numpy(np.frombuffer(blobs[0], np.uint8).reshape(shape).copy())
    frames: list[Any] = [cv2.imdecode(np.frombuffer(blob, np.uint8), cv2.IMREAD_COLOR) for blob in blobs]
    return torch.from_numpy(np.stack([cv2.cvtColor(frame, cv2.COLOR_BGR2RGB).transpose(2, 0, 1) for frame in frames]))


Decode = Callable[[list[bytes]], Tensor]


def _lmdb(path: Path, clips: list[list[bytes]], decode: Decode, keep_open: bool) -> Work:
    import lmdb

    def opened(**options: Any) -> Any:
        return lmdb.open(str(path), map_size=2**32, **options)

    keys = [[f"{clip}.{part}".encode() for part in range(len(blobs))] for clip, blobs in enumerate(clips)]
    with opened() as made, made.begin(write=True) as transaction:
        for names, blobs in zip(keys, clips, strict=True):
            for name, blob in zip(names, blobs, strict=True):
                transaction.put(name, blob)

    def read(environment: Any) -> list[Tensor]:
        with environment.begin(buffers=True) as transaction:
            return [decode([transaction.get(name) for name in names]) for names in keys]

    def open_and_read() -> list[Tensor]:
        with opened(readonly=True, lock=False) as environment:
            return read(environment)

    return partial(read, opened(readonly=True, lock=False)) if keep_open else open_and_read


def _webdataset(path: Path, clips: list[list[bytes]], decode: Decode) -> Work:
    import webdataset

    with tarfile.open(path, "w") as tar:
        for clip, blobs in enumerate(clips):
            for part, blob in enumerate(blobs):
                member = tarfile.TarInfo(f"{clip:05}.{part:03}")
                member.size = len(blob)
                tar.addfile(member, io.BytesIO(blob))

    def read() -> list[Tensor]:
        rows = webdataset.WebDataset(str(path), shardshuffle=False)
        return [decode([row[part] for part in sorted(row) if part.isdigit()]) for row in rows]

    return read


def _files(folder: Path, clips: list[list[bytes]], decode: Decode) -> Work:
    folder.mkdir()
    places = [[folder / f"{clip}_{part}.jpg" for part in range(len(blobs))] for clip, blobs in enumerate(clips)]
    for names, blobs in zip(places, clips, strict=True):
        for name, blob in zip(names, blobs, strict=True):
            name.write_bytes(blob)
    return lambda: [decode([name.read_bytes() for name in names]) for names in places]
