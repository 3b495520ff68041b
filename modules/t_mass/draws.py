"""Random numbers by counter: each is a function of a seed, a text, a video, a trial and a place, and of nothing else.

No generator runs along, so neither the size of a block nor the number of processes changes a draw. Texts and videos
have numbers for this: in evaluation a hash of their content, so that a caption and a video draw the same in every
gallery.

Integers wrap around, as those of the mixing functions that this follows: splitmix64's (Steele et al., OOPSLA 2014) for
keys, and lowbias32 (C. Wellons, github.com/skeeto/hash-prospector) for the many numbers that are drawn from a key.

Shapes: N texts, L words, B videos, T frames, K trials, E width.
"""

import torch
from torch import Tensor

GOLDEN = 0x9E3779B97F4A7C15  # 2^64 divided by the golden ratio: the step between the states of splitmix64


def _signed(value: int, bits: int) -> int:
    """Return the number that has these bits as a signed integer."""
    return value - (1 << bits) if value >> (bits - 1) else value


def mix64(x: Tensor) -> Tensor:
    """Return splitmix64 of int64 states of any shape."""
    x = x + _signed(GOLDEN, 64)
    x = (x ^ ((x >> 30) & ((1 << 34) - 1))) * _signed(0xBF58476D1CE4E5B9, 64)
    x = (x ^ ((x >> 27) & ((1 << 37) - 1))) * _signed(0x94D049BB133111EB, 64)
    return x ^ ((x >> 31) & ((1 << 33) - 1))


def uniform(seed: int, text: Tensor, video: Tensor, trials: Tensor, width: int) -> Tensor:
    """Draw from U[0, 1): fp32 `[...,K,E]`, one vector for each pair and trial.

    Args:
        text, video: int64, numbers of texts and videos, of shapes that broadcast to `[...]`.
        trials: int64 `[K]`, numbers of trials.
        width: E.
    """
    key = mix64(mix64(video + _signed(seed % (1 << 64), 64)) ^ text)
    key = mix64(key.unsqueeze(-1) ^ mix64(trials)).unsqueeze(-1)
    low, high = key.to(torch.int32), (key >> 32).to(torch.int32)
    x = low ^ mix64(torch.arange(width, device=text.device)).to(torch.int32)
    x = (x ^ ((x >> 16) & 0xFFFF)) * 0x7FEB352D
    x = (x ^ ((x >> 15) & 0x1FFFF) ^ high) * _signed(0x846CA68B, 32)
    x = x ^ ((x >> 16) & 0xFFFF)
    return ((x >> 8) & 0xFFFFFF) * 2.0**-24


def numbers_of_texts(token_ids: Tensor, end: Tensor) -> Tensor:
    """Return a number for the content of each text: int64 `[N,L]`, the place of END `[N]` -> int64 `[N]`.

    Padding after END does not count.
    """
    places = torch.arange(token_ids.shape[1], device=token_ids.device)
    hashed = mix64(token_ids ^ mix64(places))
    return mix64(hashed.masked_fill(places > end.unsqueeze(-1), 0).sum(dim=1))


def numbers_of_videos(video: Tensor, frame_mask: Tensor) -> Tensor:
    """Return a number for the content of each clip: float `[B,T,...]`, bool `[B,T]` -> int64 `[B]`.

    Each bit of its pixels and the order of its frames count; padding does not.
    """
    values = video[0, 0].numel()
    weights = mix64(torch.arange(values, device=video.device)) | 1
    # One clip at a time, because its pixels are widened to 64 bits here.
    frames = [(clip.float().flatten(1).view(torch.int32) * weights).sum(dim=1) for clip in video]
    places = torch.arange(video.shape[1], device=video.device)
    hashed = mix64(torch.stack(frames) ^ mix64(places))
    return mix64(hashed.masked_fill(~frame_mask.bool(), 0).sum(dim=1))
