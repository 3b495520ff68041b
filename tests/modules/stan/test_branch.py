"""STAN's branch against plain loops; padding, batches, dropped paths, gradients and recomputation."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from modules.block import Block
from modules.methods import build_method
from modules.methods.stan import STAN
from tests.modules.stan.loops import frames_of_a_clip
from tests.tiny import TINY, tiny_batch, tiny_clip

FEW = replace(TINY, patch_size=16)  # four patches a frame, for loops over them

VARIANTS = {
    "released": {},
    "one level": {"stan_layers": 1},
    "convolution": {"temporal_module": "conv"},
    "paper": {"stan_embeddings": "paper", "level_projection": True},
}
CLOSE = {"atol": 1e-5, "rtol": 1e-5}


def stan(variant="released", **options) -> STAN:
    """Return a STAN of two levels whose parts all have random weights."""
    method = build_method("stan", tiny_clip(architecture=FEW), **{"stan_layers": 2} | VARIANTS[variant] | options)
    assert isinstance(method, STAN)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in method.branch.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return method.eval()


@pytest.mark.parametrize("variant", VARIANTS)
@torch.no_grad()
def test_it_is_what_the_equations_say(variant):
    method, (video, _, _) = stan(variant), tiny_batch(batch=1, frames=3)
    expected = frames_of_a_clip(method, video[0])
    torch.testing.assert_close(method.encode_frames(video)[0], expected, **CLOSE)
    mean = method.encode_video(video, torch.ones(1, 3, dtype=torch.int64))[0]
    torch.testing.assert_close(mean, expected.mean(dim=0), **CLOSE)


@torch.no_grad()
def test_the_class_tokens_of_every_second_frame():
    method, (video, _, _) = stan(cls_residue=True, drop_path=0.0), tiny_batch(batch=1, frames=3)
    for mode in (True, False):
        expected = frames_of_a_clip(method, video[0], even=mode)
        torch.testing.assert_close(method.train(mode).encode_frames(video)[0], expected, **CLOSE)


@settings(max_examples=8)
@given(
    st.sampled_from([*VARIANTS]), st.booleans(), st.lists(st.integers(1, 5), min_size=1, max_size=3), st.integers(0, 3)
)
@torch.no_grad()
def test_a_padded_clip_of_a_batch_is_the_clip_alone(variant, training, lengths, more):
    """Also in training, without dropped paths, where the class tokens of every second frame are averaged."""
    method = stan(variant, cls_residue=True, drop_path=0.0).train(training)
    frames = max(lengths) + more
    video = tiny_batch(batch=len(lengths), frames=frames)[0]
    frame_mask = torch.arange(frames) < torch.tensor(lengths)[:, None]
    video[~frame_mask] = 50.0
    found, mean = method.encode_frames(video, frame_mask), method.encode_video(video, frame_mask)
    for clip, length in enumerate(lengths):
        alone = method.encode_frames(video[clip : clip + 1, :length])[0]
        torch.testing.assert_close(found[clip, :length], alone, **CLOSE)
        torch.testing.assert_close(mean[clip], alone.mean(dim=0), **CLOSE)


@torch.no_grad()
def test_a_level_gives_the_same_class_token_without_patches():
    method, generator = stan(), torch.Generator().manual_seed(0)
    c, h = torch.randn(2, 32, generator=generator), torch.randn(2, 3, 4, 32, generator=generator)
    frame_mask = torch.tensor([[True, True, True], [True, False, False]])
    for level in method.branch.levels:
        whole, alone = level(c, h, frame_mask)[0], level(c, h, frame_mask, class_only=True)[0]
        torch.testing.assert_close(alone, whole, **CLOSE)


@torch.no_grad()
def test_frames_in_another_order_give_other_clips():
    video = tiny_batch(batch=1, frames=4)[0]
    for variant in VARIANTS:
        method = stan(variant)
        assert (method.encode_frames(video).mean(1) - method.encode_frames(video.flip(1)).mean(1)).abs().max() > 1e-3


def test_gradients_are_those_of_finite_differences():
    """In double precision, along a random direction of every tensor."""
    method, (video, frame_mask, _) = stan("paper").double(), tiny_batch(batch=2, frames=3)
    video = video.double()
    generator = torch.Generator().manual_seed(2)
    probe = torch.randn(2, 24, generator=generator, dtype=torch.float64)

    def loss():
        return (method.encode_video(video, frame_mask) * probe).sum()

    loss().backward()
    step = 1e-5
    named = dict(method.branch.named_parameters()) | dict(method.clip.visual.blocks[-1].named_parameters())
    named["class"], named["place"] = method.clip.visual.class_embedding, method.clip.visual.positional_embedding
    for name, parameter in named.items():
        direction = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        with torch.no_grad():
            parameter += step * direction
            above = loss()
            parameter -= 2 * step * direction
            difference = (above - loss()) / (2 * step)
            parameter += step * direction
        expected = (parameter.grad * direction).sum().item()
        assert difference.item() == pytest.approx(expected, rel=1e-5, abs=1e-6), name


def test_recomputed_levels_give_the_same_gradients():
    """Also with dropped paths, which are drawn only once."""
    video, frame_mask, _ = tiny_batch()
    gradients = []
    for recompute in (False, True):
        method = stan(drop_path=0.5).train()
        for block in method.modules():
            if isinstance(block, Block):
                block.recompute = recompute
        torch.manual_seed(4)
        method.encode_video(video, frame_mask).square().sum().backward()
        gradients.append({name: p.grad for name, p in method.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, msg=name)


def test_recomputation_keeps_less():
    """The graph of a level holds its inputs alone: of tensors as large as h, a small number."""
    video, frame_mask, _ = tiny_batch()
    kept = []
    for recompute in (False, True):
        method = stan().train()
        for level in method.branch.levels:
            level.spatial.recompute = recompute
        sizes = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, s=sizes: s.append(t.numel()) or t, lambda t: t):
            method.encode_video(video, frame_mask)
        kept.append(sum(sizes))
    assert kept[1] < 0.8 * kept[0]
