"""From a video file, or a window of time in it, to the T frames that a model sees.

Videos travel as uint8; `transforms.normalise` turns them into floats on the device.

Shapes: T = `max_frames`, S image side.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

import numpy as np
import torch

from dataloaders.cache import FrameCache, StoredFrames
from dataloaders.decode import Choose, VideoError, Window, read_frames, read_windows
from dataloaders.frame_sampling import (
    FRAME_SAMPLING,
    SPREAD,
    at_frame_rate,
    released_evaluation,
    released_training,
    segment_centres,
    segment_random,
    uniform,
)
from dataloaders.quoting import quoted
from dataloaders.transforms import (
    FRAME_TRANSFORM,
    INTERPOLATIONS,
    RESIZE_MODES,
    centre_crop,
    resize_and_crop,
    squash,
)


@dataclass(frozen=True)
class FrameReader:
    """Reads a video file into the T frames that a model sees, in the shape that players show.

    `feature_framerate` (frames a second, 0 for all) first thins the video out to candidates. `frame_sampling` picks T
    of them. "uniform" takes at most T by `slice_framepos`, as CLIP4Clip does, and pads a short video with black frames
    that the mask leaves out. "segment" takes one frame from each of T equal segments, a random one in `training`, else
    the middle one, and repeats frames of a short video. "released" follows the authors' code of STOP.

    `frame_transform` turns frames into squares: "resize" resizes them by `resize_mode` and `interpolation`, which are
    those of the CLIP; "crop" cuts out the middle without resizing. With a `cache` a video is decoded only once. Raises
    ValueError for a setting outside its range.
    """

    max_frames: int
    image_size: int
    frame_sampling: str = "uniform"
    feature_framerate: float = 0.0
    slice_framepos: int = SPREAD
    training: bool = False
    frame_transform: str = "resize"
    cache: FrameCache | None = None
    resize_mode: str = "shortest"
    interpolation: str = "bicubic"

    def __post_init__(self) -> None:
        if self.max_frames < 1:
            raise ValueError(f"--max_frames is {self.max_frames}: pass 1 or more.")
        if self.image_size < 1:
            raise ValueError(f"The image size is {self.image_size}: pass the side of CLIP's input in pixels.")
        if self.frame_sampling not in FRAME_SAMPLING:
            raise ValueError(
                f"--frame_sampling is {quoted(self.frame_sampling)}: pass one of {', '.join(FRAME_SAMPLING)}."
            )
        if self.frame_transform not in FRAME_TRANSFORM:
            raise ValueError(
                f"--frame_transform is {quoted(self.frame_transform)}: pass {' or '.join(FRAME_TRANSFORM)}."
            )
        if self.resize_mode not in RESIZE_MODES or self.interpolation not in INTERPOLATIONS:
            raise ValueError(
                f"Frames cannot be resized by {quoted(self.resize_mode)} and {quoted(self.interpolation)}: pass one of "
                f"{', '.join(RESIZE_MODES)} and one of {', '.join(INTERPOLATIONS)}."
            )
        if self.frame_transform == "crop" and self.resize_mode != "shortest":
            raise ValueError(
                "--frame_transform crop cuts out the middle square, and this CLIP was trained on whole pictures, "
                "squashed to a square: pass --frame_transform resize."
            )
        if not 0 <= self.feature_framerate < float("inf"):
            raise ValueError(f"--feature_framerate is {self.feature_framerate}: pass 0 (every frame) or more.")
        uniform(1, 1, self.slice_framepos)  # refuses an unknown slice_framepos now, not at the first video

    def __call__(
        self,
        path: Path,
        generator: np.random.Generator | None = None,
        start: float | None = None,
        end: float | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return video uint8 [T, 3, S, S] and frame_mask bool [T], True for real frames.

        With `start` or `end`, in seconds, the frames of that window are the whole video. `generator` is needed for
        "segment" and "released" in training and is not touched otherwise. Raises VideoError, also for a video that is
        too small to crop and for a window without a frame; OSError if the cache cannot be written.
        """
        if self.cache is None:
            return self._padded(self._read(path, start, end, lambda n: self._positions(n, generator)))
        return self._padded(self._taken(self._stored(self.cache, path, start, end), generator))

    def read_windows(
        self,
        path: Path,
        windows: Iterable[tuple[float | None, float | None]],
        generator: np.random.Generator | None = None,
    ) -> Iterator[tuple[int, torch.Tensor, torch.Tensor]]:
        """Read many windows (start, end) of a video, which is decoded only once. Yield each one's index, and video and
        frame_mask as of a call, as soon as its last frame has come.

        They come in the order in which they end, those in the cache first. Memory holds the frames of the windows that
        are open at a moment, however long the video. A window that cannot be read does not stop the others: after the
        last of them, the VideoError of the first one that failed is raised. What was not yielded was not read.
        """
        windows = list(windows)
        errors: dict[int, VideoError] = {}
        cache, missing = self.cache, list(range(len(windows)))
        if cache is not None:
            missing = [index for index in missing if not self.cache_place(path, *windows[index]).exists()]
            for index in sorted(set(range(len(windows))).difference(missing)):
                try:
                    yield index, *self(path, generator, *windows[index])
                except VideoError as error:
                    errors[index] = error
        promised: dict[int, int] = {}

        def choose(index: int) -> Choose:
            def positions(n: int) -> np.ndarray:
                promised.setdefault(index, n)
                return self._positions(n, generator) if cache is None else self._stored_positions(n)

            return self._choose(path, positions)

        asked = [Window(choose(index), *windows[index]) for index in missing]
        for place, read in read_windows(path, asked, partial(self._square, path=path), square_pixels=True):
            index = missing[place]
            if isinstance(read, VideoError):
                errors[index] = read
                continue
            frames = torch.from_numpy(read.frames)
            if cache is not None:
                stored = self._store(cache, path, windows[index], frames, promised[index])
                frames = self._taken(stored, generator)
            yield index, *self._padded(frames)
        if errors:
            raise errors[min(errors)]

    def _taken(self, stored: StoredFrames, generator: np.random.Generator | None) -> torch.Tensor:
        """Return the frames that are taken of those in the cache."""
        positions = np.arange(len(stored))
        if self._draws:  # draw again if the video ends before a drawn frame, as decoding does
            positions = self._positions(stored.promised, generator)
            if positions[-1] >= len(stored):
                positions = self._positions(len(stored), generator)
        return stored.take(positions)

    def _padded(self, frames: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return frames uint8 [K, 3, S, S] as video [T, 3, S, S] and frame_mask [T]."""
        n_real = len(frames)
        if n_real == self.max_frames:
            # torch.ones takes a tenth of the time that a cached clip takes.
            return frames, torch.from_numpy(np.ones(n_real, dtype=bool))
        video = torch.zeros(self.max_frames, *frames.shape[1:], dtype=torch.uint8)
        video[:n_real] = frames
        return video, torch.arange(self.max_frames) < n_real

    def prepare(self, path: Path, start: float | None = None, end: float | None = None) -> None:
        """Put a video into the cache; without one, decode all frames that may be asked for. Raises VideoError if it
        cannot be read, as training would later."""
        if self.cache is not None:
            self._stored(self.cache, path, start, end)
        else:
            choose = self._choose(path, lambda n: np.array([n - 1]) if self._draws else self._positions(n, None))
            convert = partial(self._square, path=path)
            read_frames(path, choose, convert, start=start, end=end, square_pixels=True, thorough=True)

    def cache_place(self, path: Path, start: float | None = None, end: float | None = None) -> Path:
        """Return the path of a video's entry in the cache, existing or not; VideoError if there is no such video."""
        assert self.cache is not None
        return self.cache.place(path, self._cache_settings(start, end))

    @property
    def _draws(self) -> bool:
        """Return whether each call takes other frames."""
        return self.training and self.frame_sampling != "uniform"

    def _stored(self, cache: FrameCache, path: Path, start: float | None, end: float | None) -> StoredFrames:
        """Return all candidates if frames are drawn from them, else the frames that are always taken."""

        def read() -> tuple[torch.Tensor, int]:
            counts = []

            def all_that_may_be_taken(n: int) -> np.ndarray:
                counts.append(n)
                return self._stored_positions(n)

            return self._read(path, start, end, all_that_may_be_taken), counts[0]

        return cache.load(path, self._cache_settings(start, end), read)

    def _store(
        self,
        cache: FrameCache,
        path: Path,
        window: tuple[float | None, float | None],
        frames: torch.Tensor,
        promised: int,
    ) -> StoredFrames:
        return cache.load(path, self._cache_settings(*window), lambda: (frames, promised))

    def _stored_positions(self, n: int) -> np.ndarray:
        return np.arange(n) if self._draws else self._positions(n, None)

    def _cache_settings(self, start: float | None, end: float | None) -> str:
        return f"{self._stored_frames}, from {start} to {end}"

    @cached_property
    def _stored_frames(self) -> str:
        """Return a text that says which frames of a video go into the cache, and in which form."""
        taken = "every candidate"
        if not self._draws:
            taken = f"{self.frame_sampling} {self.max_frames}"
        if self.frame_sampling == "uniform":
            taken += f" slice_framepos {self.slice_framepos}"
        how = self.frame_transform
        if how == "resize" and (self.resize_mode, self.interpolation) != ("shortest", "bicubic"):
            how += f" {self.resize_mode} {self.interpolation}"  # not for OpenAI's, so that older caches keep their keys
        return f"{taken}, {self.feature_framerate:.10g} fps, {how} to {self.image_size}"

    def _read(
        self, path: Path, start: float | None, end: float | None, positions: Callable[[int], np.ndarray]
    ) -> torch.Tensor:
        """Decode the frames at `positions(n)` of the n candidates; uint8 [K, 3, S, S]."""
        choose, convert = self._choose(path, positions), partial(self._square, path=path)
        read = read_frames(path, choose, convert, start=start, end=end, square_pixels=True)
        return torch.from_numpy(read.frames)

    def _choose(self, path: Path, positions: Callable[[int], np.ndarray]) -> Choose:
        """Return the function that picks the frames at `positions(n)` of the n candidates."""

        def choose(n_frames: int, fps: float) -> np.ndarray:
            if self.feature_framerate > 0 and fps == 0:
                raise VideoError(f"{path} states no frame rate: re-encode it, or pass --feature_framerate 0.")
            candidates = at_frame_rate(n_frames, fps, self.feature_framerate)
            return candidates[positions(len(candidates))]

        return choose

    def _positions(self, n: int, generator: np.random.Generator | None) -> np.ndarray:
        if self.frame_sampling == "uniform":
            return uniform(n, self.max_frames, self.slice_framepos)
        segment = self.frame_sampling == "segment"
        if not self.training:
            return (segment_centres if segment else released_evaluation)(n, self.max_frames)
        assert generator is not None, "random frames need a generator"
        return (segment_random if segment else released_training)(n, self.max_frames, generator)

    def _square(self, frame: np.ndarray, path: Path) -> np.ndarray:
        """Turn a frame uint8 [H, W, 3] into a square uint8 [3, S, S]."""
        if self.frame_transform == "resize":
            resize = squash if self.resize_mode == "squash" else resize_and_crop
            return resize(frame[None], self.image_size, self.interpolation)[0].numpy()
        height, width = frame.shape[:2]
        if min(height, width) < self.image_size:
            raise VideoError(
                f"{path} is {width}x{height}, too small to crop {self.image_size}x{self.image_size} from it: re-encode "
                f"it with a short side of {self.image_size}, or pass --frame_transform resize."
            )
        return centre_crop(frame[None], self.image_size)[0].numpy()
