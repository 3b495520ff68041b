"""Tests of the layout of tokens and of normalised tokens."""

import pytest
import torch

from modules.stop.tokens import layer_norm, patches_of, sequences
from tests.modules.stop import plain_parts as plain
from tests.modules.stop import stop_reference as slow


@pytest.mark.parametrize("count", [1, 3])
def test_sequences_are_class_tokens_and_the_patches_of_their_frames(count):
    class_tokens, patches = torch.randn(2, count, 5), torch.randn(2, 3, 4, 5)
    x = sequences(class_tokens, patches)
    assert x.shape == (2, count, 1 + 3 * 4 // count, 5)
    for clip in range(2):
        for place in range(count):
            own = patches[clip] if count == 1 else patches[clip, place : place + 1]
            assert torch.equal(x[clip, place], torch.cat([class_tokens[clip, place : place + 1], *own]))
    assert torch.equal(patches_of(x, 3), patches)
    assert patches_of(x, 3).data_ptr() == x[:, :, 1:].data_ptr()


def test_layer_norm_follows_the_definition():
    tokens, _ = slow.padded_clips(0, [3], 4, 8)
    expected = plain.stack_frames([[plain.normalised(token) for token in frame] for frame in 7 * tokens[0] + 3])
    torch.testing.assert_close(layer_norm(7 * tokens + 3)[0], expected, atol=1e-9, rtol=0)
