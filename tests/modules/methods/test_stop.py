"""STOP as a whole: against the slow reference, independence, its start, its budget, any size, and every option."""

import copy
import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from engine.describe import describe
from modules.clip import ARCHITECTURES, CLIP, CLIPArchitecture
from modules.losses import symmetric_info_nce
from modules.methods import build_method
from modules.methods.stop import STOP
from modules.stop.timing import FrameTiming
from modules.stop.tokens import layer_norm, patches_of
from tests.modules.stop import stop_reference as slow
from tests.tiny import TINY, tiny_batch, tiny_clip

SMALL = dataclasses.replace(TINY, image_size=12, patch_size=4, vision_width=16)  # grid 3
SMALL_WEIGHTS = Path(__file__).resolve().parents[3] / "pretrained" / "moving_shapes_clip.safetensors"
LAYOUTS = pytest.mark.parametrize("attention", ["joint", "frame"])


def make_stop(architecture: CLIPArchitecture = SMALL, seed: int | None = 0, **options) -> STOP:
    """STOP in evaluation mode with all its own parameters random (`seed=None`: as training starts)."""
    defaults = {"n_regions": 3, "intra_width": 8, "inter_width": 8}
    method = build_method("stop", tiny_clip(architecture=architecture), **{**defaults, **options}).eval()
    if seed is not None:
        slow.randomise(method, seed)
    return method


def like(method: STOP, **options) -> STOP:
    """The same STOP with other options: what both have, they have in common."""
    other = make_stop(method.clip.architecture, **options)
    theirs = other.state_dict()
    for name, tensor in method.state_dict().items():
        if name in theirs and theirs[name].shape == tensor.shape:
            theirs[name].copy_(tensor)
    return other


def clips_that_move(frames_of_clip: list[int], seed: int = 0, image_size: int = 12) -> tuple[Tensor, Tensor]:
    """(video `[B,T,3,H,W]`, frame mask); from frame to frame anything from nothing to everything changes."""
    pixels, frame_mask = slow.padded_clips(seed, frames_of_clip, 3 * image_size, image_size)
    return pixels.float().unflatten(2, (3, image_size)), frame_mask


def trained_names(method: STOP) -> set[str]:
    return {name for name, _ in method.trainable_parameters()}


# ---- equations ------------------------------------------------------------------------------------------------------


@LAYOUTS
@settings(derandomize=True, deadline=None, max_examples=5)
@given(
    seed=st.integers(0, 10**6),
    frames_of_clip=st.permutations([1, 2, 3]).map(lambda frames: frames[:2]),
    options=st.sampled_from(
        [{}, {"prompt_depth": 1}, {"alpha": 0.2, "beta": 4.0, "eta": 2, "n_regions": 1}, {"use_intra": False}]
    ),
)
def test_equals_prompts_really_inserted(attention, seed, frames_of_clip, options):
    method = make_stop(seed=seed, attention=attention, **options).double()
    video, frame_mask = clips_that_move(frames_of_clip, seed)
    video = video.double()
    with torch.no_grad():
        embeddings, maps = method.encode_video(video, frame_mask), method.prompt_maps(video, frame_mask)
        for clip, frames in enumerate(frames_of_clip):
            expected, found = slow.encode_video(method, video[clip, :frames])
            torch.testing.assert_close(embeddings[clip], expected, atol=1e-5, rtol=1e-5)
            assert len(maps) == (options.get("prompt_depth") or 2)
            for ours, (spatial, temporal) in zip(maps, found, strict=False):
                if spatial is not None:
                    tokens = patches_of(ours.spatial.x, video.shape[1])[clip, :frames]
                    torch.testing.assert_close(tokens, spatial.tokens, atol=1e-5, rtol=1e-5)
                    assert torch.equal(ours.spatial.region_mask[clip, :frames].round(), spatial.region_mask)
                if temporal is not None:
                    assert ours.temporal.prompts_per_gap[clip, : frames - 1].tolist() == temporal.prompts_per_gap


def test_text_equals_prompts_really_inserted_after_start():
    method = make_stop(seed=1, text_prompt_length=3).double()
    _, _, token_ids = tiny_batch(batch=3, words=7)
    token_ids[1, 3:] = torch.tensor([49407, 0, 0, 0])
    with torch.no_grad():
        found = method.encode_text(token_ids)
        for caption, ids in enumerate(token_ids):
            torch.testing.assert_close(found[caption], slow.encode_caption(method, ids), atol=1e-9, rtol=1e-7)
        assert (found - method.clip.text(token_ids)).abs().max() > 1e-2


# ---- counts ---------------------------------------------------------------------------------------------------------


class TestCounts:
    @LAYOUTS
    @pytest.mark.parametrize("seed", range(3))
    def test_a_still_clip_gets_no_temporal_prompts(self, attention, seed):
        """As training starts and with whatever was learned, in every layer."""
        method = make_stop(seed=seed, attention=attention)
        for model in (method, make_stop(seed=None, attention=attention)):
            video = torch.randn(1, 1, 3, 12, 12).expand(2, 7, -1, -1, -1)
            frame_mask = torch.tensor([[True] * 7, [True] * 4 + [False] * 3])
            for layer in model.prompt_maps(video, frame_mask):
                assert not layer.temporal.prompts_per_gap.any()
                assert torch.equal(layer.spatial.region_mask.sum(-1).round(), 3.0 * frame_mask)

    @LAYOUTS
    @pytest.mark.parametrize("cut", [1, 4, 6])
    def test_a_cut_has_the_most_prompts(self, attention, cut):
        torch.manual_seed(cut)
        video = torch.randn(1, 2, 3, 12, 12).repeat_interleave(torch.tensor([cut, 8 - cut]), dim=1)
        for layer in make_stop(seed=None, attention=attention).prompt_maps(video, torch.ones(1, 8)):
            counts = layer.temporal.prompts_per_gap[0]
            assert counts[cut - 1] == counts.max() == 4
            assert (counts == 4).sum() == 1 or counts.argmax() == cut - 1

    @pytest.mark.skipif(not SMALL_WEIGHTS.exists(), reason=f"pretrained/{SMALL_WEIGHTS.name} is not there")
    @LAYOUTS
    def test_camera_noise_gets_fewer_than_motion(self, attention):
        from dataloaders.transforms import normalise
        from modules.clip_weights import load_clip
        from preprocess.moving_shapes.world import draw_story, stage

        rng = np.random.default_rng(0)
        moving = np.stack([stage(draw_story(rng, held_out=False), rng).frames(12) for _ in range(8)])
        still = np.repeat(moving[:, :1], 12, axis=1)
        noisy = np.clip(np.round(still + rng.normal(0, 5, still.shape)), 0, 255).astype(np.uint8)
        method = build_method("stop", load_clip(SMALL_WEIGHTS), attention=attention).eval()

        def mean_count(video: np.ndarray) -> float:
            pixels = normalise(torch.from_numpy(video).permute(0, 1, 4, 2, 3))
            maps = method.prompt_maps(pixels, torch.ones(video.shape[:2]))
            return torch.stack([layer.temporal.prompts_per_gap.double().mean() for layer in maps]).mean().item()

        assert mean_count(still) == 0
        assert mean_count(noisy) < mean_count(moving)


# ---- independence ---------------------------------------------------------------------------------------------------


@LAYOUTS
@pytest.mark.parametrize(
    "options",
    [{}, {"hard_region_mask": True}, {"random_regions": True}, {"static_prompts": True}, {"uniform_prompts": True}],
    ids=lambda options: next(iter(options), "defaults"),
)
class TestIndependence:
    def test_of_batch_order_and_padding(self, attention, options):
        method = make_stop(attention=attention, **options)
        video, frame_mask = clips_that_move([4, 1, 2, 3])
        with torch.no_grad():
            together = method.encode_video(video, frame_mask)
            order = torch.tensor([2, 0, 3, 1])
            shuffled = method.encode_video(video[order], frame_mask[order])
            torch.testing.assert_close(shuffled, together[order], atol=1e-5, rtol=0)
            dirty = torch.where(frame_mask[:, :, None, None, None], video, -7 * video + 1)
            torch.testing.assert_close(method.encode_video(dirty, frame_mask), together, atol=1e-5, rtol=0)
            more = torch.nn.functional.pad(frame_mask, (0, 3))
            longer = torch.cat([video, torch.zeros_like(video[:, :3])], dim=1)
            torch.testing.assert_close(method.encode_video(longer, more), together, atol=1e-5, rtol=0)
            for clip, frames in enumerate([4, 1, 2, 3]):
                alone = method.encode_video(video[clip : clip + 1, :frames], frame_mask[clip : clip + 1, :frames])
                torch.testing.assert_close(alone[0], together[clip], atol=1e-5, rtol=0)

    def test_but_not_of_the_clip_itself(self, attention, options):
        """Else all of the above would be hollow: another last frame, or the frames backwards, is another clip."""
        method = make_stop(attention=attention, **options)
        video, frame_mask = clips_that_move([4, 3])
        with torch.no_grad():
            embedding = method.encode_video(video, frame_mask)
            changed = video.clone()
            changed[:, 2] += 1
            assert (method.encode_video(changed, frame_mask) - embedding).abs().amax(dim=1).min() > 1e-3
            if "static_prompts" not in options and "random_regions" not in options:
                backwards = method.encode_video(video[:1].flip(1), frame_mask[:1])
                assert (backwards - embedding[:1]).abs().max() > 1e-3


# ---- the start and training -----------------------------------------------------------------------------------------


class TestStart:
    @pytest.mark.parametrize(
        ("seed", "options"),
        [(0, {"use_intra": False, "use_inter": False}), (None, {"use_inter": False})],
        ids=["prompts off", "zero-initialised spatial prompts"],
    )
    def test_equals_clip4clip(self, seed, options):
        method = make_stop(TINY, seed, attention="frame", text_prompt_length=0, **options)
        baseline = build_method("clip4clip", tiny_clip())
        video, frame_mask, token_ids = tiny_batch(batch=3, frames=5)
        with torch.no_grad():
            for ours, theirs in zip(
                method(video, frame_mask, token_ids), baseline(video, frame_mask, token_ids), strict=True
            ):
                torch.testing.assert_close(ours, theirs, atol=2e-6, rtol=1e-5)

    def test_one_frame_without_prompts_is_clip_in_both_layouts(self):
        video, frame_mask, _ = tiny_batch(batch=2, frames=1)
        for attention in ("joint", "frame"):
            method = make_stop(TINY, attention=attention, use_intra=False, use_inter=False)
            with torch.no_grad():
                found = torch.nn.functional.normalize(method.encode_video(video, frame_mask), dim=-1)
                image = torch.nn.functional.normalize(method.clip.visual(video[:, 0]), dim=-1)
            torch.testing.assert_close(found, image, atol=1e-6, rtol=1e-5)

    @LAYOUTS
    def test_the_backbone_is_frozen_to_the_bit(self, attention):
        method = make_stop(TINY, None, attention=attention).train()
        before = copy.deepcopy(method.clip.state_dict())
        optimizer = torch.optim.AdamW(method.parameter_groups(1e-2, 1.0, 0.2))
        for step in range(2):
            text, clips = method(*tiny_batch(seed=step))
            symmetric_info_nce(method.similarity(text, clips)).backward()
            optimizer.step()
            method.after_step()
        after = method.clip.state_dict()
        assert all(torch.equal(tensor, before[name]) for name, tensor in after.items())


class TestGradient:
    @staticmethod
    def gradients(method: STOP) -> dict[str, Tensor | None]:
        text, clips = method(*tiny_batch(batch=4, frames=5))
        symmetric_info_nce(method.similarity(text, clips)).backward()
        return {name: parameter.grad for name, parameter in method.trainable_parameters()}

    @LAYOUTS
    def test_every_trained_tensor_gets_one(self, attention):
        """Not merely one of zeros; the tensors are random here, for behind a layer of zeros all gradients are zero."""
        for name, gradient in self.gradients(make_stop(TINY, attention=attention)).items():
            assert gradient is not None, name
            assert gradient.isfinite().all(), name
            assert gradient.abs().max() > 0, name

    @LAYOUTS
    def test_with_the_hard_mask_exactly_the_spatial_dynamics_nets_get_none(self, attention):
        """As published; they are frozen, so that neither the optimiser nor DDP waits for what never comes."""
        method = make_stop(TINY, attention=attention, hard_region_mask=True)
        gradients = self.gradients(method)
        without = {name for name, parameter in method.named_parameters() if parameter.grad is None}
        frozen = {f"intra.{i}.dynamics.conv.weight" for i in range(2)}
        assert {name for name in without if not name.startswith("clip.")} == frozen
        assert all(gradient.abs().max() > 0 for gradient in gradients.values())

    @pytest.mark.parametrize(
        "options", [{"use_intra": False}, {"use_inter": False}, {"static_prompts": True}, {"uniform_prompts": True}]
    )
    def test_ablations_train_nothing_that_gets_none(self, options):
        for name, gradient in self.gradients(make_stop(TINY, **options)).items():
            assert gradient is not None, name
            assert gradient.abs().max() > 0, name

    def test_biases_and_prompts_do_not_decay(self):
        method = make_stop(TINY)
        names = {id(parameter): name for name, parameter in method.named_parameters()}
        groups = {group["weight_decay"]: group["params"] for group in method.parameter_groups(1.0, 1.0, 0.2)}
        for decay, parameters in groups.items():
            for parameter in parameters:
                last = names[id(parameter)].rsplit(".", 1)[-1]
                assert (decay == 0) == (last.endswith("bias") or last in ("slots", "text_prompts")), names[
                    id(parameter)
                ]


# ---- budget and sizes -----------------------------------------------------------------------------------------------


def operations(call) -> int:
    """Floating-point operations of a call on tensors without data; fused attention is taken apart to be counted."""
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops()


def on_meta(name: str, **options) -> STOP:
    with torch.device("meta"):
        return build_method("stop", CLIP(ARCHITECTURES[name]), **options).eval().requires_grad_(False)


def meta_clip(method: STOP, frames: int) -> tuple[Tensor, Tensor]:
    side = method.clip.visual.image_size
    with torch.device("meta"):
        return torch.empty(1, frames, 3, side, side), torch.ones(1, frames, dtype=torch.bool)


class TestBudget:
    @LAYOUTS
    def test_trained_parameters(self, attention):
        described = describe("stop", "ViT-B/32", "", {"attention": attention}, 12, 32)
        assert 7_400_000 <= described["trainable_parameters"] <= 7_530_000
        assert set(described["trainable_by_part"]) == {"intra", "inter", "text_prompts"}
        assert sum(described["trainable_by_part"].values()) == described["trainable_parameters"]

    @LAYOUTS
    def test_operations(self, attention):
        method = on_meta("ViT-B/32", attention=attention)
        video, frame_mask = meta_clip(method, 12)
        tower = operations(lambda: method.clip.visual(video.flatten(0, 1)))
        ours = operations(lambda: method.encode_video(video, frame_mask))
        assert tower < ours <= 1.25 * tower

    @LAYOUTS
    def test_more_prompts_add_keys_and_values_only(self, attention):
        """What eta costs, layer by layer: the prompts' own making, their keys and values, and being looked at."""
        methods = [on_meta("ViT-B/32", attention=attention, eta=eta) for eta in (1, 9)]
        video, frame_mask = meta_clip(methods[0], 12)
        few, many = (operations(lambda m=m: m.encode_video(video, frame_mask)) for m in methods)
        width, patches, bottleneck, frames, layers, more = 768, 49, 80, 12, 12, 8
        making = (frames - 1) * more * 2 * bottleneck * (patches + width)
        # Each has its key and value once. A frame looks at the prompts of two gaps, a joint sequence at all of them.
        made = more * (frames - 1)
        seen = made if attention == "joint" else more * 2 * frames
        queries = 1 + frames * patches if attention == "joint" else 1 + patches
        # In the last block only the class token asks.
        asking = (layers - 1) * queries + 1
        assert many - few == layers * (making + made * 4 * width**2) + seen * 4 * asking * width


class TestAnySize:
    @LAYOUTS
    @pytest.mark.parametrize("name", ["ViT-B/16", "ViT-L/14"])
    def test_clips_of_the_paper(self, attention, name):
        method = on_meta(name, attention=attention)
        video, frame_mask = meta_clip(method, 12)
        assert method.encode_video(video, frame_mask).shape == (1, ARCHITECTURES[name].embed_dim)

    @LAYOUTS
    @pytest.mark.parametrize("grid", [2, 3, 5, 8, 14])
    def test_grids(self, attention, grid):
        architecture = dataclasses.replace(SMALL, image_size=4 * grid)
        method = make_stop(architecture, attention=attention, n_regions=min(6, grid**2))
        video, frame_mask = clips_that_move([3, 2], image_size=4 * grid)
        maps = method.prompt_maps(video, frame_mask)
        assert maps[0].spatial.region_mask.shape == (2, 3, grid**2)
        assert torch.equal(maps[-1].spatial.region_mask.round().sum(-1), min(6, grid**2) * frame_mask.float())
        with torch.no_grad():
            assert method.encode_video(video, frame_mask).isfinite().all()

    @LAYOUTS
    @pytest.mark.parametrize("frames", [1, 2, 12, 64])
    def test_lengths(self, attention, frames):
        method = make_stop(attention=attention)
        video, frame_mask = clips_that_move([frames, max(1, frames // 2)])
        embedding = method.encode_video(video, frame_mask)
        assert embedding.isfinite().all()
        embedding.sum().backward()
        for name, parameter in method.trainable_parameters():
            if parameter.grad is not None:
                assert parameter.grad.isfinite().all(), name
        maps = method.prompt_maps(video, frame_mask)
        assert len(maps) == 2
        assert all((layer.temporal is None) == (frames == 1) for layer in maps)


# ---- options --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def moving() -> tuple[Tensor, Tensor]:
    return clips_that_move([5, 3], seed=1)


def first_layer(method: STOP, clips: tuple[Tensor, Tensor]):
    return method.prompt_maps(*clips)[0]


def assert_same(ours, theirs, but: tuple[str, ...] = ()) -> None:
    """Two stages found the same, except in the named fields, in which they differ."""
    for field in dataclasses.fields(ours):
        one, other = getattr(ours, field.name), getattr(theirs, field.name)
        same = one.shape == other.shape and torch.allclose(one.double(), other.double(), atol=1e-6, rtol=1e-5)
        assert same == (field.name not in but), field.name


class TestOptions:
    """Each changes what it should and nothing before that: compared in the first layer, on the same parameters."""

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
        # Before the first block all class tokens are the same, so that both layouts find the same.
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
        with pytest.raises(ValueError, match=f"^{option}=") as error:
            make_stop(**{option: value})
        assert (value if isinstance(value, str) else f"{value:g}") in str(error.value)

    @pytest.mark.parametrize(
        ("option", "value"),
        [("prompt_depth", 2), ("n_regions", 9), ("alpha", 1), ("eta", 64), ("beta", 0), ("prompt_dropout", 0)],
    )
    def test_the_ends_of_a_range_are_allowed(self, moving, option, value):
        assert make_stop(**{option: value}).encode_video(*moving).isfinite().all()
