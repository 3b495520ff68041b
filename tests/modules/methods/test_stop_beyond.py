"""STOP with what goes beyond the paper: LoRA and token merging, each off by default."""

import copy

import torch

from modules.losses import symmetric_info_nce
from modules.methods.stop import STOP
from tests.modules.methods.small_stop import LAYOUTS, clips_that_move, make_stop
from tests.tiny import TINY, tiny_batch


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
