"""Learned tokens in the text tower against a tower that really inserts them."""

import pytest
import torch
from torch import Tensor

from modules.clip import Block, TextTransformer
from modules.text_prompts import (
    encode_with_context,
    encode_with_prefix,
    seen_after_start,
    seen_from_end,
    text_prompts,
)
from tests.tiny import TINY, tiny_clip

START, END = 49406, 49407


def tower() -> TextTransformer:
    return tiny_clip().requires_grad_(False).text


def captions() -> Tensor:
    """Return ids [3, 9] with END at 7, 3 and 1, and zeros after it."""
    generator = torch.Generator().manual_seed(0)
    token_ids = torch.randint(300, 49000, (3, 9), generator=generator)
    for row, end in zip(token_ids, (7, 3, 1), strict=True):
        row[0], row[end], row[end + 1 :] = START, END, 0
    return token_ids


def drawn_prompts(count: int) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(TINY.text_layers, count, TINY.text_width, generator=generator)


def inserted(text: TextTransformer, token_ids: Tensor, prefix: Tensor, postfix: Tensor | None = None) -> Tensor:
    """Encode caption by caption: START, prefix, words, postfix, END under a causal mask. Every block replaces the
    outputs of earlier prompts by its prompts. The inserted tokens have no positions, and the others keep theirs."""
    rows = []
    for ids in token_ids:
        end = int(ids.argmax())
        tokens = text.embed(ids[: end + 1].unsqueeze(0))
        for layer, block in enumerate(text.blocks):
            behind = prefix[layer].unsqueeze(0)
            late = behind[:, :0] if postfix is None else postfix[layer].unsqueeze(0)
            parts = [tokens[:, :1], behind, tokens[:, 1:-1], late, tokens[:, -1:]]
            assert isinstance(block, Block)
            out = block(torch.cat(parts, dim=1), causal=True)
            first, words = 1 + behind.shape[1], tokens.shape[1] - 2
            tokens = torch.cat([out[:, :1], out[:, first : first + words], out[:, -1:]], dim=1)
        rows.append(text.pool(tokens[:, -1]))
    return torch.cat(rows)


@pytest.mark.parametrize("count", [1, 4])
def test_a_prefix_equals_tokens_inserted_after_start(count):
    text, prompts, token_ids = tower(), drawn_prompts(count).requires_grad_(), captions()
    ours, naive = encode_with_prefix(text, prompts, token_ids), inserted(text, token_ids, prompts)
    torch.testing.assert_close(ours, naive, rtol=1e-4, atol=1e-5)
    weight = torch.randn_like(ours)
    gradients = [torch.autograd.grad((out * weight).sum(), prompts)[0] for out in (ours, naive)]
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-5)
    assert gradients[0].flatten(1).norm(dim=1).min() > 0


def test_a_postfix_equals_tokens_inserted_before_end():
    text, token_ids = tower(), captions()
    prefix, postfix = drawn_prompts(5)[:, :3], drawn_prompts(5)[:, 3:]
    early = seen_after_start(token_ids, 3).expand(3, -1, -1, -1)
    seen = torch.cat([early, seen_from_end(token_ids, token_ids.argmax(dim=-1), 2)], dim=-1)
    ours = encode_with_context(text, torch.cat([prefix, postfix], dim=1), seen, token_ids)
    torch.testing.assert_close(ours, inserted(text, token_ids, prefix, postfix), rtol=1e-4, atol=1e-5)


def test_gradients_equal_finite_differences():
    text, token_ids = tower().double(), captions()[:2]
    prompts = drawn_prompts(2).double().requires_grad_()
    assert torch.autograd.gradcheck(lambda prompts: encode_with_prefix(text, prompts, token_ids), prompts)


def test_who_sees_the_prompts():
    token_ids = captions()
    assert seen_after_start(token_ids, 2).shape == (1, 1, 9, 2)
    assert seen_after_start(token_ids, 2)[0, 0, :, 0].tolist() == [False] + [True] * 8
    late = seen_from_end(token_ids, token_ids.argmax(dim=-1), 2)
    assert late.shape == (3, 1, 9, 2)
    for row, end in zip(late, (7, 3, 1), strict=True):
        assert row[0, :, 1].tolist() == [place >= end for place in range(9)]


def test_a_caption_does_not_depend_on_others_or_on_padding():
    text, prompts, token_ids = tower(), drawn_prompts(3), captions()
    together = encode_with_prefix(text, prompts, token_ids)
    for row, end in enumerate((7, 3, 1)):
        alone = encode_with_prefix(text, prompts, token_ids[row : row + 1])
        short = encode_with_prefix(text, prompts, token_ids[row : row + 1, : end + 1])
        torch.testing.assert_close(alone[0], together[row], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(short[0], together[row], rtol=1e-5, atol=1e-5)
    token_ids[1, 5:] = 77  # after END
    torch.testing.assert_close(encode_with_prefix(text, prompts, token_ids), together, rtol=1e-5, atol=1e-5)


def test_without_prompts_it_is_the_tower():
    text = tower()
    assert text_prompts(text, 0) is None
    assert torch.equal(encode_with_prefix(text, None, captions()), text(captions()))


def test_prompts_are_drawn_for_every_block():
    torch.manual_seed(0)
    prompts = text_prompts(tower(), 500)
    assert prompts is not None
    assert prompts.shape == (TINY.text_layers, 500, TINY.text_width)
    assert prompts.std().item() == pytest.approx(0.02, rel=0.05)
    assert prompts.requires_grad


def test_the_second_half_of_a_block_can_be_replaced():
    """It gets the number of the block, the block and the tokens; in the last block only END's are left."""
    text, prompts, token_ids = tower(), drawn_prompts(2), captions()
    calls = []

    def twice(layer: int, block: Block, tokens: Tensor) -> Tensor:
        calls.append((layer, block, tokens.shape))
        return block.feed_forward(tokens) + tokens

    seen = seen_after_start(token_ids, 2)
    changed = encode_with_context(text, prompts, seen, token_ids, twice)
    assert calls == [(0, text.blocks[0], (3, 9, TINY.text_width)), (1, text.blocks[1], (3, 1, TINY.text_width))]
    assert not torch.allclose(changed, encode_with_prefix(text, prompts, token_ids))


def test_too_long_a_caption_is_refused():
    with pytest.raises(ValueError, match="reads at most 16 tokens, not 17: lower --max_words"):
        encode_with_prefix(tower(), drawn_prompts(2), torch.ones(1, 17, dtype=torch.int64))
