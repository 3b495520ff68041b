"""Draws by counter: against whole numbers of Python, and as random numbers."""

import torch

from modules.t_mass.draws import GOLDEN, mix64, numbers_of_texts, numbers_of_videos, uniform

BITS = (1 << 64) - 1


def splitmix64(state: int) -> int:
    z = (state + GOLDEN) & BITS
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & BITS
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & BITS
    return z ^ (z >> 31)


def lowbias32(x: int, high: int) -> int:
    x = ((x ^ (x >> 16)) * 0x7FEB352D) & 0xFFFFFFFF
    x = ((x ^ (x >> 15) ^ high) * 0x846CA68B) & 0xFFFFFFFF
    return x ^ (x >> 16)


def test_first_numbers_of_splitmix64():
    """Those of the published generator with seed 1234567."""
    states = [1234567, (1234567 + GOLDEN) & BITS]
    assert [splitmix64(state) for state in states] == [6457827717110365317, 3203168211198807973]


def test_draws_are_those_of_plain_whole_numbers():
    text, video = torch.tensor([[3], [-5]]), torch.tensor([0, 2**62 + 1, -7])
    got = uniform(9, text, video, torch.arange(2), 5)
    assert got.shape == (2, 3, 2, 5)
    for n, t in enumerate(text.flatten().tolist()):
        for b, v in enumerate(video.tolist()):
            for k in range(2):
                key = splitmix64(splitmix64((v + 9) & BITS) ^ (t & BITS))
                key = splitmix64(key ^ splitmix64(k))
                low, high = key & 0xFFFFFFFF, key >> 32
                drawn = [lowbias32(low ^ (splitmix64(e) & 0xFFFFFFFF), high) >> 8 for e in range(5)]
                assert got[n, b, k].tolist() == [number / 2**24 for number in drawn]


def test_they_are_uniform_and_of_pairs_that_differ_independent():
    numbers = mix64(torch.arange(40))
    drawn = uniform(0, numbers[:20, None], numbers[20:], torch.arange(4), 64).flatten(0, 2)  # [1600,64]
    assert 0 <= drawn.min() < 1e-3
    assert 0.999 < drawn.max() < 1
    counts = torch.histc(drawn, 16, 0, 1)
    expected = drawn.numel() / 16
    assert ((counts - expected) ** 2 / expected).sum() < 38  # chi-square of 15 degrees: above that once in 1,000
    centred = (drawn - 0.5) * 12**0.5
    for correlation in (centred @ centred.T / 64, centred.T @ centred / 1600):
        off = correlation - torch.diag(correlation.diag())
        size = 64 if len(off) == 1600 else 1600
        assert off.abs().max() < 6 * size**-0.5
        assert off.mean().abs() < 1e-3


def test_videos_are_told_apart_by_each_bit_and_by_order_but_not_by_padding():
    video = torch.randn(2, 3, 3, 4, 4)
    mask = torch.tensor([[True, True, True], [True, True, False]])
    known = numbers_of_videos(video, mask)
    assert torch.equal(numbers_of_videos(video[1:], mask[1:]), known[1:])
    assert torch.equal(numbers_of_videos(video[1:, :2], mask[1:, :2]), known[1:])
    assert numbers_of_videos(video.flip(1), mask)[0] != known[0]
    swapped = video[:, :, :, :, [1, 0, 2, 3]]
    assert numbers_of_videos(swapped, mask)[0] != known[0]
    next_to = video.clone()
    next_to[0, 1, 2, 3, 3] = torch.nextafter(video[0, 1, 2, 3, 3], torch.tensor(9.0))
    assert numbers_of_videos(next_to, mask)[0] != known[0]


def test_texts_are_told_apart_by_words_and_order_until_end():
    ids = torch.tensor([[9, 4, 5, 10, 0], [9, 5, 4, 10, 0], [9, 4, 5, 10, 7]])
    numbers = numbers_of_texts(ids, torch.full((3,), 3))
    assert numbers[0] == numbers[2]
    assert numbers[0] != numbers[1]
    assert numbers_of_texts(ids[:1, :4], torch.tensor([3])) == numbers[0]
