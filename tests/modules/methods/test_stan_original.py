"""STAN against the numbers of its original modules: features, every level, gradients, texts and parameter groups."""

import math
import zlib

import pytest
import torch

from modules.clip import ARCHITECTURES, CLIP
from modules.methods import build_method
from modules.released_weights import load_released_state_dict
from modules.stan.branch import mean_of_frames
from modules.stan.released import TRANSPOSED, released_key, released_tensors
from modules.undrawn import undrawn
from tests.modules.stan.original import numbers, small_stan, stan_of

DEPTHS = {"tiny_depth4": 4, "tiny_depth2": 2}
CLOSE = {"atol": 1e-5, "rtol": 1e-5}


@pytest.fixture(params=DEPTHS)
def case(request):
    return request.param


def whole(video):
    return torch.ones(video.shape[:2], dtype=torch.bool)


def gradients(method, loss):
    """Return the gradients by released key, as in `released_tensors`."""
    loss.backward()
    named = {released_key(name): parameter.grad for name, parameter in method.named_parameters()}
    return {key: grad for key, grad in named.items() if grad is not None}


@torch.no_grad()
def test_frames_and_their_mean(reference, case):
    expected, method = numbers(reference)[case], stan_of(reference, case, stan_layers=DEPTHS[case])
    torch.testing.assert_close(method.encode_frames(expected["x"]), expected["frames"], **CLOSE)
    torch.testing.assert_close(method.encode_video(expected["x"], whole(expected["x"])), expected["mean"], **CLOSE)
    torch.testing.assert_close(method.encode_frames(expected["x"][:, :1]), expected["image_T1"], **CLOSE)


@torch.no_grad()
def test_every_level(reference, case):
    expected, method = numbers(reference)[case], stan_of(reference, case, stan_layers=DEPTHS[case])
    calls = []
    method.branch.register_forward_pre_hook(lambda _, arguments: calls.append(arguments))
    method.encode_frames(expected["x"])
    ((taps, class_embedding, positions, frame_mask),) = calls
    for k, (v, level) in enumerate(zip(taps, method.branch.levels, strict=True)):
        torch.testing.assert_close(v.flatten(0, 1), expected["inter"][f"clip_in_{k}"], **CLOSE)
        if k == 0:
            c, h = method.branch.begin(v, class_embedding, positions, frame_mask)
        else:
            c, h = method.branch.add(k, v, c, h, frame_mask)
        c, h = level(c, h, frame_mask)
        ours = torch.cat([c[:, None], h.transpose(1, 2).flatten(1, 2)], dim=1)  # token 1 + l T + t
        theirs = expected["inter"][f"stan_out_{k}"]
        assert (ours - theirs).abs().max() < 1e-5 * theirs.abs().max()


def test_gradients_of_all_parameters(reference, case):
    expected, method = numbers(reference)[case], stan_of(reference, case, stan_layers=DEPTHS[case])
    assert expected["no_grad_params"] == []
    ours = gradients(method, (method.encode_frames(expected["x"]) * expected["probe"]).sum())
    theirs = released_tensors(expected["grads"])
    assert ours.keys() == theirs.keys()
    for key, gradient in theirs.items():
        difference = (ours[key] - gradient).abs().max() / gradient.abs().max()
        assert difference < 1e-5, key


@torch.no_grad()
def test_training_draws_the_same_paths(reference):
    expected, method = numbers(reference)["tiny_depth4"], stan_of(reference, "tiny_depth4", stan_layers=4)
    torch.manual_seed(77)
    mean = method.train().encode_video(expected["x"], whole(expected["x"]))
    torch.testing.assert_close(mean, expected["train_mode_seed77_mean"], **CLOSE)


@torch.no_grad()
def test_the_trunk_is_clip_and_the_residue_is_of_training_alone(reference):
    expected = numbers(reference)["tiny_depth4"]
    method = stan_of(reference, "tiny_depth4", stan_layers=4, cls_residue=True)
    frames = method.clip.visual(expected["x"].flatten(0, 1)).unflatten(0, expected["x"].shape[:2])
    torch.testing.assert_close(frames.mean(dim=1), expected["clip_meanpool"], **CLOSE)
    ours = method.encode_video(expected["x"], whole(expected["x"]))
    torch.testing.assert_close(ours, expected["cls_residue_eval_mean"], **CLOSE)


@torch.no_grad()
def test_the_initial_state(reference):
    """Its weights load, and its features are ours; what is drawn anew has the facts of the original's."""
    expected, facts = numbers(reference)["tiny_official_init"], numbers(reference)["init_facts"]
    method = stan_of(reference, "tiny_official_init", stan_layers=4)
    torch.testing.assert_close(method.encode_video(expected["x"], whole(expected["x"])), expected["mean"], **CLOSE)
    torch.manual_seed(0)
    fresh = small_stan(stan_layers=4)
    for own, of_clip in zip(fresh.branch.levels, fresh.clip.visual.blocks[-4:], strict=True):
        for ours, theirs in zip(own.spatial.parameters(), of_clip.parameters(), strict=True):
            assert torch.equal(ours, theirs) == facts["spatial_equals_last_clip_layers"]
            assert (ours.data_ptr() == theirs.data_ptr()) == facts["spatial_shares_memory"]
        assert facts["temporal_fc_zero"]
        assert not own.temporal.fc.weight.any()
        assert not own.temporal.fc.bias.any()
        for name in ("in_proj_weight", "in_proj_bias"):
            largest = getattr(own.temporal.attn, name).abs().max() * 64**0.5
            assert 0.95 < largest < 1
        assert torch.equal(own.temporal.norm.weight, torch.ones(64))
    assert fresh.branch.time.weight.shape == facts["time_embed_shape"]
    assert fresh.branch.time.weight.std().item() == pytest.approx(facts["time_embed_std"], abs=0.03)
    rates = [level.drop_path.rate for level in fresh.branch.levels]
    assert rates == pytest.approx(facts["droppath"])
    assert rates == [level.temporal.drop_path.rate for level in fresh.branch.levels]
    keys = [name for name, _ in facts["keys"]]
    ours = {released_key(name) for name in fresh.state_dict() if not name.startswith(("clip.text", "clip.logit"))}
    assert ours == released_tensors({key: torch.zeros(1) for key in keys}).keys()


@torch.no_grad()
def test_texts(reference):
    expected = numbers(reference)["tiny_text"]
    method = stan_of(reference, "tiny_depth4", stan_layers=4)
    torch.testing.assert_close(method.encode_text(expected["ids"].long()), expected["cls"], **CLOSE)


def test_the_whole_model(reference):
    """Scores, the sum of both directions of the loss, the norm of its gradient and the stored gradients."""
    expected = numbers(reference)["whole_stan"]
    method = stan_of(reference, "whole_stan", stan_layers=4)
    text, clips = method(expected["imgs"], whole(expected["imgs"]), expected["text"].long())
    scores, right = method.similarity(text, clips), torch.arange(len(text))
    loss = sum(torch.nn.functional.cross_entropy(logits, right) for logits in (scores, scores.T))
    assert loss.item() == pytest.approx(expected["loss"].item(), rel=1e-5)
    ours = gradients(method, loss)
    norm = torch.stack([gradient.norm() for gradient in ours.values()]).norm()
    assert norm.item() == pytest.approx(expected["grad_norm"], rel=1e-4)
    stored = {key: gradient for key, gradient in expected["grads"].items() if gradient is not None}
    for key, gradient in released_tensors(stored).items():
        assert (ours[key] - gradient).abs().max() < 1e-4 * gradient.abs().max(), key


def test_parameter_groups(reference):
    expected = {}
    for key, rates in numbers(reference)["param_groups"].items():
        expected.setdefault(next(iter(released_tensors({key: torch.zeros(1)} | parts_beside(key)))), set()).add(rates)
    method = small_stan(stan_layers=4, decay_groups="released")
    found = {}
    for group in method.parameter_groups(2e-5, 0.1, 0.05):
        for parameter in group["params"]:
            found[id(parameter)] = group["lr"], group["weight_decay"]
    ours = {released_key(name): found[id(parameter)] for name, parameter in method.trainable_parameters()}
    assert ours.keys() == expected.keys()
    for key, rates in expected.items():
        assert ours[key] == pytest.approx(next(iter(rates))), key
        assert len(rates) == 1


def parts_beside(key):
    """Return the other two of q, k and v, so that the three can be joined."""
    for letter in "qkv":
        if f".{letter}_proj." in key:
            return {key.replace(f".{letter}_proj.", f".{other}_proj."): torch.zeros(1) for other in "qkv"}
    return {}


@pytest.mark.parametrize("name", ["ViT-B/32", "ViT-B/16", "ViT-L/14"])
def test_counts_of_parameters(reference, name):
    expected = numbers(reference)["real"][name.removeprefix("ViT-").replace("/", "")]
    with undrawn():
        method = build_method("stan", CLIP(ARCHITECTURES[name]))
    of_branch = sum(parameter.numel() for parameter in method.branch.parameters())
    of_visual = sum(parameter.numel() for parameter in method.clip.visual.parameters())
    assert of_branch == expected["params_stan"] == (71_450_624 if name == "ViT-L/14" else 40_218_624)
    assert of_branch + of_visual == expected["params_visual_total"]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ViT-B/32", "ViT-B/16", "ViT-L/14"])
@torch.no_grad()
def test_real_sizes(reference, name):
    expected = numbers(reference)["real"][name.removeprefix("ViT-").replace("/", "")]
    method = build_method("stan", CLIP(ARCHITECTURES[name])).eval()
    drawn = {}
    for own, tensor in method.state_dict().items():
        if (key := released_key(own)) is not None:
            shape = tensor.T.shape if key in TRANSPOSED else tensor.shape
            shape = (shape[0] // 3, *shape[1:]) if "{q,k,v}" in key else shape
            for letter in "qkv" if "{q,k,v}" in key else "q":
                part = key.replace("{q,k,v}", letter)
                drawn[part] = torch.zeros(shape) if own.startswith("clip.text") else draw(part, shape)
    values = [tensor.double() for tensor in drawn.values()]
    assert sum(tensor.sum() for tensor in values).item() == pytest.approx(expected["checksum"]["sum"], abs=0.1)
    assert sum(tensor.abs().sum() for tensor in values).item() == pytest.approx(expected["checksum"]["abs"], abs=1)
    load_released_state_dict(method, drawn)
    x = torch.randn(expected["x_shape"], generator=torch.Generator().manual_seed(expected["x_seed"]))
    frames = method.encode_frames(x)
    for ours, theirs in ((frames, expected["frames"]), (mean_of_frames(frames, whole(x)), expected["mean"])):
        assert (ours - theirs).abs().max() < 1e-4 * theirs.abs().max()


def draw(key, shape):
    """Return the tensor of a key in the cases of real sizes; `stan_stdd.md` has the rule."""
    drawn = torch.randn(shape, generator=torch.Generator().manual_seed(zlib.crc32(key.encode())))
    if "layer_norm" in key or "layrnorm" in key or "layernorm" in key:
        return 1 + 0.1 * drawn if key.endswith("weight") else 0.05 * drawn
    if key.endswith("bias"):
        return 0.05 * drawn
    if "time_embed" in key:
        return 0.5 * drawn
    if "embedding" in key:
        return 0.1 * drawn
    return drawn / math.sqrt(math.prod(shape[1:]) if len(shape) > 1 else shape[0])
