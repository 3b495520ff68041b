"""Every option of STOP: it changes what it should and nothing earlier, and refuses values out of its range."""

import dataclasses

import pytest
import torch
from torch import Tensor

from modules.methods.stop import STOP
from modules.stop.timing import FrameTiming
from modules.stop.tokens import layer_norm, patches_of
from tests.modules.methods.small_stop import clips_that_move, like, make_stop, trained_names
from tests.tiny import tiny_batch


@pytest.fixture(scope="module")
def moving() -> tuple[Tensor, Tensor]:
    return clips_that_move([5, 3], seed=1)


def first_layer(method: STOP, clips: tuple[Tensor, Tensor]):
    return method.prompt_maps(*clips)[0]


def assert_same(ours, theirs, but: tuple[str, ...] = ()) -> None:
    """Check that two stages have the same results, except in the named fields, which must differ."""
    for field in dataclasses.fields(ours):
        one, other = getattr(ours, field.name), getattr(theirs, field.name)
        same = one.shape == other.shape and torch.allclose(one.double(), other.double(), atol=1e-6, rtol=1e-5)
        assert same == (field.name not in but), field.name


class TestOptions:
    """An option changes what it should and nothing earlier: compared in the first layer, on the same parameters."""

    def test_use_intra(self, moving):
        method = make_stop()
        without = like(method, use_intra=False)
        assert trained_names(method) - trained_names(without) == {n for n in trained_names(method) if n[:5] == "intra"}
        found = first_layer(without, moving)
        assert found.spatial is None
        x = without.clip.visual.embed(moving[0].flatten(0, 1)).unflatten(0, moving[0].shape[:2])
        timing = FrameTiming.of(moving[1], torch.float32)
        expected = method.inter[0](layer_norm(x), torch.zeros_like(x[:, :, 1:, 0]), timing)
        assert_same(found.temporal, expected)

    def test_use_inter(self, moving):
        method = make_stop()
        without = like(method, use_inter=False)
        assert trained_names(method) - trained_names(without) == {n for n in trained_names(method) if n[:5] == "inter"}
        found = first_layer(without, moving)
        assert found.temporal is None
        assert_same(found.spatial, first_layer(method, moving).spatial)

    def test_without_both_nothing_is_found(self, moving):
        assert make_stop(use_intra=False, use_inter=False).prompt_maps(*moving) == []

    def test_static_prompts(self, moving):
        method = make_stop()
        static = like(method, static_prompts=True)
        found, dynamic = first_layer(static, moving), first_layer(method, moving)
        assert_same(found.spatial, dynamic.spatial, but=("x",))
        assert torch.equal(found.temporal.prompts, method.inter[0].slots.expand_as(found.temporal.prompts))
        names = {name for name in trained_names(static) if not name.startswith("intra")}
        assert names == {"inter.0.slots", "inter.1.slots", "text_prompts"}
        assert static.intra[0].prompter.prompt.abs().max() > 0
        fresh = make_stop(seed=None, static_prompts=True)
        assert fresh.intra[0].prompter.prompt.abs().max() == 0

    def test_random_regions(self, moving):
        method = make_stop()
        found = first_layer(like(method, random_regions=True), moving)
        driven = first_layer(method, moving)
        assert_same(found.spatial, driven.spatial, but=("x", "region_mask", "saliency", "dynamics_map"))
        other = first_layer(like(method, random_regions=True), clips_that_move([5, 3], seed=2))
        assert torch.equal(found.spatial.region_mask, other.spatial.region_mask)

    def test_uniform_prompts(self, moving):
        method = make_stop()
        found, driven = first_layer(like(method, uniform_prompts=True), moving), first_layer(method, moving)
        assert_same(found.spatial, driven.spatial)
        assert_same(found.temporal, driven.temporal, but=("valid", "prompts_per_gap"))
        assert found.temporal.prompts_per_gap.tolist() == [[4] * 4, [4, 4, 0, 0]]

    def test_hard_region_mask(self, moving):
        method = make_stop()
        hard = like(method, hard_region_mask=True)
        for ours, theirs in zip(hard.prompt_maps(*moving), method.prompt_maps(*moving), strict=True):
            assert_same(ours.spatial, theirs.spatial)
            assert_same(ours.temporal, theirs.temporal)
        frozen = trained_names(method) - trained_names(hard)
        assert frozen == {f"intra.{i}.dynamics.conv.weight" for i in range(2)}

    @pytest.mark.parametrize(("alpha", "is_map"), [(1.0, "attention_map"), (0.0, "dynamics_map")])
    def test_alpha(self, moving, alpha, is_map):
        method = make_stop()
        found = first_layer(like(method, alpha=alpha), moving).spatial
        assert torch.equal(found.saliency, getattr(found, is_map))
        default = first_layer(method, moving).spatial
        assert torch.equal(found.attention_map, default.attention_map)
        assert torch.equal(found.dynamics_map, default.dynamics_map)

    def test_beta(self, moving):
        method = make_stop()
        found, default = first_layer(like(method, beta=50.0), moving), first_layer(method, moving)
        assert_same(found.spatial, default.spatial)
        assert not torch.allclose(found.temporal.frame_variation, default.temporal.frame_variation)
        ignorant = like(method, beta=0.0).inter[0]
        normal, ones = layer_norm(found.spatial.x), torch.ones_like(found.spatial.region_mask)
        timing = FrameTiming.of(moving[1], torch.float32)
        assert_same(ignorant(normal, ones, timing), ignorant(normal, 0 * ones, timing))

    @pytest.mark.parametrize("eta", [1, 2, 9])
    def test_eta(self, moving, eta):
        method = make_stop()
        found, default = first_layer(like(method, eta=eta), moving), first_layer(method, moving)
        assert_same(found.spatial, default.spatial)
        assert torch.equal(found.temporal.frame_variation, default.temporal.frame_variation)
        assert found.temporal.prompts.shape[2] == eta
        assert found.temporal.prompts_per_gap.max() == eta
        expected = (eta * default.temporal.frame_variation).ceil()
        assert torch.equal(found.temporal.prompts_per_gap.float(), expected)

    @pytest.mark.parametrize("noise_floor", [1e-9, 1e3])
    def test_noise_floor(self, moving, noise_floor):
        method = make_stop()
        found, default = first_layer(like(method, noise_floor=noise_floor), moving), first_layer(method, moving)
        assert_same(found.spatial, default.spatial)
        assert (found.temporal.prompts_per_gap.sum() < default.temporal.prompts_per_gap.sum()) == (noise_floor > 1)

    @pytest.mark.parametrize("n_regions", [1, 9])
    def test_n_regions(self, moving, n_regions):
        method = make_stop()
        found = first_layer(like(method, n_regions=n_regions), moving).spatial
        assert_same(found, first_layer(method, moving).spatial, but=("x", "region_mask"))
        assert torch.equal(found.region_mask.round().sum(-1), n_regions * moving[1].float())

    def test_prompt_depth(self, moving):
        method = make_stop(prompt_depth=1)
        assert len(method.intra) == len(method.inter) == len(method.prompt_maps(*moving)) == 1
        assert torch.equal(make_stop().encode_video(*moving), make_stop(prompt_depth=2).encode_video(*moving))
        deeper = like(method)
        assert_same(first_layer(method, moving).spatial, first_layer(deeper, moving).spatial)
        assert_same(first_layer(method, moving).temporal, first_layer(deeper, moving).temporal)
        assert not torch.allclose(method.encode_video(*moving), deeper.encode_video(*moving), atol=1e-3)

    def test_attention(self, moving):
        joint = make_stop(attention="joint")
        frame = like(joint, attention="frame")
        assert trained_names(joint) == trained_names(frame)
        # Before the first block all class tokens are the same, so both layouts give the same.
        of_joint, of_frame = first_layer(joint, moving), first_layer(frame, moving)
        assert_same(of_joint.spatial, of_frame.spatial, but=("x",))
        torch.testing.assert_close(*(patches_of(found.spatial.x, 5) for found in (of_joint, of_frame)))
        assert_same(of_joint.temporal, of_frame.temporal)
        assert not torch.allclose(joint.encode_video(*moving), frame.encode_video(*moving), atol=1e-3)

    @pytest.mark.parametrize("length", [0, 1, 7])
    def test_text_prompt_length(self, moving, length):
        method = make_stop()
        other = like(method, text_prompt_length=length)
        assert torch.equal(other.encode_video(*moving), method.encode_video(*moving))
        _, _, token_ids = tiny_batch()
        assert ("text_prompts" in trained_names(other)) == (length > 0)
        assert torch.equal(other.encode_text(token_ids), other.clip.text(token_ids)) == (length == 0)

    def test_widths(self):
        shapes = {}
        for options in ({}, {"intra_width": 24}, {"inter_width": 24}):
            parameters = make_stop(**options).trainable_parameters()
            shapes[next(iter(options), "")] = {name: parameter.shape for name, parameter in parameters}
        for option, part in (("intra_width", "intra"), ("inter_width", "inter")):
            changed = {name for name, shape in shapes[option].items() if shape != shapes[""][name]}
            assert changed
            assert {name.split(".")[0] for name in changed} == {part}
            assert all(24 in shapes[option][name] or 72 in shapes[option][name] for name in changed)

    def test_prompt_dropout(self, moving):
        method = make_stop()
        dropping = like(method, prompt_dropout=0.5)
        assert torch.equal(dropping.encode_video(*moving), method.encode_video(*moving))
        dropping.train()
        torch.manual_seed(0)
        assert not torch.equal(dropping.encode_video(*moving), dropping.encode_video(*moving))
        steady = like(method, prompt_dropout=0.0).train()
        assert torch.equal(steady.encode_video(*moving), steady.encode_video(*moving))

    @pytest.mark.parametrize(
        ("option", "value"),
        [
            ("attention", "both"),
            ("prompt_depth", -1),
            ("prompt_depth", 3),
            ("n_regions", 0),
            ("n_regions", 10),
            ("alpha", -0.1),
            ("alpha", 1.1),
            ("alpha", float("nan")),
            ("eta", 0),
            ("eta", 65),
            ("beta", -1.0),
            ("noise_floor", 0.0),
            ("intra_width", 7),
            ("inter_width", 0),
            ("inter_width", 20),
            ("prompt_dropout", -0.1),
            ("prompt_dropout", 1.0),
            ("text_prompt_length", -1),
            ("text_prompt_length", 65),
        ],
    )
    def test_out_of_range_is_refused_by_name(self, option, value):
        with pytest.raises(ValueError, match=f"^--{option} ") as error:
            make_stop(**{option: value})
        assert (value if isinstance(value, str) else f"{value:g}") in str(error.value)

    @pytest.mark.parametrize(
        ("option", "value"),
        [("prompt_depth", 2), ("n_regions", 9), ("alpha", 1), ("eta", 64), ("beta", 0), ("prompt_dropout", 0)],
    )
    def test_the_ends_of_a_range_are_allowed(self, moving, option, value):
        assert make_stop(**{option: value}).encode_video(*moving).isfinite().all()
