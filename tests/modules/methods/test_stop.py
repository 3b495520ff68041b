"""STOP as a whole: against the slow reference, independence, its start, its budget and any size."""

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
from modules.clip import ARCHITECTURES, CLIP
from modules.losses import symmetric_info_nce
from modules.methods import build_method
from modules.methods.stop import STOP
from modules.stop.tokens import patches_of
from tests.modules.methods.small_stop import LAYOUTS, SMALL, clips_that_move, make_stop
from tests.modules.stop import stop_reference as slow
from tests.tiny import TINY, tiny_batch, tiny_clip

SMALL_WEIGHTS = Path(__file__).resolve().parents[3] / "pretrained" / "moving_shapes_clip.safetensors"


# ---- equations ------------------------------------------------------------------------------------------------------


@LAYOUTS
@settings(max_examples=5)
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
        """In every layer, at the start of training and with random parameters."""
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
        from preprocess.moving_shapes.stories import draw_story
        from preprocess.moving_shapes.takes import stage

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
        """Guards the test above: another last frame, or frames in reverse, give another embedding."""
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
        """The gradient is not all zeros. Tensors are random here: before a layer of zeros all gradients are zero."""
        for name, gradient in self.gradients(make_stop(TINY, attention=attention)).items():
            assert gradient is not None, name
            assert gradient.isfinite().all(), name
            assert gradient.abs().max() > 0, name

    @LAYOUTS
    def test_with_the_hard_mask_exactly_the_spatial_dynamics_nets_get_none(self, attention):
        """The published mask. Those nets are frozen, so neither the optimiser nor DDP waits for missing gradients."""
        method = make_stop(TINY, attention=attention, hard_region_mask=True)
        gradients = self.gradients(method)
        without = {name for name, parameter in method.named_parameters() if parameter.grad is None}
        frozen = {f"intra.{i}.dynamics.conv.weight" for i in range(2)}
        assert {name for name in without if not name.startswith("clip.")} == frozen
        assert all(gradient.abs().max() > 0 for gradient in gradients.values())

    @pytest.mark.parametrize(
        "options", [{"use_intra": False}, {"use_inter": False}, {"static_prompts": True}, {"uniform_prompts": True}]
    )
    def test_ablations_train_no_tensor_without_a_gradient(self, options):
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
    """Count the operations of a call on tensors without data; fused attention is taken apart to be counted."""
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
        """The cost of eta in every layer: making the prompts, their keys and values, and attention to them."""
        methods = [on_meta("ViT-B/32", attention=attention, eta=eta) for eta in (1, 9)]
        video, frame_mask = meta_clip(methods[0], 12)
        few, many = (operations(lambda m=m: m.encode_video(video, frame_mask)) for m in methods)
        width, patches, bottleneck, frames, layers, more = 768, 49, 80, 12, 12, 8
        making = (frames - 1) * more * 2 * bottleneck * (patches + width)
        # Each has its key and value once. A frame attends to the prompts of two gaps, a joint sequence to all of them.
        made = more * (frames - 1)
        seen = made if attention == "joint" else more * 2 * frames
        queries = 1 + frames * patches if attention == "joint" else 1 + patches
        # In the last block only the class token has a query.
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
