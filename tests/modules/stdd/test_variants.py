"""The released code's other ways to relate frames, against loops over clips and frames."""

from functools import cache

import pytest
import torch

from modules.block import Block
from modules.stdd.variants import build_variant
from tests.modules.stdd.loops import attended
from tests.tiny import tiny_clip

NAMES = [
    "none",
    "expand_temporal_view",
    "expand_temporal_view_step2",
    "expand_temporal_view_step3",
    "channel_shift",
    "cross_frame_attend",
    "stadapt_zeroinit",
]
FRAMES, TOKENS, WIDTH, HEADS = 5, 4, 32, 2


def a_variant(name, channel_shift="shift"):
    torch.manual_seed(1)
    variant = build_variant(name, WIDTH, HEADS, channel_shift)
    with torch.no_grad():
        for parameter in variant.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return variant.double()


@cache
def a_block() -> Block:
    return tiny_clip().visual.blocks[0].double()


def clips(seed=0, count=2):
    return torch.randn(count, FRAMES, TOKENS, WIDTH, generator=torch.Generator().manual_seed(seed), dtype=torch.double)


def whole(x):
    return torch.ones(x.shape[:2], dtype=torch.bool)


def attend_over(block, tokens, keys, values):
    """Return the output of a block on tokens `[L,D]` that attend to keys and values `[S,D]`."""
    attn = block.attn
    query = attn.query(block.ln_1(tokens))
    heads, size = [], WIDTH // HEADS
    for head in range(HEADS):
        own = slice(head * size, (head + 1) * size)
        heads.append((query[:, own] @ keys[:, own].T * size**-0.5).softmax(dim=1) @ values[:, own])
    x = tokens + attn.project_out(torch.cat(heads, dim=1))
    return x + block.mlp(block.ln_2(x))


def by_loop(name, variant, block, clip):
    """Run a variant on one clip `[T,L,D]`."""
    _, keys, values = block.attn.project(block.ln_1(clip))
    nothing = torch.zeros_like(keys[0])
    at = lambda part, t: part[t] if 0 <= t < len(clip) else nothing  # noqa: E731
    if name == "none":
        return torch.stack([block(frame[None])[0] for frame in clip])
    if name.startswith("expand"):
        reach = int(name[-1]) if name[-1].isdigit() else 1
        near = [[at(part, t + step) for step in range(-reach, reach + 1)] for part in (keys, values) for t in range(5)]
        seen = [torch.cat(parts) for parts in near]
        return torch.stack([attend_over(block, frame, seen[t], seen[5 + t]) for t, frame in enumerate(clip)])
    if name == "channel_shift":

        def shifted(part, t):
            quarter = WIDTH // 4
            return torch.cat(
                [at(part, t + 1)[:, :quarter], at(part, t - 1)[:, quarter : 2 * quarter], part[t][:, 2 * quarter :]], 1
            )

        return torch.stack(
            [attend_over(block, frame, shifted(keys, t), shifted(values, t)) for t, frame in enumerate(clip)]
        )
    if name == "cross_frame_attend":
        messages = variant.message_fc(clip[:, 0])
        messages = messages + variant.message_attn(variant.message_ln(messages)[None])[0]
        out = []
        for frame, message in zip(clip, messages, strict=True):
            tokens = torch.cat([frame, message[None]])
            x = frame + attended(block, tokens)[:TOKENS]
            out.append(x + block.mlp(block.ln_2(x)))
        return torch.stack(out)
    inner = variant.down(clip[:, 1:])  # [T,N,c]
    convolved = variant.conv(inner.permute(1, 2, 0)).permute(2, 0, 1)
    tokens = torch.cat([clip[:, :1], clip[:, 1:] + variant.up(convolved)], dim=1)
    return torch.stack([block(frame[None])[0] for frame in tokens])


@torch.no_grad()
@pytest.mark.parametrize("name", NAMES)
def test_a_variant_equals_a_loop(name):
    variant, block, x = a_variant(name), a_block(), clips()
    expected = torch.stack([by_loop(name, variant, block, clip) for clip in x])
    torch.testing.assert_close(variant(block, x, whole(x)), expected, atol=1e-12, rtol=1e-12)
    first = variant(block, x, whole(x), first_only=True)
    torch.testing.assert_close(first, expected[:, :, :1], atol=1e-12, rtol=1e-12)
    plain = torch.stack([block(clip) for clip in x])
    assert (name == "none") == bool((expected - plain).abs().max() < 1e-6)


@torch.no_grad()
@pytest.mark.parametrize("name", NAMES)
def test_padding_is_no_frame(name):
    variant, block, x = a_variant(name), a_block(), clips()
    lengths = torch.tensor([3, 5])
    frame_mask = torch.arange(FRAMES) < lengths[:, None]
    found = variant(block, x, frame_mask)
    for clip, length in enumerate(lengths.tolist()):
        alone = x[clip : clip + 1, :length]
        expected = variant(block, alone, whole(alone))
        torch.testing.assert_close(found[clip : clip + 1, :length], expected, atol=1e-12, rtol=1e-12)


@torch.no_grad()
def test_the_scrambled_shift_is_another_function_with_the_same_values_of_a_head():
    block, x = a_block(), clips()
    plain, scrambled = (a_variant("channel_shift", how) for how in ("shift", "scrambled"))
    parts = torch.randn(1, 2, TOKENS, WIDTH, dtype=torch.double)
    right, wrong = (variant.relate(parts, whole(parts)) for variant in (plain, scrambled))
    by_head = [
        part.unflatten(-1, (HEADS, -1)).transpose(2, 3).flatten(3).sort(dim=-1).values for part in (right, wrong)
    ]
    assert torch.equal(*by_head)
    assert (plain(block, x, whole(x)) - scrambled(block, x, whole(x))).abs().max() > 1e-2


@torch.no_grad()
def test_a_fresh_adapter_is_clip():
    torch.manual_seed(1)
    adapter, block, x = build_variant("stadapt_zeroinit", WIDTH, HEADS, "shift").double(), a_block(), clips()
    torch.testing.assert_close(adapter(block, x, whole(x)), torch.stack([block(clip) for clip in x]))
