"""From a video file, or a window of time in it, to the T frames that a model sees.

Videos travel as uint8; `transforms.normalise` turns them into floats on the device.

Shapes: T = `max_frames`, S image side, V views, K frames taken, h x w pixels of a whole frame.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

import numpy as np
import torch

from dataloaders.cache import FrameCache, StoredFrames
from dataloaders.decode import Choose, VideoError, Watch, Window, read_frames, read_windows
from dataloaders.frame_parts import ClipPath
from dataloaders.frame_sampling import (
    DRAWN,
    FRAME_SAMPLING,
    PLACED,
    SPREAD,
    at_frame_rate,
    dense_random,
    dense_views,
    slowfast_random,
    slowfast_views,
    uniform,
    uniform_views,
)
from dataloaders.quoting import quoted
from dataloaders.transforms import (
    FRAME_TRANSFORM,
    INTERPOLATIONS,
    RESIZE_MODES,
    centre_crop,
    resize_and_crop,
    resize_short_side,
    squash,
)
from dataloaders.views import Views, squares

Count = tuple[int, float]  # n, and the file's frames a second
Positions = Callable[[int, float], np.ndarray]  # (n, frames a second) -> positions among the n candidates

ONE_VIEW = Views()
WHOLE = 8 / 7  # short side of whole frames over the image side: 256 pixels for 224


@dataclass(frozen=True)
class FrameReader:
    """Reads a video file into the T frames that a model sees, in the shape that players show.

    `feature_framerate` (frames a second, 0 for all) first thins the video out to candidates. `frame_sampling` picks T
    of them. "uniform" takes at most T by `slice_framepos`, as CLIP4Clip does, and pads a short video with black frames
    that the mask leaves out. "segment" takes one frame from each of T equal segments, a random one in `training`, else
    the middle one, and repeats frames of a short video. "dense" takes T candidates that are `frame_stride` apart, from
    a random start in `training`, else from the middle, and repeats the last frame of a short video. "slowfast" takes T
    frames that are `frame_stride` / 30 seconds apart, as PySlowFast does, from a random start in `training`, else from
    the video's; it needs all frames as candidates. "released" follows the authors' code of STOP, "stan" that of STAN.

    `frame_transform` turns frames into squares: "resize" resizes them by `resize_mode` and `interpolation`, which are
    those of the CLIP; "bilinear" resizes the short side bilinearly and without antialiasing, as PySlowFast does; "crop"
    cuts out the middle without resizing. With `whole`, for an augmentation that cuts out other parts, `take` gives
    whole frames: a short side above WHOLE times S is reduced to that ("resize"), or nothing changes ("bilinear",
    "crop"). With a `short_side` all frames, also `whole` ones, are resized to it first, and squares of S are cut out
    of them. With a `cache` a video is decoded only once.

    `views` are the clips and squares that `read_views` takes from one video. Raises ValueError for a setting outside
    its range, and for settings that do not go together.
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
    frame_stride: int = 1
    views: Views = ONE_VIEW
    whole: bool = False
    short_side: int = 0

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
                f"--frame_transform is {quoted(self.frame_transform)}: pass one of {', '.join(FRAME_TRANSFORM)}."
            )
        is_cut = self.whole or self.resize_mode == "shortest"
        if self.short_side and (self.short_side < self.image_size or self.frame_transform == "crop" or not is_cut):
            raise ValueError(
                f"A short side of {self.short_side} does not fit: pass {self.image_size} or more, --frame_transform "
                "resize or bilinear, and a CLIP that was not trained on squashed pictures."
            )
        if self.resize_mode not in RESIZE_MODES or self.interpolation not in INTERPOLATIONS:
            raise ValueError(
                f"Frames cannot be resized by {quoted(self.resize_mode)} and {quoted(self.interpolation)}: pass one of "
                f"{', '.join(RESIZE_MODES)} and one of {', '.join(INTERPOLATIONS)}."
            )
        if self.frame_transform != "resize" and self.resize_mode != "shortest":
            raise ValueError(
                f"--frame_transform {self.frame_transform} cuts out the middle square, and this CLIP was trained on "
                "whole pictures, squashed to a square: pass --frame_transform resize."
            )
        if not 0 <= self.feature_framerate < float("inf"):
            raise ValueError(f"--feature_framerate is {self.feature_framerate}: pass 0 (every frame) or more.")
        if self.frame_stride < 1:
            raise ValueError(f"--frame_stride is {self.frame_stride}: pass 1 (every candidate frame) or more.")
        if self.frame_sampling == "slowfast" and self.feature_framerate > 0:
            raise ValueError(
                "--frame_sampling slowfast counts every frame of a file by the file's own rate: pass "
                "--feature_framerate 0."
            )
        uniform(1, 1, self.slice_framepos)  # refuses an unknown slice_framepos now, not at the first video
        if self.views.temporal > 1 and self.frame_sampling == "uniform" and self.slice_framepos != SPREAD:
            raise ValueError(
                f"--test_views {self.views} takes clips from the whole video: pass --slice_framepos {SPREAD} or 1 clip."
            )
        if self.views.spatial > 1 and self.resize_mode == "squash":
            raise ValueError(
                f"--test_views {self.views} cuts squares out of a frame, and this CLIP was trained on whole pictures, "
                "squashed to a square: pass 1 square."
            )
        assert len(self.views) == 1 or not (self.training or self.whole), "views are for evaluation"

    def __call__(
        self,
        path: ClipPath,
        generator: np.random.Generator | None = None,
        start: float | None = None,
        end: float | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return video uint8 [T, 3, S, S] and frame_mask bool [T], True for real frames.

        Arguments and errors are those of `take`.
        """
        assert len(self.views) == 1, "read_views reads several"
        assert not self.whole, "whole frames must be cut to squares first"
        return self.pad(self.take(path, generator, start, end))

    def take(
        self,
        path: ClipPath,
        generator: np.random.Generator | None = None,
        start: float | None = None,
        end: float | None = None,
    ) -> torch.Tensor:
        """Return the K <= T frames of one clip, uint8 [K, 3, S, S], or [K, 3, h, w] of `whole` frames.

        With `start` or `end`, in seconds, the frames of that window are the whole video. `generator` is needed for
        anything but "uniform" in training and is not touched otherwise. Raises VideoError, also for a video
        that is too small to crop and for a window without a frame; OSError if the cache cannot be written.
        """
        if self.cache is None or not isinstance(path, Path):
            return self._read(path, start, end, lambda n, fps: self.positions(n, fps, generator))
        return self._taken(self._stored(self.cache, path, start, end), generator)

    def read_windows(
        self,
        path: Path,
        windows: Iterable[tuple[float | None, float | None]],
        generator: np.random.Generator | None = None,
        watch: Watch | None = None,
    ) -> Iterator[tuple[int, torch.Tensor, torch.Tensor]]:
        """Read many windows (start, end) of a video, which is decoded only once. Yield each one's index, and video and
        frame_mask as of a call, as soon as its last frame has come.

        They come in the order in which they end, those in the cache first. Memory holds the frames of the windows open
        at a moment, however long the video. `watch` is that of `decode.read_windows`. After the last window, the
        VideoError of the first one that failed is raised; the others were yielded.
        """
        assert len(self.views) == 1, "read_views reads several"
        assert not self.whole, "whole frames must be cut to squares first"
        windows, cache, errors = list(windows), self.cache, dict[int, VideoError]()
        missing = list(range(len(windows)))
        if cache is not None:
            missing = [index for index in missing if not self.cache_place(path, *windows[index]).exists()]
            for index in sorted(set(range(len(windows))).difference(missing)):
                try:
                    yield index, *self(path, generator, *windows[index])
                except VideoError as error:
                    errors[index] = error
        counts: list[list[Count]] = [[] for _ in missing]

        def choose(place: int) -> Choose:
            drawn = partial(self.positions, generator=generator)
            return self.chooser(path, drawn if cache is None else self._counting(counts[place]))

        asked = [Window(choose(place), *windows[index]) for place, index in enumerate(missing)]
        convert = partial(self.picture, path=path)
        for place, read in read_windows(path, asked, convert, square_pixels=True, watch=watch):
            index = missing[place]
            if isinstance(read, VideoError):
                errors[index] = read
                continue
            frames = torch.from_numpy(read.frames)
            if cache is not None:
                entry = partial(self._entry, frames, counts[place])
                stored = cache.load(path, self._cache_settings(*windows[index]), entry)
                frames = self._taken(stored, generator)
            yield index, *self.pad(frames)
        if errors:
            raise errors[min(errors)]

    def _taken(self, stored: StoredFrames, generator: np.random.Generator | None) -> torch.Tensor:
        """Return the frames that are taken of those in the cache."""
        positions = np.arange(len(stored))
        if self._draws:  # draw again if the video ends before a drawn frame, as decoding does
            positions = self.positions(stored.promised, stored.fps, generator)
            if positions[-1] >= len(stored):
                positions = self.positions(len(stored), stored.fps, generator)
        return stored.take(positions)

    def pad(self, frames: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Add black frames to K <= T: uint8 [K, ...] -> uint8 [T, ...] and frame_mask bool [T], True for the K."""
        n_real = len(frames)
        if n_real == self.max_frames:
            # torch.ones takes a tenth of the time that a cached clip takes.
            return frames, torch.from_numpy(np.ones(n_real, dtype=bool))
        video = torch.zeros(self.max_frames, *frames.shape[1:], dtype=torch.uint8)
        video[:n_real] = frames
        return video, torch.arange(self.max_frames) < n_real

    def still(self, picture: np.ndarray, path: Path) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the picture uint8 [H, W, 3] of a file as a clip in which nothing moves, in the form of a call."""
        frame = torch.from_numpy(np.ascontiguousarray(self.picture(picture, path)))
        return self.pad(frame.repeat(self.max_frames, 1, 1, 1))

    def read_views(
        self, path: Path, start: float | None = None, end: float | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return all `views` of a video, decoded once: uint8 [V, T, 3, S, S] and frame_mask bool [V, T].

        One view is exactly what calling the reader gives. Arguments and errors are those of `take`.
        """
        if self.cache is None:
            counts: list[Count] = []
            frames = self._read(path, start, end, self._counting(counts))
            count = counts[-1]
        else:
            stored = self._stored(self.cache, path, start, end)
            frames, count = stored.take(np.arange(len(stored))), (stored.promised, stored.fps)
        clips = [frames]
        if self.views.temporal > 1:
            rows = np.searchsorted(self.positions(*count, None), self._clips(*count))
            clips = [frames[row] for row in rows]
        if self.views.spatial > 1:
            clips = [square for clip in clips for square in squares(clip, self.image_size, self.views.spatial)]
        videos, masks = zip(*map(self.pad, clips), strict=True)
        return torch.stack(videos), torch.stack(masks)

    def prepare(self, path: Path, start: float | None = None, end: float | None = None) -> None:
        """Put a video into the cache; without one, decode all frames that may be asked for. Raises VideoError if it
        cannot be read, as training would later."""
        if self.cache is not None:
            self._stored(self.cache, path, start, end)
        else:
            choose, convert = self.chooser(path, self._last), partial(self.picture, path=path)
            read_frames(path, choose, convert, start=start, end=end, square_pixels=True, thorough=True)

    def _last(self, n: int, fps: float) -> np.ndarray:
        return np.array([n - 1]) if self._draws else self.positions(n, fps, None)

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

        def read() -> tuple[torch.Tensor, int, float]:
            counts: list[Count] = []
            return self._entry(self._read(path, start, end, self._counting(counts)), counts)

        return cache.load(path, self._cache_settings(start, end), read)

    def _entry(self, frames: torch.Tensor, counts: list[Count]) -> tuple[torch.Tensor, int, float]:
        """Return what the cache keeps: frames, and one of the counts from which they were chosen, in that order."""
        # Draws begin with the count that the header promises. Views are placed by the count that there is.
        n, fps = counts[0 if self._draws else -1]
        return frames, n, fps if self.frame_sampling == "slowfast" else 0.0

    def _counting(self, counts: list[Count]) -> Positions:
        """Return a function from n to all positions that may be taken, which notes each n in `counts`."""

        def all_that_may_be_taken(n: int, fps: float) -> np.ndarray:
            counts.append((n, fps))
            return np.arange(n) if self._draws else self.positions(n, fps, None)

        return all_that_may_be_taken

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
        elif self.frame_sampling in ("dense", "slowfast") and not self._draws:
            taken += f" stride {self.frame_stride}"
        how = self.frame_transform
        # What was not there from the start is not named at its default, so that older caches keep their keys.
        if self.views.temporal > 1:
            taken += f" in {self.views.temporal} clips"
        if how == "resize" and (self.resize_mode, self.interpolation) != ("shortest", "bicubic"):
            how += f" {self.resize_mode} {self.interpolation}"
        if self.whole:
            how += " whole with a margin"
        elif self.views.spatial > 1:
            how += " whole"
        how += f" at {self.short_side}" * (self.short_side > 0)
        return f"{taken}, {self.feature_framerate:.10g} fps, {how} to {self.image_size}"

    def _read(self, path: ClipPath, start: float | None, end: float | None, positions: Positions) -> torch.Tensor:
        """Decode the frames at `positions(n, fps)` of the n candidates; uint8 [K, 3, S, S]."""
        choose, convert = self.chooser(path, positions), partial(self.picture, path=path)
        read = read_frames(path, choose, convert, start=start, end=end, square_pixels=True)
        return torch.from_numpy(read.frames)

    def chooser(self, path: ClipPath, positions: Positions) -> Choose:
        """Return the function that picks the frames at `positions(n, fps)` of the n candidates."""

        def choose(n_frames: int, fps: float) -> np.ndarray:
            if fps == 0 and (self.feature_framerate > 0 or self.frame_sampling == "slowfast"):
                instead = "--feature_framerate 0" if self.feature_framerate > 0 else "another --frame_sampling"
                raise VideoError(f"{path} states no frame rate: re-encode it, or pass {instead}.")
            candidates = at_frame_rate(n_frames, fps, self.feature_framerate)
            return candidates[positions(len(candidates), fps)]

        return choose

    def positions(self, n: int, fps: float, generator: np.random.Generator | None) -> np.ndarray:
        """Return the positions of the frames of one clip, or of all clips together; int64 [K], sorted."""
        if not self._draws:
            clips = self._clips(n, fps)
            return clips[0] if len(clips) == 1 else np.unique(clips)
        assert generator is not None, "random frames need a generator"
        if self.frame_sampling == "dense":
            return dense_random(n, self.max_frames, self.frame_stride, generator)
        if self.frame_sampling == "slowfast":
            return slowfast_random(n, fps, self.max_frames, self.frame_stride, generator)
        return DRAWN[self.frame_sampling](n, self.max_frames, generator)

    def _clips(self, n: int, fps: float) -> np.ndarray:
        """Return the positions of the frames of each clip of an evaluation, int64 [temporal, K]."""
        n_clips = self.views.temporal
        if self.frame_sampling == "uniform":
            if n_clips == 1:
                return uniform(n, self.max_frames, self.slice_framepos)[None]
            return uniform_views(n, self.max_frames, n_clips)
        if self.frame_sampling == "dense":
            return dense_views(n, self.max_frames, self.frame_stride, n_clips)
        if self.frame_sampling == "slowfast":
            return slowfast_views(n, fps, self.max_frames, self.frame_stride, n_clips)
        return PLACED[self.frame_sampling](n, self.max_frames, n_clips)

    def picture(self, frame: np.ndarray, path: ClipPath) -> np.ndarray:
        """Turn a frame uint8 [H, W, 3] into a square uint8 [3, S, S], or into a whole frame [3, h, w]."""
        antialias = self.frame_transform == "resize"
        several = self.views.spatial > 1  # squares are cut later
        if self.whole and not self.short_side:
            side = round(WHOLE * self.image_size) if antialias else min(frame.shape[:2])
            return resize_short_side(frame[None], side, self.interpolation, enlarge=False)[0].numpy()
        if self.frame_transform != "crop":
            if self.resize_mode == "squash" and not self.whole:
                return squash(frame[None], self.image_size, self.interpolation)[0].numpy()
            side, interpolation = self.short_side or self.image_size, self.interpolation if antialias else "bilinear"
            if self.whole or several:
                return resize_short_side(frame[None], side, interpolation, antialias=antialias)[0].numpy()
            return resize_and_crop(frame[None], self.image_size, interpolation, antialias, side)[0].numpy()
        height, width = frame.shape[:2]
        if min(height, width) < self.image_size:
            raise VideoError(
                f"{path} is {width}x{height}, too small to crop {self.image_size}x{self.image_size} from it: re-encode "
                f"it with a short side of {self.image_size}, or pass --frame_transform resize."
            )
        return frame.transpose(2, 0, 1) if several else centre_crop(frame[None], self.image_size)[0].numpy()
