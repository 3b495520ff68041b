"""Channel mixing and values of other frames, against loops; the zeros at the ends of clips."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from modules.stdd.mixing import mix_channels, parse_scales
from modules.stdd.neighbours import from_frame
from tests.modules.stdd.loops import mixed

SCALES = st.lists(st.integers(1, 5), min_size=1, max_size=3, unique=True)


def tokens_of(seed, frames, width, clips=2, patches=3):
    """Return tokens without a single zero."""
    return 0.5 + torch.rand(clips, frames, 1 + patches, width, generator=torch.Generator().manual_seed(seed))


def whole(tokens):
    return torch.ones(tokens.shape[:2], dtype=torch.bool)


@given(st.integers(0, 99), st.integers(1, 6), st.integers(4, 40), st.integers(2, 8), SCALES)
def test_mixing_equals_a_loop(seed, frames, width, fold, scales):
    tokens = tokens_of(seed, frames, width)
    found = mix_channels(tokens, whole(tokens), scales, fold)
    moving = 2 * (width // fold)
    assert found.shape == (len(scales), *tokens.shape[:-1], moving)
    assert torch.equal(found[:, :, :, 0], tokens[:, :, 0, :moving].expand(len(scales), -1, -1, -1))
    for scale, of_scale in zip(scales, found, strict=True):
        for clip, of_clip in zip(tokens, of_scale, strict=True):
            expected = torch.stack(mixed(list(clip[:, 1:]), scale, fold))
            assert torch.equal(of_clip[:, 1:], expected[..., :moving])
            assert torch.equal(clip[:, 1:, moving:], expected[..., moving:])


@given(st.integers(0, 99), st.integers(1, 9), st.sampled_from([32, 64]), st.sampled_from([2, 8, 32]), SCALES)
def test_zeros_stand_where_a_clip_has_no_such_frame_and_nowhere_else(seed, frames, width, fold, scales):
    """The first frame lacks its first f channels and the last frame its second f, whatever the scale; all other frames
    have every channel."""
    tokens = tokens_of(seed, frames, width)
    band = width // fold
    for of_scale in mix_channels(tokens, whole(tokens), scales, fold):
        patches = of_scale[:, :, 1:]
        empty = torch.zeros(frames, 2 * band, dtype=torch.bool)
        empty[0, :band] = True
        empty[-1, band:] = True
        assert torch.equal(patches == 0, empty[None, :, None].expand_as(patches))


@given(st.integers(0, 99), st.lists(st.integers(1, 6), min_size=2, max_size=3), SCALES)
def test_padding_is_no_frame(seed, lengths, scales):
    tokens = tokens_of(seed, max(lengths), 16, clips=len(lengths))
    frame_mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    found = mix_channels(tokens, frame_mask, scales, 2)
    for clip, length in enumerate(lengths):
        alone = tokens[clip : clip + 1, :length]
        expected = mix_channels(alone, whole(alone), scales, 2)
        assert torch.equal(found[:, clip : clip + 1, :length], expected)


@given(st.integers(1, 5), st.integers(-6, 6), st.booleans())
def test_values_of_another_frame(frames, step, of_bool):
    lengths = torch.tensor([frames, 1 + frames // 2])
    frame_mask = torch.arange(frames) < lengths[:, None]
    x = torch.ones(2, frames, dtype=torch.bool) if of_bool else torch.rand(2, frames, 3, 2) + 1
    found = from_frame(x, step, frame_mask)
    assert found.dtype == x.dtype
    for clip in range(2):
        for t in range(frames):
            exists = 0 <= t + step < lengths[clip]
            assert torch.equal(found[clip, t], x[clip, t + step] if exists else torch.zeros_like(x[clip, t]))


def test_the_worked_example_of_the_width_of_vit_b():
    """Width 768, fold 32, scale 2: channels 0-11 come from t-2, 12-23 from t-1, 24-35 from t+1, 36-47 from t+2."""
    tokens = torch.arange(1.0, 9).view(1, 8, 1, 1).expand(1, 8, 2, 768)
    found = mix_channels(tokens, whole(tokens), [2], 32)[0, 0, :, 1]
    assert found[3].tolist() == [2.0] * 12 + [3.0] * 12 + [5.0] * 12 + [6.0] * 12
    assert found[0].tolist() == [0.0] * 24 + [2.0] * 12 + [3.0] * 12
    assert found[1].tolist() == [1.0] * 24 + [3.0] * 12 + [4.0] * 12
    assert found[6].tolist() == [5.0] * 12 + [6.0] * 12 + [8.0] * 24
    assert found[7].tolist() == [6.0] * 12 + [7.0] * 12 + [0.0] * 24


@pytest.mark.parametrize("scales", ["", "1,", "0", "1,1", "1.5", "-1", "a", "1 2", "²"])
def test_scales_that_are_none(scales):
    with pytest.raises(ValueError, match="is no list of different whole numbers from 1, such as 1,2"):
        parse_scales(scales)


def test_scales_in_any_order():
    assert parse_scales("2, 1,12") == (2, 1, 12)
