"""Tests of what takes the place of padding frames."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from modules.released.padding import hold_last_frame
from tests.modules.stop import stop_reference as slow


@settings(max_examples=25)
@given(seed=st.integers(0, 10**6), frames_of_clip=st.lists(st.integers(1, 5), min_size=1, max_size=4))
def test_padding_frames_become_the_last_real_one(seed, frames_of_clip):
    tokens, frame_mask = slow.padded_clips(seed, frames_of_clip, 4, 3)
    held = hold_last_frame(tokens, frame_mask)
    for clip, frames in enumerate(frames_of_clip):
        for place in range(held.shape[1]):
            assert torch.equal(held[clip, place], tokens[clip, min(place, frames - 1)])
