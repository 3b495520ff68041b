"""Decoded frames on disk (--frame_cache), so that a video is decoded once and not once for each caption and epoch.

An entry holds the frames that a FrameReader takes from one video: always the same ones, or every candidate if the
sampling draws. They are ready for the model, or whole if squares are cut from them later. An entry is a safetensors
file. In "raw" it holds the pixels, which are mapped into memory and so shared by all loader workers and processes of a
machine. In "jpeg" it holds a JPEG file for each frame, about a tenth of the size.

An entry's name is a hash of all that its pixels depend on: the video file's place below the folder of the videos, its
size, its time of change and a sample of its content; the reader's settings; the decoder's version. A changed video,
another setting or another decoder gets a new entry, and the videos and the cache may each be moved as a whole. An entry
also states what it was made from and carries a checksum. Both are checked when a process first opens it, and an entry
that fails is made again.

Each part of a file's identity sees what the others miss. Data sets and cameras have files of one name, size and time in
different folders: place and sample tell them apart. A download that is written into a file of full size may change
nothing that is sampled: the time of change shows it. So keep these times when you copy videos (cp -p, rsync -t), or
their entries are made again.

Shapes: K stored frames, h x w their pixels, a square for most readers.
"""

import json
import logging
import os
import platform
import threading
import zlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from glob import escape
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from dataloaders.decode import decoder_version
from dataloaders.quoting import quoted
from dataloaders.video_file import VideoError, file_status

FrameCacheFormat = Literal["raw", "jpeg"]  # --frame_cache_format
FRAME_CACHE_FORMAT: tuple[str, ...] = get_args(FrameCacheFormat)
JPEG_QUALITY = 95
LAYOUT = 3  # version of an entry's layout; a change of it, or of the decoding, makes all entries again
SAMPLE_BYTES = 2**20  # read at the start, in the middle and at the end of a video file
MAX_MAPPED = 16_384  # entries that a process keeps open, a quarter of the mappings that Linux allows it
PARTIAL = ".partial"
LABEL = "entry"  # the only text in an entry: safetensors would store several in varying order

log = logging.getLogger("stop")


# A video file as one process sees it: path, device and inode, bytes, and the times (ns) when its content and its inode
# last changed.
FileState = tuple[Path, int, int, int, int, int]


class StoredFrames:
    """The K frames of an entry; a "jpeg" frame is decoded when it is taken.

    `promised` is a number of candidates: of those that the video file's header promised, if the sampling draws, else of
    those that the frames were taken from. `fps` is the file's frames a second, if the sampling depends on it, else 0.0.
    """

    def __init__(self, tensors: Mapping[str, torch.Tensor]) -> None:
        self.promised = int(tensors["promised"])
        self.fps = float(tensors.get("fps", 0.0))
        self._pixels = self._jpegs = None
        if "pixels" in tensors:
            self._pixels = tensors["pixels"].numpy()  # uint8 [K, 3, h, w]
            self._count = len(self._pixels)
        else:
            ends, jpeg = tensors["ends"].tolist(), tensors["jpeg"].numpy()
            self._jpegs = [jpeg[first:end] for first, end in zip([0, *ends], ends, strict=False)]
            self._count = len(ends)

    def __len__(self) -> int:
        return self._count

    def take(self, positions: np.ndarray) -> torch.Tensor:
        """Return a copy of the frames at `positions`, int64 [k]: uint8 [k, 3, h, w]."""
        if self._pixels is not None:
            return torch.from_numpy(self._pixels.take(positions, axis=0))
        assert self._jpegs is not None
        jpegs = [self._jpegs[position] for position in positions.tolist()]
        return torch.from_numpy(_from_jpegs(jpegs))


@dataclass(frozen=True)
class FrameCache:
    """A folder of decoded frames, in `encoding` "raw" or "jpeg". Many processes may read and fill it at once.

    `videos` is the folder with the videos, --features_path; processes that share entries must name the same folder.
    Without it a file is known by its name alone. `content_samples` holds the samples read so far, also by the process
    that started this one. Raises ValueError for an unknown encoding or a folder that is a file.
    """

    folder: Path
    encoding: str = "raw"
    videos: Path | None = None
    _mapped: dict[tuple[FileState, str], StoredFrames] = field(default_factory=dict, repr=False, compare=False)
    content_samples: dict[FileState, str] = field(default_factory=dict, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.encoding not in FRAME_CACHE_FORMAT:
            raise ValueError(
                f"--frame_cache_format is {quoted(self.encoding)}: pass {' or '.join(FRAME_CACHE_FORMAT)}."
            )
        if self.folder.exists() and not self.folder.is_dir():
            raise ValueError(f"--frame_cache {self.folder} is a file: name a folder.")

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_mapped": {}}  # else a started process would get copies of the mapped entries

    def load(self, path: Path, settings: str, read: Callable[[], tuple[torch.Tensor, int, float]]) -> StoredFrames:
        """Return the frames of the video `path` under a reader's `settings`, a text that tells settings apart.

        If there is no valid entry yet, `read` provides the frames, uint8 [K, 3, h, w], and the numbers `promised` and
        `fps` of `StoredFrames`.

        Raises VideoError, also if the video has disappeared, and OSError if the entry cannot be written.
        """
        state = _state(path)
        if (stored := self._mapped.get((state, settings))) is None:
            terms = self._terms(state, settings)
            place = self._place(terms)
            stored = self._open(place, terms)
            if stored is None:
                self._write(place, terms, *read())
                stored = self._open(place, terms)
            if stored is None:
                raise OSError(f"{place} cannot be read back as it was written: name another --frame_cache.")
            if len(self._mapped) >= MAX_MAPPED:
                self._mapped.clear()
            self._mapped[state, settings] = stored
        return stored

    def place(self, path: Path, settings: str) -> Path:
        """Return the path of a video's entry, existing or not; VideoError if there is no such readable video."""
        return self._place(self._terms(_state(path), settings))

    def remove_partials(self) -> None:
        """Remove partial files that killed writers of this machine left behind."""
        for partial in self.folder.glob(f"*/.*.{escape(platform.node())}.*{PARTIAL}"):
            process = int(partial.name.removesuffix(PARTIAL).split(".")[-2])
            if not _is_alive(process):
                partial.unlink(missing_ok=True)

    def _terms(self, state: FileState, settings: str) -> str:
        """Return all that the pixels of an entry depend on, as text."""
        path, _, _, size, changed, _ = state
        if (sample := self.content_samples.get(state)) is None:
            sample = self.content_samples[state] = content_sample(path, size)
        file = path.relative_to(self.videos) if self.videos and path.is_relative_to(self.videos) else Path(path.name)
        terms = {
            "file": file.as_posix(),
            "bytes": size,
            "changed (ns)": changed,
            "sample (sha256)": sample,
            "settings": settings,
            "decoder": decoder_version(),
            "encoding": f"jpeg {JPEG_QUALITY}" if self.encoding == "jpeg" else self.encoding,
            "layout": LAYOUT,
        }
        return json.dumps(terms)

    def _place(self, terms: str) -> Path:
        name = sha256(terms.encode()).hexdigest()[:32]
        return self.folder / name[:2] / f"{name}.safetensors"

    def _open(self, place: Path, terms: str) -> StoredFrames | None:
        """Return an entry, or None if there is none or it is not what was written."""
        try:
            with safe_open(place, "pt") as file:
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, not a mapping
                label = (file.metadata() or {}).get(LABEL)
        except FileNotFoundError:
            return None
        except (SafetensorError, OSError):
            label = None
        if label is None or label != _label(terms, tensors):
            log.warning("%s in the frame cache is damaged: it is made again", place)
            return None
        return StoredFrames(tensors)

    def _write(self, place: Path, terms: str, frames: torch.Tensor, promised: int, fps: float) -> None:
        tensors = {"promised": torch.tensor(promised)}
        if fps:  # not in the entries of other samplings, which stay as they were
            tensors["fps"] = torch.tensor(fps, dtype=torch.float64)
        if self.encoding == "jpeg":
            jpegs = [_to_jpeg(frame.numpy()) for frame in frames]
            ends = np.cumsum([len(jpeg) for jpeg in jpegs])
            tensors |= {"jpeg": torch.from_numpy(np.concatenate(jpegs)), "ends": torch.from_numpy(ends)}
        else:
            tensors["pixels"] = frames.contiguous()
        writer = f"{platform.node()}.{os.getpid()}.{threading.get_ident()}"
        partial = place.with_name(f".{place.name}.{writer}{PARTIAL}")
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            # Not save_file, whose own partial file has another name and stays behind if it is killed.
            partial.write_bytes(save(tensors, {LABEL: _label(terms, tensors)}))
            partial.replace(place)  # not synced to the disk: after a power cut the checksum fails
        except OSError as error:
            reason = error.strerror or error
            raise OSError(
                f"--frame_cache {self.folder} cannot be written to ({reason}): make room, or name another folder."
            ) from error
        finally:
            with suppress(OSError):
                partial.unlink()


def _state(path: Path) -> FileState:
    status = file_status(path)
    return path, status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def content_sample(path: Path, size: int) -> str:
    """Return the SHA-256, as hexadecimal digits, of the first, middle and last MiB of a file of `size` bytes, or of all
    of it up to 3 MiB. VideoError if it cannot be read."""
    starts = (0, (size - SAMPLE_BYTES) // 2, size - SAMPLE_BYTES)
    parts = [(start, SAMPLE_BYTES) for start in starts] if size > 3 * SAMPLE_BYTES else [(0, size)]
    found = sha256()
    try:
        with path.open("rb", buffering=0) as file:
            for start, length in parts:
                file.seek(start)
                found.update(file.read(length))
    except OSError as error:
        raise VideoError(f"{path} cannot be read ({error.strerror}): correct its permissions or its disk.") from error
    return found.hexdigest()


def _label(terms: str, tensors: Mapping[str, torch.Tensor]) -> str:
    """Return an entry's label: its terms, and the CRC-32 of its tensors' names, types, shapes and bytes, sorted by
    name."""
    checksum = 0
    for name in sorted(tensors):
        values = tensors[name].numpy()
        checksum = zlib.crc32(f"{name} {values.dtype} {values.shape}".encode(), checksum)
        checksum = zlib.crc32(values.data, checksum)
    return f"{terms} {checksum:08x}"


def _to_jpeg(frame: np.ndarray) -> np.ndarray:
    """Encode a frame uint8 [3, h, w] RGB as a JPEG file, uint8 [n] bytes."""
    import cv2  # only "jpeg" needs it

    picture = cv2.cvtColor(np.ascontiguousarray(frame.transpose(1, 2, 0)), cv2.COLOR_RGB2BGR)
    return cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])[1].reshape(-1)


def _from_jpegs(jpegs: Sequence[np.ndarray]) -> np.ndarray:
    """Decode k JPEG files of one size, each uint8 [n] bytes, to frames uint8 [k, 3, h, w] RGB."""
    import cv2

    frames = np.empty(0, dtype=np.uint8)
    for number, jpeg in enumerate(jpegs):
        if number > 0 and jpeg is jpegs[number - 1]:  # a short video repeats its frames
            frames[number] = frames[number - 1]
            continue
        picture = cv2.imdecode(jpeg, cv2.IMREAD_COLOR)
        assert picture is not None  # the checksum was right
        if number == 0:
            frames = np.empty((len(jpegs), 3, *picture.shape[:2]), dtype=np.uint8)
        red, green, blue = frames[number]
        cv2.split(picture, [blue, green, red])  # writes into `frames` while the picture is in the processor's cache
    return frames


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # another user's
        return True
    return True
