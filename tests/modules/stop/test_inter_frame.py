"""Inter-frame temporal prompting: every equation against loops, the counts, and the insertion into a block."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from modules.block import Block
from modules.stop.frame_changes import frame_changes
from modules.stop.inter_frame import (
    InterFramePrompter,
    TemporalPrompting,
    TemporalPromptNet,
    frame_variation,
    insert,
    insert_by_frame,
    insert_joint,
    normalised_variation,
    prompts_per_gap,
)
from modules.stop.timing import FrameTiming
from modules.stop.tokens import layer_norm, patches_of, sequences
from tests.modules.stop import plain_parts as plain
from tests.modules.stop import stop_reference as slow

WIDTH, HEADS = 8, 2


def make_prompter(seed: int, grid: int, **options) -> InterFramePrompter:
    settings_ = {"eta": 4, "beta": 1.0, "bottleneck": 4, "heads": 2, "dropout": 0.0, "noise_floor": 0.05, **options}
    prompter = InterFramePrompter(WIDTH, grid, **settings_).double()
    slow.randomise(prompter, seed)
    return prompter


def make_block(seed: int) -> Block:
    block = Block(WIDTH, HEADS, "quick_gelu").double()
    slow.randomise(block, seed, scale=0.6)
    return block.requires_grad_(False)


def prompted(prompter: InterFramePrompter, x: Tensor, region_mask: Tensor, frame_mask: Tensor) -> TemporalPrompting:
    """Run the stage on tokens that are not normalised yet."""
    return prompter(layer_norm(x), region_mask, FrameTiming.of(frame_mask, x.dtype))


def random_regions(seed: int, tokens: Tensor, frame_mask: Tensor) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (torch.rand(tokens.shape[:3], generator=generator) < 0.4).to(tokens) * frame_mask.unsqueeze(-1)


@settings(max_examples=25)
@given(
    seed=st.integers(0, 10**6),
    grid=st.integers(2, 3),
    frames_of_clip=st.lists(st.integers(2, 5), min_size=1, max_size=3),
    eta=st.integers(1, 6),
    beta=st.sampled_from([0.0, 0.5, 1.0, 10.0]),
    noise_floor=st.sampled_from([1e-6, 0.05, 1.0]),
    by_frame=st.booleans(),
)
def test_equals_the_equations(seed, grid, frames_of_clip, eta, beta, noise_floor, by_frame):
    tokens, frame_mask = slow.padded_clips(seed, frames_of_clip, grid * grid, WIDTH)
    region_mask = random_regions(seed, tokens, frame_mask)
    prompter = make_prompter(seed, grid, eta=eta, beta=beta, noise_floor=noise_floor)
    with torch.no_grad():
        found = prompted(
            prompter, slow.in_sequences(tokens, tokens.shape[1] if by_frame else 1), region_mask, frame_mask
        )
        for clip, frames in enumerate(frames_of_clip):
            gaps = frames - 1
            expected = slow.prompt_gaps(prompter, tokens[clip, :frames], region_mask[clip, :frames])
            variation = found.frame_variation[clip, :gaps].double()
            torch.testing.assert_close(variation, expected.frame_variation, atol=1e-5, rtol=0)
            assert found.prompts_per_gap[clip, :gaps].tolist() == expected.prompts_per_gap
            prompts = plain.stack_frames(expected.prompts)
            torch.testing.assert_close(found.prompts[clip, :gaps], prompts, atol=1e-5, rtol=0)
            assert not found.prompts_per_gap[clip, gaps:].any()
        slot = torch.arange(eta)
        assert torch.equal(found.valid, slot < found.prompts_per_gap.unsqueeze(-1))


@settings(max_examples=25)
@given(seed=st.integers(0, 10**6), beta=st.floats(0, 20), gaps=st.integers(1, 4))
def test_frame_variation_equals_the_equation(seed, beta, gaps):
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(1, gaps, 4, 3, generator=generator, dtype=torch.float64)
    region_mask = (torch.rand(1, gaps, 4, generator=generator) < 0.5).double()
    expected = torch.stack(slow.frame_variation(features[0], region_mask[0], beta))
    energy = features.square().mean(dim=-1)
    torch.testing.assert_close(frame_variation(energy, region_mask, beta)[0], expected, atol=1e-9, rtol=1e-9)


class TestCounts:
    @settings(max_examples=100)
    @given(
        variation=st.lists(st.floats(0, 1e6, width=32), min_size=1, max_size=8),
        noise_floor=st.floats(1e-6, 1.0),
        eta=st.integers(1, 64),
    )
    def test_lie_in_0_to_eta_and_grow_with_the_variation(self, variation, noise_floor, eta):
        shares = normalised_variation(torch.tensor([variation]), noise_floor)
        counts = prompts_per_gap(shares, eta)[0]
        assert counts.dtype == torch.int64
        assert counts.min() >= 0
        assert counts.max() <= eta
        if max(variation) >= noise_floor:
            assert counts.max() == eta
        order = torch.tensor(variation).argsort()
        assert (counts[order].diff() >= 0).all()

    def test_are_the_ceiling(self):
        shares = torch.tensor([[0.0, 0.0009, 0.0011, 0.25, 0.2501, 0.5, 0.75, 0.9, 1.0]])
        assert prompts_per_gap(shares, 4).tolist() == [[0, 0, 1, 1, 2, 2, 3, 4, 4]]

    def test_do_not_depend_on_the_scale_of_features(self):
        shares = normalised_variation(torch.tensor([[1.0, 2.0, 5.0]]), 0.05)
        torch.testing.assert_close(normalised_variation(torch.tensor([[10.0, 20.0, 50.0]]), 0.05), shares)

    @pytest.mark.parametrize("seed", range(8))
    def test_a_still_clip_gets_none_whatever_was_learned(self, seed):
        torch.manual_seed(seed)
        tokens, _ = slow.padded_clips(seed, [1], 9, WIDTH)
        tokens = tokens.expand(1, 6, 9, WIDTH)
        frame_mask = torch.ones(1, 6, dtype=torch.bool)
        prompter = make_prompter(seed, 3, noise_floor=1e-6)
        # One rounding error away from still is still.
        for clip in (tokens, tokens + 1e-9 * torch.randn(tokens.shape, dtype=tokens.dtype)):
            found = prompted(prompter, slow.in_sequences(clip), random_regions(seed, clip, frame_mask), frame_mask)
            assert found.prompts_per_gap.tolist() == [[0] * 5]
            assert not found.valid.any()
            assert found.prompts.isfinite().all()

    @pytest.mark.parametrize("gap", range(5))
    def test_one_sudden_change_has_its_maximum_there(self, gap):
        torch.manual_seed(gap)
        tokens, _ = slow.padded_clips(gap, [1], 9, WIDTH)
        tokens = tokens.repeat(1, 6, 1, 1)
        tokens[:, gap + 1 :] = torch.randn(9, WIDTH, dtype=torch.float64)
        prompter = InterFramePrompter(
            WIDTH, 3, eta=4, beta=1.0, bottleneck=4, heads=2, dropout=0.0, noise_floor=0.05
        ).double()
        frame_mask = torch.ones(1, 6, dtype=torch.bool)
        found = prompted(prompter, slow.in_sequences(tokens), random_regions(0, tokens, frame_mask), frame_mask)
        assert found.prompts_per_gap.tolist() == [[4 if i == gap else 0 for i in range(5)]]

    def test_more_where_more_moves(self):
        torch.manual_seed(0)
        tokens = torch.randn(1, 1, 9, WIDTH, dtype=torch.float64).repeat(1, 4, 1, 1)
        for i, moving in enumerate((2, 5, 9), start=1):
            tokens[:, i:, :moving] = torch.randn(moving, WIDTH, dtype=torch.float64)
        prompter = InterFramePrompter(
            WIDTH, 3, eta=8, beta=0.0, bottleneck=4, heads=2, dropout=0.0, noise_floor=0.05
        ).double()
        counts = prompted(
            prompter, slow.in_sequences(tokens), torch.zeros(1, 4, 9), torch.ones(1, 4, dtype=torch.bool)
        ).prompts_per_gap[0]
        assert 0 < counts[0] < counts[1] < counts[2] == 8

    def test_below_the_noise_floor_the_floor_counts(self):
        shares = normalised_variation(torch.tensor([[0.01, 0.02], [0.1, 0.2]]), 0.08)
        torch.testing.assert_close(shares, torch.tensor([[0.125, 0.25], [0.5, 1.0]]))
        assert prompts_per_gap(shares, 4).tolist() == [[1, 1], [2, 4]]

    def test_a_change_in_a_salient_region_counts_more(self):
        energy = torch.ones(1, 2, 4)
        region_mask = torch.tensor([[[0.0, 0, 0, 0], [1, 1, 0, 0]]])
        assert frame_variation(energy, region_mask, 1.0).tolist() == [[1.0, 1.5]]
        assert frame_variation(energy, region_mask, 0.0).tolist() == [[1.0, 1.0]]

    def test_the_region_mask_is_the_later_frames(self):
        tokens, frame_mask = slow.padded_clips(0, [4], 9, WIDTH)
        prompter = make_prompter(0, 3, beta=5.0)
        region_mask = random_regions(1, tokens, frame_mask)
        changed = region_mask.clone()
        changed[:, 0] = 1 - changed[:, 0]
        found = [
            prompted(prompter, slow.in_sequences(tokens), mask, frame_mask).frame_variation
            for mask in (region_mask, changed)
        ]
        assert torch.equal(*found)

    def test_uniform_fills_every_real_gap(self):
        tokens, frame_mask = slow.padded_clips(3, [5, 2, 1], 9, WIDTH)
        region_mask = random_regions(3, tokens, frame_mask)
        found = prompted(make_prompter(3, 3, uniform=True), slow.in_sequences(tokens), region_mask, frame_mask)
        driven = prompted(make_prompter(3, 3), slow.in_sequences(tokens), region_mask, frame_mask)
        assert found.prompts_per_gap.tolist() == [[4, 4, 4, 4], [4, 0, 0, 0], [0, 0, 0, 0]]
        assert torch.equal(found.prompts, driven.prompts)
        assert torch.equal(found.frame_variation, driven.frame_variation)


def test_static_prompts_are_the_slots():
    tokens, frame_mask = slow.padded_clips(3, [5, 2], 9, WIDTH)
    region_mask = random_regions(3, tokens, frame_mask)
    prompter, dynamic = make_prompter(3, 3, static_prompts=True), make_prompter(3, 3)
    prompter.dynamics.load_state_dict(dynamic.dynamics.state_dict())
    found = prompted(prompter, slow.in_sequences(tokens), region_mask, frame_mask)
    assert torch.equal(found.prompts, prompter.slots.expand(2, 4, 4, WIDTH))
    assert torch.equal(
        found.prompts_per_gap, prompted(dynamic, slow.in_sequences(tokens), region_mask, frame_mask).prompts_per_gap
    )
    assert [name for name, parameter in prompter.named_parameters() if parameter.requires_grad] == ["slots"]


def test_dropout_acts_in_training_only():
    tokens, frame_mask = slow.padded_clips(3, [3], 9, WIDTH)
    prompter = make_prompter(3, 3, dropout=0.5)
    torch.manual_seed(0)
    runs = [prompted(prompter, slow.in_sequences(tokens), torch.zeros(1, 3, 9), frame_mask).prompts for _ in range(2)]
    assert not torch.equal(*runs)
    prompter.eval()
    runs = [prompted(prompter, slow.in_sequences(tokens), torch.zeros(1, 3, 9), frame_mask).prompts for _ in range(2)]
    assert torch.equal(*runs)


class TestGradient:
    def test_of_the_prompt_net_is_right(self):
        torch.manual_seed(0)
        net = TemporalPromptNet(3, 2, eta=2, bottleneck=4, heads=2).double()
        slow.randomise(net, 0)
        names = [name for name, _ in net.named_parameters()]
        tokens = torch.randn(1, 3, 5, 3, dtype=torch.float64, requires_grad=True)
        gain = torch.tensor([[1.2, 1.9]], dtype=torch.float64, requires_grad=True)
        timing = FrameTiming.of(torch.ones(1, 3, dtype=torch.bool), torch.float64)

        def prompts(tokens, gain, *parameters):
            tensors = dict(zip(names, parameters, strict=True))
            return torch.func.functional_call(net, tensors, (frame_changes(tokens, timing), gain, timing))

        assert torch.autograd.gradcheck(prompts, (tokens, gain, *net.parameters()))

    def test_of_the_normalised_variation_is_right(self):
        variation = torch.tensor([[0.2, 0.9, 0.4], [0.01, 0.02, 0.03]], dtype=torch.float64, requires_grad=True)
        assert torch.autograd.gradcheck(lambda v: normalised_variation(v, 0.05), variation)

    def test_of_the_frame_variation_is_right(self):
        torch.manual_seed(0)
        energy = torch.rand(1, 2, 4, dtype=torch.float64, requires_grad=True)
        region_mask = torch.rand(1, 2, 4, dtype=torch.float64, requires_grad=True)
        assert torch.autograd.gradcheck(lambda e, r: frame_variation(e, r, 1.0), (energy, region_mask))

    def test_of_all_equals_that_of_the_equations(self):
        """Includes N_t, whose gradient comes through the scale 1 + W_t."""
        torch.manual_seed(0)
        tokens, frame_mask = slow.padded_clips(1, [4], 4, WIDTH)
        region_mask = random_regions(1, tokens, frame_mask)
        prompter = make_prompter(1, 2)
        direction = torch.randn(3, 4, WIDTH, dtype=torch.float64)
        ours = prompted(prompter, slow.in_sequences(tokens), region_mask, frame_mask).prompts[0]
        theirs = plain.stack_frames(slow.prompt_gaps(prompter, tokens[0], region_mask[0]).prompts)
        parameters = dict(prompter.named_parameters())
        for name, mine, reference in zip(
            parameters,
            torch.autograd.grad((ours * direction).sum(), list(parameters.values())),
            torch.autograd.grad((theirs * direction).sum(), list(parameters.values())),
            strict=True,
        ):
            assert reference.abs().max() > 1e-3, name
            torch.testing.assert_close(mine, reference, atol=1e-5, rtol=1e-5, msg=name)


class TestInsertion:
    """Prompts as context equal prompts that really stand in the sequence and whose outputs are dropped."""

    @staticmethod
    def prompting(seed: int, frames_of_clip: list[int], eta: int) -> TemporalPrompting:
        generator = torch.Generator().manual_seed(seed)
        gaps = max(frames_of_clip) - 1
        prompts = torch.randn(len(frames_of_clip), gaps, eta, WIDTH, generator=generator, dtype=torch.float64)
        counts = torch.randint(eta + 1, (len(frames_of_clip), gaps), generator=generator)
        for clip, frames in enumerate(frames_of_clip):
            counts[clip, frames - 1 :] = 0
        valid = torch.arange(eta) < counts.unsqueeze(-1)
        return TemporalPrompting(prompts, valid, torch.zeros_like(counts, dtype=torch.float32), counts)

    @settings(max_examples=12)
    @given(
        seed=st.integers(0, 10**6),
        grid=st.integers(1, 3),
        frames_of_clip=st.lists(st.integers(1, 3), min_size=1, max_size=2).map(lambda frames: [*frames, 3]),
        eta=st.integers(1, 4),
        joint=st.booleans(),
        with_prompts=st.booleans(),
    )
    def test_equals_the_really_prompted_sequence(self, seed, grid, frames_of_clip, eta, joint, with_prompts):
        tokens, frame_mask = slow.padded_clips(seed, frames_of_clip, grid * grid, WIDTH)
        batch, frames, patches, _ = tokens.shape
        block = make_block(seed)
        torch.manual_seed(seed)
        class_token = torch.randn(batch, 1 if joint else frames, WIDTH, dtype=torch.float64)
        prompting = self.prompting(seed, frames_of_clip, eta) if with_prompts else None
        x = sequences(class_token, tokens)
        context, mask = insert("joint" if joint else "frame", block, frame_mask, patches, prompting)
        out = block(x.flatten(0, 1), context, mask).view_as(x)
        new_class, new_tokens = out[:, :, 0], patches_of(out, frames)
        for clip, real in enumerate(frames_of_clip):
            inserted = None
            if prompting is not None:
                inserted = slow.Temporal(
                    prompting.frame_variation[clip, : real - 1],
                    prompting.prompts_per_gap[clip, : real - 1].tolist(),
                    [list(gap) for gap in prompting.prompts[clip, : real - 1]],
                )
            run = slow.run_joint if joint else slow.run_by_frame
            expected_class, expected = run(block, class_token[clip, :real], tokens[clip, :real], inserted)
            torch.testing.assert_close(new_tokens[clip, :real], expected, atol=1e-5, rtol=0)
            torch.testing.assert_close(new_class[clip, : len(expected_class)], expected_class, atol=1e-5, rtol=0)

    def test_prompts_cost_no_queries_and_no_mlp(self):
        frames, patches, eta, width = 3, 4, 2, WIDTH
        tokens, frame_mask = slow.padded_clips(0, [frames], patches, width)
        block = make_block(0)

        def operations(work: Callable[[], object]) -> int:
            with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
                work()
            return counter.get_total_flops()

        def run(prompting: TemporalPrompting | None) -> None:
            context, mask = insert_joint(block, frame_mask, patches, prompting)
            block(x, context, mask)

        x = torch.cat([tokens[:, 0, :1], tokens.flatten(1, 2)], dim=1)
        prompting = self.prompting(0, [frames], eta)
        queries, prompts = 1 + frames * patches, (frames - 1) * eta
        # A key and a value each (2 operations a multiply-add), and a score and a share of the mix for every query.
        keys_and_values, scores_and_mix = 2 * prompts * width * 2 * width, 2 * queries * prompts * 2 * width
        cost = operations(lambda: run(prompting)) - operations(lambda: run(None))
        assert cost == keys_and_values + scores_and_mix
        inserted = torch.cat([x, prompting.prompts.flatten(1, 2)], dim=1)
        assert cost < (operations(lambda: block(inserted)) - operations(lambda: run(None))) / 3

    def test_prompts_of_a_gap_are_projected_once_for_both_frames_beside_it(self):
        frames, patches, eta, width = 4, 4, 2, WIDTH
        block, prompting = make_block(0), self.prompting(0, [frames], eta)
        with FlopCounterMode(display=False) as counter:
            context, _ = insert_by_frame(block, patches, prompting)
        assert context.keys.shape == (frames, 2 * eta, width)
        assert counter.get_total_flops() == 2 * (frames - 1) * eta * width * 2 * width
