"""STOP with what goes beyond the paper: LoRA and token merging, each off by default."""

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dataloaders.transforms import normalise
from modules.clip_weights import load_clip
from modules.losses import symmetric_info_nce
from modules.methods import build_method, stop
from modules.methods.stop import STOP
from modules.stop.merging import merge_patches, plan_merging
from modules.stop.timing import FrameTiming
from modules.stop.tokens import Merging, layer_norm, patches_of, sequences
from preprocess.moving_shapes.stories import draw_story
from preprocess.moving_shapes.takes import stage
from tests.modules.methods.small_stop import LAYOUTS, clips_that_move, make_stop
from tests.modules.stop import merged_reference as slow
from tests.tiny import TINY, tiny_batch

SMALL_WEIGHTS = Path(__file__).resolve().parents[3] / "pretrained" / "moving_shapes_clip.safetensors"


def unit(x):
    return torch.nn.functional.normalize(x, dim=-1)


# ---- LoRA -----------------------------------------------------------------------------------------------------------


class TestLoRA:
    def test_none_by_default(self):
        plain, with_lora = make_stop(TINY, None), make_stop(TINY, None, lora_dim=2)
        extra = with_lora.state_dict().keys() - plain.state_dict().keys()
        assert extra == {
            f"{tower}_lora.{layer}.{matrix}" for tower in ("visual", "text") for layer in range(2) for matrix in "ab"
        }
        assert not plain.state_dict().keys() - with_lora.state_dict().keys()
        for name, tensor in plain.state_dict().items():
            assert torch.equal(tensor, with_lora.state_dict()[name]), name

    @LAYOUTS
    @torch.no_grad()
    def test_it_starts_as_stop(self, attention):
        batch = tiny_batch()
        plain, with_lora = (make_stop(TINY, None, attention=attention, lora_dim=rank) for rank in (0, 2))
        for training in (False, True):
            found = []
            for method in (plain, with_lora):
                torch.manual_seed(0)  # the dropout of prompts
                found.append(method.train(training)(*batch))
            for ours, expected in zip(*found, strict=True):
                assert torch.equal(ours, expected)

    @LAYOUTS
    @torch.no_grad()
    def test_training_and_merged_weights_agree_with_a_clip_that_has_them(self, attention):
        """All three give the same: LoRA beside the weights (training), in them (evaluation), and another CLIP."""
        video, frame_mask = clips_that_move([4, 3, 2])
        token_ids = tiny_batch()[2]
        method = make_stop(attention=attention, lora_dim=3, prompt_dropout=0.0)
        changed = make_stop(attention=attention, prompt_dropout=0.0)
        changed.load_state_dict({name: method.state_dict()[name] for name in changed.state_dict()})
        for tower in ("visual", "text"):
            deltas = getattr(method, f"{tower}_lora")
            for block, delta in zip(getattr(changed.clip, tower).blocks, deltas, strict=True):
                block.attn.in_proj_weight += delta.b @ delta.a
        expected = changed(video, frame_mask, token_ids)
        apart, merged = method.train()(video, frame_mask, token_ids), method.eval()(video, frame_mask, token_ids)
        without = make_stop(attention=attention)(video, frame_mask, token_ids)
        for of_changed, in_training, in_evaluation, other in zip(expected, apart, merged, without, strict=True):
            torch.testing.assert_close(unit(in_training), unit(in_evaluation), atol=1e-6, rtol=0)
            torch.testing.assert_close(unit(in_evaluation), unit(of_changed), atol=1e-6, rtol=0)
            assert (unit(other) - unit(of_changed)).abs().max() > 1e-2
        maps = [model.prompt_maps(video, frame_mask) for model in (method.train(), method.eval(), changed)]
        for layer in range(2):
            in_training, in_evaluation, of_changed = (found[layer].spatial.attention_map for found in maps)
            torch.testing.assert_close(in_training, in_evaluation, atol=1e-6, rtol=0)
            torch.testing.assert_close(in_evaluation, of_changed, atol=1e-6, rtol=0)

    @torch.no_grad()
    def test_the_map_follows_a_step(self):
        """The weights that it reads are never those of an earlier step."""
        video, frame_mask = clips_that_move([4])
        method = make_stop(lora_dim=3, prompt_dropout=0.0)
        before = method.train().prompt_maps(video, frame_mask)[0].spatial.attention_map
        for delta in method.visual_lora:
            delta.b += 0.3
        after = [method.train(mode).prompt_maps(video, frame_mask)[0].spatial.attention_map for mode in (True, False)]
        assert (after[0] - before).abs().max() > 1e-3
        torch.testing.assert_close(*after, atol=1e-6, rtol=0)

    def test_its_matrices_learn_at_their_own_rate(self):
        method = make_stop(lora_dim=3, lora_coef_lr=0.1)
        names = {id(parameter): name for name, parameter in method.named_parameters()}
        rates = {
            names[id(parameter)]: group["lr"]
            for group in method.parameter_groups(2e-3, 1e-3, 0.2)
            for parameter in group["params"]
        }
        assert rates.keys() == set(names.values()) - {name for name in names.values() if name.startswith("clip.")}
        for name, rate in rates.items():
            assert rate == pytest.approx(2e-4 if "_lora." in name else 2e-3), name

    @LAYOUTS
    def test_every_trained_tensor_gets_a_gradient(self, attention):
        method = make_stop(TINY, attention=attention, lora_dim=2).train()
        gradients_of(method)
        for name, parameter in method.trainable_parameters():
            assert parameter.grad.isfinite().all(), name
            assert parameter.grad.abs().max() > 0, name


def gradients_of(method: STOP) -> dict[str, torch.Tensor]:
    text, clips = method(*tiny_batch(batch=4, frames=5))
    symmetric_info_nce(method.similarity(text, clips)).backward()
    return {name: copy.deepcopy(parameter.grad) for name, parameter in method.trainable_parameters()}


# ---- token merging --------------------------------------------------------------------------------------------------


def groups_before_blocks(method: STOP, video: torch.Tensor, frame_mask: torch.Tensor, monkeypatch) -> list[Merging]:
    """Return what has merged before each block that merges."""
    found = []

    def noted(*arguments):
        x, merging = merge_patches(*arguments)
        found.append(merging)
        return x, merging

    merge_patches = stop.merge_patches
    with monkeypatch.context() as patch:
        patch.setattr(stop, "merge_patches", noted)
        method.encode_video(video, frame_mask)
    return found


class TestMerging:
    @LAYOUTS
    @pytest.mark.parametrize(
        ("merge", "options"),
        [
            ("2-1", {}),
            ("4-0", {"prompt_depth": 1, "n_regions": 5}),
            ("0-3", {"use_intra": False}),
            ("3", {"alpha": 0.2, "beta": 4.0, "eta": 2}),
        ],
    )
    @torch.no_grad()
    def test_equals_stop_on_all_patches_with_equal_tokens_for_a_merged_one(
        self, attention, merge, options, monkeypatch
    ):
        frames_of_clip = [3, 2]
        video, frame_mask = clips_that_move(frames_of_clip, seed=1)
        method, video = make_stop(attention=attention, merge=merge, **options).double(), video.double()
        embeddings = method.encode_video(video, frame_mask)
        mergings = groups_before_blocks(method, video, frame_mask, monkeypatch)
        counts = [int(part) for part in merge.split("-")] * (1 if "-" in merge else 2)
        for clip, frames in enumerate(frames_of_clip):
            expected, found = slow.encode_video(method, video[clip, :frames], counts)
            torch.testing.assert_close(embeddings[clip], expected, atol=1e-9, rtol=1e-7)
            for merging, groups in zip(mergings, [found[i] for i, count in enumerate(counts) if count], strict=True):
                for frame in range(frames):
                    for token, group in enumerate(groups[frame]):
                        assert (merging.place[clip, frame] == token).nonzero().flatten().tolist() == sorted(group)
                        assert merging.size[clip, frame, token] == len(group)

    @LAYOUTS
    def test_gradients_are_those_of_stop_on_all_patches(self, attention):
        """Of all parameters but N_s, whose gradient is that of the region mask; see the next test."""
        video, frame_mask = clips_that_move([3], seed=1)
        video = video.double()
        method = make_stop(attention=attention, merge="2-1", hard_region_mask=True, text_prompt_length=0).double()
        parameters = [parameter for _, parameter in method.trainable_parameters()]
        direction = torch.randn(24, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        ours = torch.autograd.grad(method.encode_video(video, frame_mask)[0] @ direction, parameters)
        theirs = torch.autograd.grad(slow.encode_video(method, video[0], [2, 1])[0] @ direction, parameters)
        for (name, _), found, expected in zip(method.trainable_parameters(), ours, theirs, strict=True):
            torch.testing.assert_close(found, expected, atol=1e-8, rtol=1e-6, msg=name)
            assert found.abs().max() > 0, name

    @LAYOUTS
    def test_the_region_mask_has_the_gradient_of_equation_5(self, attention):
        """For any r, h^s is the tokens plus the means over their patches of r p^s."""
        video, frame_mask = clips_that_move([3], seed=1)
        method = make_stop(attention=attention, merge="2-1").double()
        block, prompter = method.clip.visual.blocks[0], method.intra[0]
        embedded = method.clip.visual.embed(video.double().flatten(0, 1)).unsqueeze(0)
        x = sequences(embedded[:, :1, 0] if attention == "joint" else embedded[:, :, 0], embedded[:, :, 1:])
        x, merging = merge_patches(block, x, 3, 2, None)
        timing = FrameTiming.of(frame_mask, torch.float64)
        found = prompter(block, x, timing, merging)
        direction = torch.randn_like(found.x)
        ours = torch.autograd.grad((found.x * direction).sum(), found.region_mask, retain_graph=True)[0]
        prompts = prompter.prompter(layer_norm(x), timing, merging).at(torch.arange(9).expand(1, 3, -1))
        region = found.region_mask.detach().requires_grad_()
        h_s = patches_of(x, 3) + merging.shares.mT @ (region.unsqueeze(3) * prompts)
        torch.testing.assert_close(patches_of(found.x, 3), h_s, atol=1e-12, rtol=0)
        expected = torch.autograd.grad((h_s * patches_of(direction, 3)).sum(), region)[0]
        torch.testing.assert_close(ours, expected, atol=1e-12, rtol=1e-9)

    @LAYOUTS
    def test_every_trained_tensor_gets_a_gradient(self, attention):
        method = make_stop(TINY, attention=attention, merge="3-2", lora_dim=2).train()
        for name, gradient in gradients_of(method).items():
            assert gradient.isfinite().all(), name
            assert gradient.abs().max() > 0, name

    @LAYOUTS
    def test_nothing_merges_by_default(self, attention):
        plain, zero = (make_stop(TINY, attention=attention, **options) for options in ({}, {"merge": "0-0"}))
        video, frame_mask, _ = tiny_batch()
        assert plain.state_dict().keys() == zero.state_dict().keys()
        ours, expected = (method.encode_video(video, frame_mask) for method in (zero, plain))
        assert torch.equal(ours, expected)

    @LAYOUTS
    @torch.no_grad()
    def test_a_clip_does_not_depend_on_its_batch_or_its_padding(self, attention):
        method = make_stop(attention=attention, merge="2-3", lora_dim=2)
        frames_of_clip = [4, 1, 2, 3]
        video, frame_mask = clips_that_move(frames_of_clip)
        together = method.encode_video(video, frame_mask)
        dirty = torch.where(frame_mask[:, :, None, None, None], video, -7 * video + 1)
        torch.testing.assert_close(method.encode_video(dirty, frame_mask), together, atol=1e-5, rtol=0)
        for clip, frames in enumerate(frames_of_clip):
            alone = method.encode_video(video[clip : clip + 1, :frames], frame_mask[clip : clip + 1, :frames])
            torch.testing.assert_close(alone[0], together[clip], atol=1e-5, rtol=0)

    @LAYOUTS
    @torch.no_grad()
    def test_a_still_clip_gets_no_temporal_prompts(self, attention):
        method = make_stop(attention=attention, merge="3-2")
        video = torch.randn(1, 1, 3, 12, 12).expand(2, 5, -1, -1, -1)
        for layer in method.prompt_maps(video, torch.ones(2, 5)):
            assert not layer.temporal.prompts_per_gap.any()
            assert torch.equal(layer.spatial.region_mask.sum(-1).round(), torch.full((2, 5), 3.0))

    @LAYOUTS
    @torch.no_grad()
    def test_equal_patches_merge_without_a_change(self, attention):
        """A frame of one colour, without position embeddings: without prompts every token stands for equal patches."""
        options = {"attention": attention, "use_intra": False, "use_inter": False}
        method, merged = make_stop(**options), make_stop(merge="4-2", **options)
        for model in (method, merged):
            model.clip.visual.positional_embedding[1:] = 0
        video = torch.randn(2, 3, 3, 1, 1).expand(-1, -1, -1, 12, 12)
        mask = torch.ones(2, 3, dtype=torch.bool)
        torch.testing.assert_close(merged.encode_video(video, mask), method.encode_video(video, mask))

    @pytest.mark.skipif(not SMALL_WEIGHTS.exists(), reason=f"pretrained/{SMALL_WEIGHTS.name} is not there")
    def test_regions_stay_on_what_moves(self):
        """Of a made-world clip, as training starts: half of the patches merge, and N_s hardly notices."""
        rng = np.random.default_rng(0)
        frames = torch.from_numpy(stage(draw_story(rng, held_out=False), rng).frames(8)).permute(0, 3, 1, 2)
        moved = (frames[1:].float() - frames[:-1].float()).abs().mean(dim=1) > 10  # [T-1,H,W]
        moved = moved.unflatten(1, (7, 16)).unflatten(3, (7, 16)).any(dim=4).any(dim=2).flatten(1)
        moving = torch.zeros(8, 49, dtype=torch.bool)
        moving[1:] |= moved
        moving[:-1] |= moved
        shares = {}
        for merge in ("0", "24"):
            method = build_method("stop", load_clip(SMALL_WEIGHTS), merge=f"{merge}-0-0").eval()
            region = method.prompt_maps(normalise(frames[None]), torch.ones(1, 8))[0].spatial.region_mask[0]
            shares[merge] = (region * moving).sum().item() / region.sum().item()
        assert shares["0"] > 2 * moving.double().mean()  # what chance would give
        assert shares["24"] > 0.9 * shares["0"]

    @torch.no_grad()
    def test_bf16(self):
        method = make_stop(merge="2-1", prompt_dropout=0.0)
        video, frame_mask = clips_that_move([4, 3])
        with torch.autocast("cpu", torch.bfloat16):
            rounded = method.encode_video(video, frame_mask)
        assert torch.cosine_similarity(rounded.float(), method.encode_video(video, frame_mask)).min() > 0.97

    @given(
        st.integers(1, 60).flatmap(
            lambda patches: st.tuples(st.just(patches), st.lists(st.integers(0, 12), min_size=2, max_size=6))
        )
    )
    def test_a_plan_is_refused_exactly_where_more_than_half_would_merge(self, drawn):
        patches, counts = drawn
        left, fits = patches, True
        for count in counts:
            fits, left = fits and 2 * count <= left, left - count
        text = "-".join(map(str, counts))
        if fits:
            assert plan_merging(text, len(counts), patches) == tuple(counts)
        else:
            with pytest.raises(ValueError, match=r"before block \d"):
                plan_merging(text, len(counts), patches)

    @pytest.mark.parametrize("merge", ["", "-1", "2-x", "1.5", "²", "1-1-1", "1-", "5-0", "3-4", "99999999"])
    def test_a_bad_plan_gets_one_sentence(self, merge):
        with pytest.raises(ValueError, match="--merge") as error:
            make_stop(merge=merge)
        assert "\n" not in str(error.value)

    def test_half_of_the_patches_can_merge(self):
        assert plan_merging("2", 3, 9) == (2, 2, 2)
        assert plan_merging("4-2-1", 3, 9) == (4, 2, 1)
