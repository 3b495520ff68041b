"""Pooling and similarity against loops."""

import math

import numpy as np
import torch

from modules.similarity import cosine_similarity, masked_mean


def test_masked_mean_is_a_mean_of_unit_vectors_over_real_frames():
    torch.manual_seed(0)
    frames = torch.randn(3, 5, 4)
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0], [1, 0, 0, 0, 0]])
    got = masked_mean(frames, mask)
    for clip in range(3):
        real = [frames[clip, t] / frames[clip, t].norm() for t in range(5) if mask[clip, t]]
        torch.testing.assert_close(got[clip], sum(real) / len(real))


def test_padding_frames_may_hold_anything():
    torch.manual_seed(0)
    frames = torch.randn(2, 4, 3)
    mask = torch.tensor([[True, True, True, False], [True, True, False, False]])
    other = torch.where(mask.unsqueeze(-1), frames, torch.full_like(frames, 1e6))
    torch.testing.assert_close(masked_mean(frames, mask), masked_mean(other, mask))


def test_cosine_similarity_is_the_scaled_cosine():
    torch.manual_seed(0)
    text, video = torch.randn(3, 6), torch.randn(4, 6)
    got = cosine_similarity(text, video, torch.tensor(math.log(7.0)))
    for n in range(3):
        for b in range(4):
            cosine = np.dot(text[n], video[b]) / (np.linalg.norm(text[n]) * np.linalg.norm(video[b]))
            np.testing.assert_allclose(got[n, b], 7 * cosine, rtol=1e-5)


def test_similarity_is_fp32_under_autocast():
    torch.manual_seed(0)
    text, video, scale = torch.randn(8, 64), torch.randn(8, 64), torch.tensor(math.log(100.0))
    with torch.autocast("cpu", torch.bfloat16):
        got = cosine_similarity(text, video, scale)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, cosine_similarity(text, video, scale))
