"""Which frames of a video a model sees: pure functions from counts to frame numbers, without files or pixels.

`in_window` and `on_screen` find the part of a video that is given in seconds, for a constant frame rate and for times
of any kind. `at_frame_rate` thins it out to n candidates. The others pick positions among the candidates: `uniform` as
CLIP4Clip does; `segment_random` (training) and `segment_centres` (evaluation) over the whole clip; `released_training`
and `released_evaluation` do what the authors' released code of STOP does, `stan_random` and `stan_views` what STAN's
does; `dense_random` and `dense_views` take frames at a fixed distance; `slowfast_random` and `slowfast_views` take them
at a fixed distance in seconds, as PySlowFast and with it STDD's release do. For a short video `uniform` returns fewer
than T positions, which the caller pads; the others always return T and repeat frames if necessary.

The functions named `..._views` place V clips of one video; for V = 1 they give the one clip of an evaluation.

Shapes: n candidate frames, T = `max_frames`, V views. Everything returned is int64, sorted along its last axis, and
counts from 0.
"""

import math
from typing import Literal, get_args

import numpy as np
import torch

FrameSampling = Literal["uniform", "segment", "released", "dense", "slowfast", "stan"]  # --frame_sampling
FRAME_SAMPLING: tuple[str, ...] = get_args(FrameSampling)
HEAD, TAIL, SPREAD = 0, 1, 2  # the values of --slice_framepos, as in CLIP4Clip
SLOWFAST_FPS = 30  # the frames a second in which PySlowFast counts its strides


def in_window(n_frames: int, fps: float, start: float | None, end: float | None) -> tuple[int, int]:
    """Return the first frame on screen in [start, end) seconds and the one after the last, within 0..n_frames.

    Frame f is on screen during [f / fps, (f + 1) / fps). None is the video's own start or end. A window without a frame
    gives first >= stop.
    """
    rounding = 1e-6  # in frames: 0.7 s at 10 fps gives 7.000000000000001
    first = 0 if start is None else max(0, math.floor(start * fps + rounding))
    stop = n_frames if end is None else min(n_frames, math.ceil(end * fps - rounding))
    return first, stop


def on_screen(times: np.ndarray, ends: float, start: float | None, end: float | None) -> tuple[int, int]:
    """Return the first frame on screen in [start, end) seconds and the one after the last, within 0..n.

    Frame f is on screen from times[f], float64 [n] in sorted seconds, until the next one comes; the last one until
    `ends`. None is the video's own start or end. A window without a frame gives first >= stop.
    """
    rounding = 1e-6  # in seconds: finer than any container's clock
    leaves = np.append(times[1:], ends)
    first = 0 if start is None else int(np.searchsorted(leaves, start + rounding, side="right"))
    stop = len(times) if end is None else int(np.searchsorted(times, end - rounding))
    return first, stop


def at_frame_rate(n_frames: int, fps: float, feature_framerate: float) -> np.ndarray:
    """Thin a video out to `feature_framerate` frames a second; returns frame numbers, int64 [n], n >= 1.

    A rate of 0 keeps every frame. Whole rates follow CLIP4Clip's OpenCV extraction: `fps` is truncated to a whole
    number, and each such second gives the first `feature_framerate` of the frames that lie `fps // feature_framerate`
    apart. Other rates, which CLIP4Clip does not have, take one frame every `fps / feature_framerate` frames.

    `n_frames` >= 1; `fps` (frames a second) must be positive unless the rate is 0.
    """
    assert n_frames >= 1, n_frames
    if feature_framerate == 0:
        return np.arange(n_frames)
    assert fps > 0, fps
    if feature_framerate != int(feature_framerate):
        numbers = np.arange(0, n_frames, max(1.0, fps / feature_framerate)).astype(np.int64)
    else:
        rate, second = int(feature_framerate), max(1, int(fps))
        in_second = np.arange(0, min(second, n_frames), max(1, second // rate))[:rate]
        numbers = (np.arange(0, n_frames, second)[:, None] + in_second).ravel()
    return numbers[numbers < n_frames]


def uniform(n: int, max_frames: int, slice_framepos: int = SPREAD) -> np.ndarray:
    """Pick at most T of n frames as CLIP4Clip does; returns positions, int64 [min(n, T)], strictly increasing.

    If there are more than T, `slice_framepos` says which: 0 the first, 1 the last, 2 evenly spread from the first to
    the last, fractions truncated. ValueError for any other value.
    """
    if slice_framepos not in (HEAD, TAIL, SPREAD):
        raise ValueError(f"--slice_framepos is {slice_framepos}: pass 0 (head), 1 (tail) or 2 (spread evenly).")
    if n <= max_frames:
        return np.arange(n)
    if slice_framepos == HEAD:
        return np.arange(max_frames)
    if slice_framepos == TAIL:
        return np.arange(n - max_frames, n)
    return np.linspace(0, n - 1, num=max_frames, dtype=np.int64)


def uniform_views(n: int, max_frames: int, n_views: int) -> np.ndarray:
    """Spread V clips of at most T frames evenly over n frames; int64 [V, min(n, T)].

    Of V T frames spread like those of `uniform`, view i takes every V-th, beginning with the i-th. A video of at most T
    frames is shown whole in every view.
    """
    if n <= max_frames:
        return np.tile(np.arange(n), (n_views, 1))
    return np.linspace(0, n - 1, num=n_views * max_frames, dtype=np.int64).reshape(max_frames, n_views).T


def segment_centres(n: int, max_frames: int) -> np.ndarray:
    """Pick the frame shown at the middle of each of T equally long segments of n frames; int64 [T], sorted.

    Segment i covers the time [i n / T, (i + 1) n / T), frame f the time [f, f + 1): a video shorter than T repeats
    frames.
    """
    return (2 * np.arange(max_frames) + 1) * n // (2 * max_frames)


def segment_views(n: int, max_frames: int, n_views: int) -> np.ndarray:
    """Pick for view i the frame shown at (i + 1/2) / V of each of T equally long segments of n frames; int64 [V, T].

    The segments are those of `segment_centres`. These moments are the middles of V T equally long segments.
    """
    return segment_centres(n, n_views * max_frames).reshape(max_frames, n_views).T


def segment_random(n: int, max_frames: int, generator: np.random.Generator) -> np.ndarray:
    """Pick the frame shown at a random moment of each of T equally long segments of n frames; int64 [T], sorted.

    The segments are those of `segment_centres`. Every moment of a segment is equally likely. Draws T numbers.
    """
    segments = np.arange(max_frames)
    moments = (segments + generator.random(max_frames)) * n / max_frames
    first = segments * n // max_frames
    last = ((segments + 1) * n - 1) // max_frames  # the frame that holds the segment's last moment
    return np.clip(moments.astype(np.int64), first, last)  # rounding may carry a moment over its segment's end


def dense_random(n: int, max_frames: int, stride: int, generator: np.random.Generator) -> np.ndarray:
    """Pick T frames that are `stride` apart, the first one at random; int64 [T], sorted.

    They span (T - 1) stride + 1 frames. Every start from which the span fits is equally likely. Draws one number. A
    video shorter than the span is treated as in `dense_views`.
    """
    last_start = max(0, n - _span(max_frames, stride))
    return _run(n, int(generator.integers(last_start + 1)), max_frames, stride)


def dense_views(n: int, max_frames: int, stride: int, n_views: int) -> np.ndarray:
    """Pick V clips of T frames that are `stride` apart; int64 [V, T].

    A clip spans (T - 1) stride + 1 frames. View i starts at round(i (n - span) / (V - 1)), so that the first view
    begins with the video and the last one ends with it; a single view lies in the middle.

    A video shorter than the span is shown from its start, and its last frame is repeated, as in PySlowFast. Others show
    it again from its start (mmaction2's default); we do not, because a jump back in time looks like another action.
    """
    room = max(0, n - _span(max_frames, stride))
    starts = [room // 2] if n_views == 1 else [round(view * room / (n_views - 1)) for view in range(n_views)]
    return np.stack([_run(n, start, max_frames, stride) for start in starts])


def _span(max_frames: int, stride: int) -> int:
    return (max_frames - 1) * stride + 1


def _run(n: int, start: int, max_frames: int, stride: int) -> np.ndarray:
    return np.minimum(start + stride * np.arange(max_frames), n - 1)


def slowfast_random(n: int, fps: float, max_frames: int, stride: int, generator: np.random.Generator) -> np.ndarray:
    """Pick the frames of `slowfast_clip` from a random start; int64 [T], sorted. Every moment from which its span fits
    is equally likely. Draws one number."""
    return slowfast_clip(n, fps, max_frames, stride, generator.random() * _slowfast_room(n, fps, max_frames, stride))


def slowfast_views(n: int, fps: float, max_frames: int, stride: int, n_views: int) -> np.ndarray:
    """Place V clips of `slowfast_clip`; int64 [V, T].

    View i starts at i / V of the room that the span leaves. So a single view begins with the video, and the last one of
    several does not end with it.
    """
    room = _slowfast_room(n, fps, max_frames, stride)
    starts = [room * view / n_views for view in range(n_views)]
    return np.stack([slowfast_clip(n, fps, max_frames, stride, start) for start in starts])


def slowfast_clip(n: int, fps: float, max_frames: int, stride: int, start: float) -> np.ndarray:
    """Pick the frames that PySlowFast's decoder for PyAV picks from `start`, a fraction of a frame; int64 [T], sorted.

    `fps` (frames a second, above 0) is the rate of the n frames. The clip spans ceil((T - 1) stride fps / 30) frames.
    The decoder takes all frames from `start` to `start` + span - 1 and one more, and of these the T at the truncated
    positions 0 ... T stride fps / 30 - 1, spread evenly. So frames are about T / (T - 1) times the stride apart, and
    the last one lies where the window ends: 8 frames of stride 16 at 30 frames a second are 0, 18, ..., 108, 112. A
    video shorter than the span repeats its last frame.

    The decoder (slowfast/datasets/decoder.py of facebookresearch/SlowFast) compares times in whole ticks of the file's
    clock. We compare exact times. The frames are the same but where a tick lasts as long as a frame, as in AVI files:
    there they may lie one frame earlier than ours.
    """
    assert fps > 0, fps
    first = math.ceil(start)
    stop = min(n, math.floor(start + _slowfast_span(fps, max_frames, stride) - 1) + 2)
    size = max(1.0, stride * max_frames / SLOWFAST_FPS * fps)
    # In single precision, so that a position that comes near a whole number is truncated as it is there.
    return first + torch.linspace(0, size - 1, max_frames).clamp(max=stop - first - 1).long().numpy()


def _slowfast_span(fps: float, max_frames: int, stride: int) -> int:
    return max(1, math.ceil(stride * (max_frames - 1) / SLOWFAST_FPS * fps))


def _slowfast_room(n: int, fps: float, max_frames: int, stride: int) -> int:
    return max(0, n - _slowfast_span(fps, max_frames, stride))


def released_training(n: int, max_frames: int, generator: np.random.Generator) -> np.ndarray:
    """Pick one random frame from each of T runs of d = n // T frames, as STOP's released training does; int64 [T],
    sorted.

    The runs start at frame 0, so the last n - T d frames are never seen, and T <= n < 2 T always gives the first T
    frames. A video shorter than T is treated as in `released_evaluation`.
    """
    run = n // max_frames
    if run == 0:
        return released_evaluation(n, max_frames)
    return np.arange(max_frames) * run + generator.integers(run, size=max_frames)


def released_evaluation(n: int, max_frames: int) -> np.ndarray:
    """Pick frames as STOP's released evaluation does; int64 [T], sorted.

    These are `segment_centres`, but a video of at most T frames gives every frame once, then the last one again.
    """
    if n > max_frames:
        return segment_centres(n, max_frames)
    return np.minimum(np.arange(max_frames), n - 1)


def released_views(n: int, max_frames: int, n_views: int) -> np.ndarray:
    """Place V clips by `segment_views`, or for a video of at most T frames by `released_evaluation`; int64 [V, T].

    The released code has one view only.
    """
    if n > max_frames:
        return segment_views(n, max_frames, n_views)
    return np.tile(released_evaluation(n, max_frames), (n_views, 1))


def stan_random(n: int, max_frames: int, generator: np.random.Generator) -> np.ndarray:
    """Pick one random frame from each of T segments, as STAN's released training does; int64 [T], sorted.

    Segment i has the frames from round(s i) to round(s (i + 1)), both ends included, with s = (n - 1) / T and halves
    rounded to even. So two neighbours share a frame and may both pick it. Draws T numbers.
    """
    edges = _stan_edges(n, max_frames)
    return generator.integers(edges[:-1], edges[1:], endpoint=True)


def stan_views(n: int, max_frames: int, n_views: int) -> np.ndarray:
    """Pick for view v frame round(s i) + floor(s (v + 1/2) / V) of each segment of `stan_random`; int64 [V, T].

    One view, floor(s / 2), is what STAN's released evaluation has; it has no more. Frames of a short video repeat.
    """
    views = 2 * np.arange(n_views) + 1
    inside = views * (n - 1) // (2 * n_views * max_frames)
    return _stan_edges(n, max_frames)[:-1] + inside[:, None]


def _stan_edges(n: int, max_frames: int) -> np.ndarray:
    """Return round(s i) for i = 0..T, int64 [T + 1], in the release's floating point: (n - 1) / T first."""
    return np.round((n - 1) / max_frames * np.arange(max_frames + 1)).astype(np.int64)


# By the value of --frame_sampling: one random clip in training, and the clips of an evaluation.
DRAWN = {"segment": segment_random, "released": released_training, "stan": stan_random}
PLACED = {"segment": segment_views, "released": released_views, "stan": stan_views}
