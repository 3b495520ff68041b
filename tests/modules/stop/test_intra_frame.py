"""Intra-frame spatial prompting: every equation against loops, exact counts, and the gradient of the region mask."""

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from modules.block import Block
from modules.stop.intra_frame import (
    FactoredPrompts,
    IntraFramePrompter,
    SpatialPrompting,
    SpatialPromptNet,
    StaticSpatialPrompt,
    attention_map,
    dynamics_map,
    region_mask,
    rescaled,
    salient_patches,
)
from modules.stop.timing import FrameTiming
from modules.stop.tokens import layer_norm, patches_of, sequences
from tests.modules.stop import stop_reference as slow

WIDTH, HEADS = 8, 2


def make_block(seed: int) -> Block:
    block = Block(WIDTH, HEADS, "quick_gelu").double()
    slow.randomise(block, seed, scale=0.6)
    return block.requires_grad_(False)


def make_prompter(seed: int, grid: int, **options) -> IntraFramePrompter:
    settings_ = {"n_regions": 3, "alpha": 0.5, "bottleneck": 5, "dropout": 0.0, **options}
    prompter = IntraFramePrompter(WIDTH, grid, **settings_).double()
    slow.randomise(prompter, seed)
    return prompter


def moving_clip(grid: int = 3, frames: int = 4, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Return a class token `[1,1,D]`, tokens `[1,T,P,D]` that change everywhere, and an all-true frame mask."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randn(1, frames, grid * grid, WIDTH, generator=generator, dtype=torch.float64)
    class_token = torch.randn(1, 1, WIDTH, generator=generator, dtype=torch.float64)
    return class_token, tokens, torch.ones(1, frames, dtype=torch.bool)


def timing_of(frame_mask: Tensor) -> FrameTiming:
    return FrameTiming.of(frame_mask, torch.float64)


def most_salient(saliency: Tensor, n_regions: int) -> Tensor:
    """Return the region mask of frames that are all real."""
    real = torch.ones(saliency.shape[:-1], dtype=torch.bool)
    return region_mask(saliency, salient_patches(saliency, n_regions), real, hard=True)


def prompts_of(net: SpatialPromptNet | StaticSpatialPrompt, normal: Tensor, frame_mask: Tensor) -> Tensor:
    """Return p^s of every patch of LayerNormed sequences, `[B,T,P,D]`."""
    return of_every_patch(net(normal, timing_of(frame_mask)))


def of_every_patch(prompts: FactoredPrompts) -> Tensor:
    """p^s, `[B,T,P,D]`."""
    return prompts.at(torch.arange(prompts.hidden.shape[2]).expand(prompts.hidden.shape[:3]))


@settings(max_examples=40)
@given(
    seed=st.integers(0, 10**6),
    grid=st.integers(2, 4),
    frames_of_clip=st.lists(st.integers(1, 4), min_size=1, max_size=3),
    alpha=st.sampled_from([0.0, 0.3, 0.5, 1.0]),
    share=st.floats(0, 1),
    class_token_a_frame=st.booleans(),
)
def test_equals_the_equations(seed, grid, frames_of_clip, alpha, share, class_token_a_frame):
    tokens, frame_mask = slow.padded_clips(seed, frames_of_clip, grid * grid, WIDTH)
    n_regions = 1 + round(share * (grid * grid - 1))
    block, prompter = make_block(seed), make_prompter(seed, grid, alpha=alpha, n_regions=n_regions)
    generator = torch.Generator().manual_seed(seed)
    asking = tokens.shape[1] if class_token_a_frame else 1
    class_token = torch.randn(len(tokens), asking, WIDTH, generator=generator, dtype=torch.float64)
    with torch.no_grad():
        found = prompter(block, sequences(class_token, tokens), timing_of(frame_mask))
        prompted = patches_of(found.x, tokens.shape[1])
        assert torch.equal(found.x[:, :, 0], class_token)
        for clip, frames in enumerate(frames_of_clip):
            expected = slow.prompt_frames(prompter, block, class_token[clip], tokens[clip, :frames])
            for name in ("attention_map", "dynamics_map", "saliency", "region_mask"):
                torch.testing.assert_close(
                    getattr(found, name)[clip, :frames].double(), getattr(expected, name), atol=1e-5, rtol=0, msg=name
                )
            torch.testing.assert_close(prompted[clip, :frames], expected.tokens, atol=1e-5, rtol=0)
            assert not found.region_mask[clip, frames:].any()
            assert torch.equal(prompted[clip, frames:], tokens[clip, frames:])


@settings(max_examples=20)
@given(seed=st.integers(0, 10**6), grid=st.integers(2, 4), frames=st.integers(1, 4), by_frame=st.booleans())
def test_spatial_prompts_equal_the_equation(seed, grid, frames, by_frame):
    tokens, _ = slow.padded_clips(seed, [frames], grid * grid, WIDTH)
    prompter = make_prompter(seed, grid)
    with torch.no_grad():
        expected = slow.spatial_prompts(prompter.prompter, tokens[0], grid)
        everywhere = torch.ones(1, frames, dtype=torch.bool)
        torch.testing.assert_close(
            prompts_of(prompter.prompter, slow.in_sequences(tokens, frames if by_frame else 1), everywhere)[0],
            expected,
            atol=1e-9,
            rtol=0,
        )


def test_a_prompt_sees_its_frame_and_the_two_beside_it_only():
    torch.manual_seed(0)
    net = make_prompter(0, 3).prompter
    tokens = torch.randn(1, 7, 9, WIDTH, dtype=torch.float64)
    changed = tokens.clone()
    changed[:, 3] += 1
    real = torch.ones(1, 7, dtype=torch.bool)
    before, after = (prompts_of(net, slow.in_sequences(clip), real) for clip in (tokens, changed))
    moved = (after - before).abs().amax(dim=(0, 2, 3))
    assert (moved > 1e-9).tolist() == [False, False, True, True, True, False, False]


def test_frames_of_a_still_clip_get_the_same_prompts_wherever_they_are():
    torch.manual_seed(0)
    net = make_prompter(0, 3).prompter
    still = torch.randn(1, 1, 9, WIDTH, dtype=torch.float64).expand(-1, 5, -1, -1)
    moving = still.clone()
    moving[:, 1::2] *= 2
    real = torch.ones(1, 5, dtype=torch.bool)
    prompts = prompts_of(net, slow.in_sequences(still), real)
    torch.testing.assert_close(prompts, prompts[:, :1].expand_as(prompts), atol=1e-12, rtol=0)
    prompts = prompts_of(net, slow.in_sequences(moving), real)
    assert (prompts[:, 1] - prompts[:, 3]).abs().max() > 1e-3


def test_starts_without_any_prompt():
    prompter = IntraFramePrompter(WIDTH, 3, n_regions=3, alpha=0.5, bottleneck=5, dropout=0.0).double()
    class_token, tokens, frame_mask = moving_clip()
    assert torch.equal(
        prompter(make_block(0), sequences(class_token, tokens), timing_of(frame_mask)).x,
        sequences(class_token, tokens),
    )


class TestMaps:
    def test_both_are_distributions(self):
        class_token, tokens, frame_mask = moving_clip()
        found = make_prompter(0, 3)(make_block(0), sequences(class_token, tokens), timing_of(frame_mask))
        for name in ("attention_map", "dynamics_map", "saliency"):
            rows = getattr(found, name).double().sum(dim=-1)
            torch.testing.assert_close(rows, torch.ones_like(rows), atol=1e-5, rtol=0)

    def test_attention_has_no_gradient(self):
        class_token, tokens, _ = moving_clip()
        assert not attention_map(make_block(0), sequences(class_token, tokens).requires_grad_(), 4).requires_grad

    def test_the_only_moving_patch_has_all_the_dynamics(self):
        class_token, tokens, frame_mask = moving_clip()
        tokens[:] = tokens[:, :1].clone()
        tokens[:, 2:, 5] += torch.arange(WIDTH)
        prompter = IntraFramePrompter(WIDTH, 3, n_regions=1, alpha=0.0, bottleneck=5, dropout=0.0).double()
        found = prompter(make_block(0), sequences(class_token, tokens), timing_of(frame_mask))
        # A central difference sees the jump from frame 1 to frame 2 in both; frames 0 and 3 see nothing.
        assert found.dynamics_map[0, [1, 2], 5].tolist() == [1.0, 1.0]
        assert found.dynamics_map[0, [0, 3]].abs().max() == 0
        assert found.region_mask[0, [1, 2], 5].tolist() == [1.0, 1.0]

    def test_a_still_clip_is_left_to_the_attention_map(self):
        class_token, tokens, frame_mask = moving_clip()
        tokens = tokens[:, :1].expand_as(tokens)
        prompter = IntraFramePrompter(WIDTH, 3, n_regions=2, alpha=0.5, bottleneck=5, dropout=0.0).double()
        found = prompter(make_block(0), sequences(class_token, tokens), timing_of(frame_mask))
        assert found.dynamics_map.abs().max() == 0
        assert torch.equal(found.region_mask, most_salient(found.attention_map, 2).to(found.region_mask))


class TestRegions:
    @settings(max_examples=60)
    @given(saliency=st.lists(st.sampled_from([0.0, 0.1, 0.2, 0.5]), min_size=1, max_size=40), share=st.floats(0, 1))
    def test_exactly_n_and_ties_to_the_lower_index(self, saliency, share):
        n_regions = 1 + round(share * (len(saliency) - 1))
        region = most_salient(torch.tensor(saliency), n_regions)
        assert region.nonzero().flatten().tolist() == sorted(slow.chosen(saliency, n_regions))
        assert set(region.tolist()) <= {0.0, 1.0}
        assert region.sum() == n_regions

    def test_a_flat_frame_gives_the_first_patches(self):
        assert most_salient(torch.full((2, 3, 196), 0.25), 6).nonzero()[:, 2].tolist() == [0, 1, 2, 3, 4, 5] * 6

    @pytest.mark.parametrize("options", [{}, {"hard_region_mask": True}, {"random_regions": True}])
    @pytest.mark.parametrize("training", [True, False])
    def test_exactly_n_in_every_real_frame(self, options, training):
        tokens, frame_mask = slow.padded_clips(5, [4, 2, 1], 16, WIDTH)
        prompter = make_prompter(1, 4, n_regions=5, **options).train(training)
        region = prompter(
            make_block(1), sequences(tokens[:, :1, 0], tokens), timing_of(frame_mask)
        ).region_mask.detach()
        torch.testing.assert_close(region, region.round(), atol=1e-6, rtol=0)
        assert torch.equal(region.round().sum(dim=-1), 5.0 * frame_mask)

    def test_random_ones_ignore_the_clip(self):
        prompter = make_prompter(0, 3, random_regions=True)
        assert prompter.dynamics is None
        regions = {}
        for training in (False, True):
            prompter.train(training)
            drawn = []
            for seed in range(6):
                class_token, tokens, frame_mask = moving_clip(seed=seed)
                drawn.append(prompter(make_block(0), sequences(class_token, tokens), timing_of(frame_mask)).region_mask)
            regions[training] = [torch.equal(drawn[0], other) for other in drawn[1:]]
        assert all(regions[False])
        assert not all(regions[True])


class TestGradient:
    """The hard mask has no gradient; the straight-through one has that of the rescaled saliency, by definition."""

    @staticmethod
    def of_the_mask(prompter: IntraFramePrompter) -> tuple[SpatialPrompting, Tensor, tuple[Tensor, Tensor, Tensor]]:
        inputs = moving_clip()
        found = prompter(make_block(0), sequences(*inputs[:2]), timing_of(inputs[2]))
        direction = torch.randn(found.region_mask.shape, dtype=found.region_mask.dtype)
        return found, direction, inputs

    def test_straight_through_is_the_gradient_of_the_rescaled_saliency(self):
        torch.manual_seed(0)
        prompter = make_prompter(2, 3, alpha=0.3)
        found, direction, (class_token, tokens, _) = self.of_the_mask(prompter)
        parameters = list(prompter.dynamics.parameters())
        ours = torch.autograd.grad((found.region_mask * direction).sum(), parameters, retain_graph=True)
        through_our_saliency = torch.autograd.grad((rescaled(found.saliency) * direction).sum(), parameters)
        expected = slow.prompt_frames(prompter, make_block(0), class_token[0], tokens[0])
        theirs = torch.autograd.grad((slow.rescaled(expected.saliency) * direction[0]).sum(), parameters)
        for mine, same, reference in zip(ours, through_our_saliency, theirs, strict=True):
            assert reference.abs().max() > 1e-3
            torch.testing.assert_close(mine, same, atol=1e-12, rtol=1e-10)
            torch.testing.assert_close(mine, reference, atol=1e-5, rtol=1e-4)

    def test_hard_and_straight_through_are_equal_forward(self):
        inputs = moving_clip()
        found = [
            make_prompter(2, 3, hard_region_mask=hard)(make_block(0), sequences(*inputs[:2]), timing_of(inputs[2]))
            for hard in (False, True)
        ]
        for name in (field.name for field in dataclasses.fields(SpatialPrompting)):
            torch.testing.assert_close(getattr(found[0], name), getattr(found[1], name), atol=1e-7, rtol=0, msg=name)

    def test_the_hard_mask_has_none(self):
        prompter = make_prompter(2, 3, hard_region_mask=True)
        found, _, _ = self.of_the_mask(prompter)
        assert not found.region_mask.requires_grad
        found.x.sum().backward()
        without = [name for name, parameter in prompter.named_parameters() if parameter.grad is None]
        assert without == ["dynamics.conv.weight"]

    def test_of_the_prompts_equals_that_of_the_equations(self):
        torch.manual_seed(0)
        prompter = make_prompter(3, 3, hard_region_mask=True)
        class_token, tokens, frame_mask = moving_clip()
        direction = torch.randn(tokens.shape, dtype=tokens.dtype)
        parameters = list(prompter.prompter.parameters())
        ours = prompter(make_block(0), sequences(class_token, tokens), timing_of(frame_mask)).x
        theirs = slow.prompt_frames(prompter, make_block(0), class_token[0], tokens[0]).tokens
        for mine, reference in zip(
            torch.autograd.grad((patches_of(ours, 4) * direction).sum(), parameters),
            torch.autograd.grad((theirs * direction[0]).sum(), parameters),
            strict=True,
        ):
            torch.testing.assert_close(mine, reference, atol=1e-8, rtol=1e-6)

    def test_of_the_prompt_net_is_right(self):
        torch.manual_seed(0)
        net = SpatialPromptNet(4, 2, 3).double()
        slow.randomise(net, 1)
        tokens = torch.randn(1, 3, 4, 4, dtype=torch.float64, requires_grad=True)
        real = torch.tensor([[True, True, False]])

        def prompts(tokens, *parameters):  # those of the net, which gradcheck changes in their place
            return prompts_of(net, slow.in_sequences(tokens), real)

        assert torch.autograd.gradcheck(prompts, (tokens, *net.parameters()))

    @pytest.mark.parametrize("static_prompts", [False, True])
    def test_of_the_region_mask_equals_that_of_the_mask_times_all_prompts(self, static_prompts):
        """It is, although no prompt is made where the mask is zero."""
        torch.manual_seed(0)
        prompter = make_prompter(2, 3, static_prompts=static_prompts)
        class_token, tokens, frame_mask = moving_clip()
        direction = torch.randn(tokens.shape, dtype=tokens.dtype)
        found = prompter(make_block(0), sequences(class_token, tokens), timing_of(frame_mask))
        parameters = list(prompter.dynamics.parameters())
        ours = torch.autograd.grad((patches_of(found.x, 4) * direction).sum(), parameters, retain_graph=True)
        prompts = prompts_of(prompter.prompter, slow.in_sequences(layer_norm(tokens)), frame_mask).detach()
        theirs = torch.autograd.grad((found.region_mask.unsqueeze(-1) * prompts * direction).sum(), parameters)
        assert theirs[0].abs().max() > 1e-3
        torch.testing.assert_close(ours, theirs, atol=1e-9, rtol=1e-7)

    def test_of_the_rescaled_saliency_is_right(self):
        torch.manual_seed(0)
        saliency = torch.rand(2, 3, 5, dtype=torch.float64, requires_grad=True)
        assert torch.autograd.gradcheck(rescaled, saliency)

    def test_of_the_dynamics_map_is_right(self):
        torch.manual_seed(0)
        energy = torch.rand(1, 2, 4, dtype=torch.float64, requires_grad=True)
        assert torch.autograd.gradcheck(dynamics_map, energy)

    def test_of_a_still_clip_is_finite(self):
        prompter = IntraFramePrompter(WIDTH, 3, n_regions=3, alpha=0.5, bottleneck=5, dropout=0.0)
        class_token, tokens, frame_mask = (x if x.dtype == torch.bool else x.float() for x in moving_clip())
        still = sequences(class_token, tokens[:, :1].expand_as(tokens))
        found = prompter(make_block(0).float(), still, FrameTiming.of(frame_mask, torch.float32))
        (100 * found.region_mask * torch.linspace(-1, 1, 9)).sum().backward()
        for name, parameter in prompter.dynamics.named_parameters():
            assert parameter.grad.isfinite().all(), name


def test_static_prompts_depend_on_the_place_only():
    prompter = make_prompter(4, 3, static_prompts=True)
    class_token, tokens, frame_mask = moving_clip()
    found = prompter(make_block(0), sequences(class_token, tokens), timing_of(frame_mask))
    expected = tokens + found.region_mask.unsqueeze(-1) * prompter.prompter.prompt
    torch.testing.assert_close(patches_of(found.x, 4), expected, atol=1e-12, rtol=0)
    dynamic = make_prompter(4, 3)
    with torch.no_grad():
        dynamic.dynamics.load_state_dict(prompter.dynamics.state_dict())
    assert torch.equal(
        dynamic(make_block(0), sequences(class_token, tokens), timing_of(frame_mask)).saliency, found.saliency
    )


def test_dropout_acts_in_training_only():
    class_token, tokens, frame_mask = moving_clip()
    prompter = make_prompter(0, 3, dropout=0.5)
    torch.manual_seed(0)
    runs = [prompter(make_block(0), sequences(class_token, tokens), timing_of(frame_mask)).x for _ in range(2)]
    assert not torch.equal(*runs)
    prompter.eval()
    without = make_prompter(0, 3)(make_block(0), sequences(class_token, tokens), timing_of(frame_mask))
    assert torch.equal(prompter(make_block(0), sequences(class_token, tokens), timing_of(frame_mask)).x, without.x)
