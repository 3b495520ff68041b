"""Distillation of STDD: its value against the original and a loop, its gradient, and the frozen CLIP beside it."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from modules.clip import CLIP, CLIPArchitecture
from modules.frame_rows import FrameRows
from modules.methods import build_method
from modules.methods.stdd import STDD
from modules.stdd.distillation import Distillation
from modules.undrawn import undrawn
from tests.tiny import TINY, tiny_batch, tiny_clip


def distilling(clip: CLIP | None = None, **options) -> STDD:
    method = build_method("stdd", clip or tiny_clip(), distill="intended", **options)
    assert isinstance(method, STDD)
    return method.train()


def term_of(method: STDD) -> Distillation:
    assert method.distillation is not None
    return method.distillation


def draw_residual(method: STDD) -> None:
    """Move g away from zero."""
    for parameter in term_of(method).residual.parameters():
        nn.init.normal_(parameter, std=0.3)


def term(method: STDD) -> Tensor:
    video, frame_mask, _ = tiny_batch()
    value = method.regulariser(video, method.encode_video(video, frame_mask))
    assert value is not None
    return value


@pytest.mark.parametrize("tag", ["bag3d/train/keep_raw=True", "flat2d/train/keep_raw=True"])
def test_the_term_of_the_original(reference, tag):
    """Check its value on the original's weights; there it has no gradient, here it has."""
    oracle = torch.load(reference / "oracles" / "stdd.pt", weights_only=True)["clip_model"]
    case = oracle[tag]
    small = CLIPArchitecture(32, 64, 16, 64, 2, 1, 8, 16, 16, 1, 2)
    clip = CLIP(small)
    load_visual(clip, oracle["raw_state"])
    method = distilling(clip)
    load_visual(method.clip, oracle["model_state"])
    method.inject_masks(case["masks"])
    video = oracle["inputs"]["clips"].transpose(1, 2)
    rows = method.encode_video(video, torch.ones(video.shape[:2], dtype=torch.bool))
    torch.testing.assert_close(F.normalize(rows.frames.flatten(0, 1), dim=-1), case["img"], atol=1e-5, rtol=1e-5)
    raw = term_of(method)._frozen[0](video.flatten(0, 1))
    torch.testing.assert_close(F.normalize(raw, dim=-1), case["raw_img"], atol=1e-5, rtol=1e-5)
    value = method.regulariser(video, rows)
    assert value is not None
    assert value.item() == pytest.approx(2.0 * case["distill"], abs=1e-5)
    assert case["img_requires_grad"] is False
    value.backward()
    assert method.clip.visual.proj.grad is not None
    assert method.clip.visual.proj.grad.abs().max() > 1e-3


@torch.no_grad()
def load_visual(clip: CLIP, state: dict[str, Tensor]) -> None:
    names = build_method("stdd", copy.deepcopy(clip))
    for name, parameter in clip.visual.named_parameters():
        released = names.released_name(f"clip.visual.{name}")
        assert released is not None
        parameter.copy_(state[released].reshape(parameter.shape))


def test_the_term_is_what_a_loop_gives():
    clip = tiny_clip()
    frozen = copy.deepcopy(clip).eval()
    method = distilling(clip, distill_ratio=0.7)
    draw_residual(method)
    first, _, last = term_of(method).residual
    video, frame_mask, _ = tiny_batch()
    rows = method.encode_video(video, frame_mask)
    of_clips = []
    for b in range(len(video)):
        cosines = []
        for t in range(video.shape[1]):
            if frame_mask[b, t]:
                f = rows.frames[b, t] / rows.frames[b, t].norm()
                student = f + 0.1 * (last.weight @ F.gelu(first.weight @ f))
                cosines.append(F.cosine_similarity(student, frozen.visual(video[b, t][None])[0], dim=0))
        of_clips.append(sum(cosines) / len(cosines))
    expected = 0.7 * (1 - sum(of_clips) / len(of_clips))
    torch.testing.assert_close(method.regulariser(video, rows), expected, atol=1e-6, rtol=1e-5)


def test_intended_has_gradient_and_none_has_no_term():
    method = distilling()
    draw_residual(method)
    term(method).backward()
    for name, parameter in method.named_parameters():
        reached = parameter.requires_grad and name != "clip.logit_scale"
        assert (parameter.grad is not None) == reached, name
        assert not reached or (parameter.grad.isfinite().all() and parameter.grad.any()), name
    plain = build_method("stdd", tiny_clip(), distill="none")
    assert plain.regulariser(*tiny_batch()[:2]) is None


def test_at_the_start_the_term_is_that_of_clip_itself():
    """Check that g starts at zero: without a temporal part the trained tower is CLIP, and the term is zero."""
    assert term(distilling(temporal="none")).item() == pytest.approx(0, abs=1e-6)
    assert term(distilling()).item() > 1e-3


def test_ratio_zero_is_none_to_the_bit():
    built, states = [], []
    for options in ({"distill": "none"}, {"distill": "intended", "distill_ratio": 0.0}):
        clip = tiny_clip()
        torch.manual_seed(7)
        built.append(build_method("stdd", clip, temporal="stadapt_zeroinit", **options))
        states.append(torch.get_rng_state())
    assert torch.equal(*states)
    first, second = (method.state_dict() for method in built)
    assert first.keys() == second.keys()
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())
    assert all(method.distillation is None and method.regulariser(*tiny_batch()[:2]) is None for method in built)


def test_the_frozen_clip_is_no_part_of_the_method():
    method, plain = distilling(), build_method("stdd", tiny_clip())
    more = {f"distillation.residual.{layer}.weight" for layer in (0, 2)}
    assert method.state_dict().keys() - plain.state_dict().keys() == more
    assert {name for name, _ in method.named_parameters()} - {name for name, _ in plain.named_parameters()} == more
    assert all(module is not term_of(method)._frozen[0] for module in method.modules())


def test_neither_training_nor_loading_changes_the_frozen_clip():
    method = distilling()
    frozen = term_of(method)._frozen[0]
    before = copy.deepcopy(frozen.state_dict())
    method.load_state_dict(distilling(tiny_clip(seed=9)).state_dict())
    optimizer = torch.optim.AdamW(method.parameters(), lr=1e-2)
    term(method).backward()
    optimizer.step()
    method.requires_grad_(True).train()
    assert all(torch.equal(tensor, before[name]) for name, tensor in frozen.state_dict().items())
    assert not any(parameter.requires_grad for parameter in frozen.parameters())
    assert not torch.equal(method.clip.visual.proj, before["proj"])


def test_it_moves_and_copies_with_the_method():
    method = distilling(temporal="none")
    draw_residual(method)
    expected = term(method)
    twin = copy.deepcopy(method).double()
    assert all(parameter.dtype == torch.float64 for parameter in term_of(twin)._frozen[0].parameters())
    assert all(parameter.dtype == torch.float32 for parameter in term_of(method)._frozen[0].parameters())
    torch.testing.assert_close(term(twin.float()), expected, atol=1e-5, rtol=1e-5)
    assert term_of(method.to("meta"))._frozen[0].proj.is_meta


def test_it_is_built_without_values():
    with undrawn():
        method = build_method("stdd", CLIP(TINY), distill="intended")
    assert all(parameter.is_meta for parameter in term_of(method)._frozen[0].parameters())  # type: ignore[arg-type]


def test_under_bf16_autocast_it_is_nearly_the_same():
    torch.manual_seed(0)
    method = distilling(temporal="none")
    draw_residual(method)
    expected = term(method)
    with torch.autocast("cpu", torch.bfloat16):
        value = term(method)
    assert value.dtype == torch.float32
    assert value.item() == pytest.approx(expected.item(), abs=0.02)


def test_padding_does_not_count():
    method = distilling(temporal="none")
    draw_residual(method)
    video, frame_mask, _ = tiny_batch()
    rows = method.encode_video(video, frame_mask)
    dirty = torch.where(frame_mask[:, :, None, None, None], video, torch.full_like(video, 3.0))
    other = FrameRows(torch.where(frame_mask[..., None], rows.frames, torch.ones_like(rows.frames)), frame_mask)
    torch.testing.assert_close(method.regulariser(dirty, other), method.regulariser(video, rows))


def test_linear_connection_is_refused_by_name():
    with pytest.raises(ValueError, match=r"has no option 'linear_connect': it is Open-VCLIP's training .* average the"):
        build_method("stdd", tiny_clip(), linear_connect=True)
