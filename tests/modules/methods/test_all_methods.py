"""Requirements of every method; these tests run for each entry of METHODS."""

import copy
import io
import re
from typing import Literal, get_args, get_origin

import pytest
import torch

from engine.optim import build_optimizer
from modules.methods import METHODS, Method, build_method, method_options
from modules.rows import tensors_of
from tests.markdown import ROOT
from tests.tiny import TINY, loss_of, tiny_batch, tiny_clip

METHOD_NAMES = list(METHODS)
# Options that a method needs for the clips here, or to fix a requirement that it breaks by default (see its own tests).
OPTIONS = {
    "dgl": {"max_frames": 4},
    "stop_released": {"max_frames": 4, "inter_frame_norm": "clip"},
    "upt": {"max_frames": 4},
    "vop_fc": {"max_frames": 4},
    "efficient_prompt": {"max_frames": 4, "prefix": 2, "postfix": 2},
    "tempme": {"max_frames": 4},
    "mv_adapter": {"max_frames": 4},
}
# With prompts in both towers, the random CLIP here first makes all texts alike, and learns slowly after that.
LEARNS_WITH = {"vpt": {"prompt_length": 20, "text_prompt_length": 0}}


def build(name, **options):
    return build_method(name, tiny_clip(), **OPTIONS.get(name, {}), **options)


@pytest.fixture(params=METHOD_NAMES)
def method(request):
    return build(request.param)


def test_shapes_and_types(method):
    video, frame_mask, token_ids = tiny_batch(batch=3, frames=4)
    clips, text = method.encode_video(video, frame_mask), method.encode_text(token_ids[:2])
    assert tensors_of(clips)[0].shape in {(3, TINY.embed_dim), (3, 4, TINY.embed_dim)}
    assert len(tensors_of(text)[0]) == 2
    similarity = method.similarity(text, clips)
    assert similarity.shape == (2, 3)
    assert similarity.dtype == torch.float32
    assert similarity.isfinite().all()


def test_a_clip_does_not_depend_on_its_batch_or_its_padding(method):
    method.eval()
    video, frame_mask, _ = tiny_batch(batch=3, frames=4)
    with torch.no_grad():
        together = method.encode_video(video, frame_mask)
        for row in range(3):
            alone = method.encode_video(video[row : row + 1], frame_mask[row : row + 1])
            for ours, shared in zip(tensors_of(alone), tensors_of(together), strict=True):
                torch.testing.assert_close(ours[0], shared[row], atol=1e-5, rtol=1e-5)
        dirty = torch.where(frame_mask[:, :, None, None, None], video, torch.full_like(video, 3.0))
        torch.testing.assert_close(tuple(method.encode_video(dirty, frame_mask)), tuple(together), atol=1e-5, rtol=1e-5)


def test_frozen_stays_and_trained_moves(method):
    method.train()
    before = copy.deepcopy(method.state_dict())
    optimizer = build_optimizer(method.parameter_groups(1e-2, 1.0, 0.2))
    pulled = set()
    for step in range(3):
        optimizer.zero_grad()
        loss_of(method, tiny_batch(seed=step)).backward()
        pulled |= {name for name, parameter in method.trainable_parameters() if parameter.grad.any()}
        optimizer.step()
        method.after_step()
    dead = tuple(f"{part.name}." for part in method.dead_parameters())
    trained = {
        name
        for name, parameter in method.trainable_parameters()
        if not f"{name}.".startswith(dead) or name in pulled or method.decays(name, parameter)
    }
    assert trained
    for name, tensor in method.state_dict().items():
        assert torch.equal(tensor, before[name]) == (name not in trained), name


def test_every_trained_tensor_gets_a_gradient(method):
    method.train()
    loss_of(method, tiny_batch()).backward()
    for name, parameter in method.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, name
            assert parameter.grad.isfinite().all(), name
        else:
            assert parameter.grad is None, name


def test_bf16_autocast_trains_in_fp32_parameters(method):
    method.train()
    with torch.autocast("cpu", torch.bfloat16):
        loss = loss_of(method, tiny_batch())
    loss.backward()
    for name, parameter in method.trainable_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.dtype == torch.float32, name
        assert parameter.grad.isfinite().all(), name


def test_groups_hold_every_trained_tensor_once(method):
    grouped = [id(parameter) for group in method.parameter_groups(1.0, 1.0, 0.1) for parameter in group["params"]]
    assert len(grouped) == len(set(grouped))
    assert set(grouped) == {id(parameter) for _, parameter in method.trainable_parameters()}


@torch.no_grad()
@pytest.mark.parametrize("name", METHOD_NAMES)
def test_the_documentation_names_the_methods_that_start_as_frozen_clip(name):
    documented = (ROOT / "docs/methods.md").read_text().partition("Untrained, these score as frozen CLIP does: ")[2]
    named = re.findall(r"`(\w+)`", documented.partition(". ")[0])
    method, floor, batch = build(name).eval(), build_method("clip4clip", tiny_clip()).eval(), tiny_batch()
    ours, clips = method(*batch), floor(*batch)
    if name in named:
        for features, of_clip in zip(ours, clips, strict=True):
            torch.testing.assert_close(features, of_clip)
    else:
        starts_as_clip = torch.allclose(method.similarity(*ours), floor.similarity(*clips), atol=1e-5)
        assert not starts_as_clip, f"untrained, {name} scores as CLIP: name it in that list of docs/methods.md"


@pytest.mark.parametrize("name", METHOD_NAMES)
def test_training_on_one_batch_learns_it(name):
    method = build(name, **LEARNS_WITH.get(name, {}))
    torch.manual_seed(0)
    method.train()
    batch = tiny_batch(batch=4)
    lr = {"vpt": 5e-2}.get(name, 3e-3)  # a few learned tokens need larger steps than whole layers
    optimizer = build_optimizer(method.parameter_groups(lr, 1.0, 0.0))
    first = last = loss_of(method, batch).item()
    for _ in range(15):
        optimizer.zero_grad()
        loss = loss_of(method, batch)
        loss.backward()
        optimizer.step()
        last = loss.item()
    assert last < {"upt": 0.8}.get(name, 0.7) * first


@pytest.mark.parametrize("name", METHOD_NAMES)
def test_every_option_has_help_and_a_default_of_its_type(name):
    for option in method_options(METHODS[name]):
        assert option.help.strip() == option.help != "", option.name
        if get_origin(option.type) is Literal:
            assert option.default in get_args(option.type), option.name
        else:
            assert type(option.default) is option.type, option.name


@pytest.mark.parametrize("name", METHOD_NAMES)
def test_default_options_are_options(name):
    """Defaults passed by name build the same network as no options, even on a CLIP with fewer blocks than usual."""
    defaults = {option.name: option.default for option in method_options(METHODS[name])}
    networks = []
    for options in ({}, defaults):
        torch.manual_seed(1)
        networks.append(build_method(name, tiny_clip(), **options).state_dict())
    assert networks[0].keys() == networks[1].keys()
    assert all(torch.equal(tensor, networks[1][key]) for key, tensor in networks[0].items())


def test_saved_and_loaded_it_embeds_the_same(method):
    """Its `state_dict` alone is saved: a trained method has no other state."""
    with torch.no_grad():
        for _, parameter in method.trainable_parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    buffer = io.BytesIO()
    torch.save(method.state_dict(), buffer)
    buffer.seek(0)
    (name,) = (name for name, cls in METHODS.items() if type(method) is cls)
    torch.manual_seed(2)
    other = build(name)
    assert not same_embeddings(method, other)
    other.load_state_dict(torch.load(buffer))
    assert same_embeddings(method, other)


def test_a_copy_is_independent(method):
    twin = copy.deepcopy(method)
    assert same_embeddings(method, twin)
    before = embeddings(method)
    with torch.no_grad():
        for _, parameter in twin.trainable_parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    assert not same_embeddings(method, twin)
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(embeddings(method), before, strict=True))


def test_under_bf16_autocast_it_embeds_nearly_the_same(method):
    full = embeddings(method)
    with torch.autocast("cpu", torch.bfloat16):
        half = embeddings(method)
    for ours, theirs in zip(half, full, strict=True):
        assert ours.isfinite().all()
        if ours.is_floating_point():
            alike = torch.nn.functional.cosine_similarity(ours.float(), theirs, dim=-1) > 0.98
            assert (alike | (theirs == 0).all(dim=-1)).all()  # the rows of padding frames are zero


def embeddings(method):
    """Return the tensors of the rows of texts, then those of clips."""
    method.eval()
    with torch.no_grad():
        return [tensor for rows in method(*tiny_batch()) for tensor in tensors_of(rows)]


def same_embeddings(first, second):
    return all(torch.equal(ours, theirs) for ours, theirs in zip(embeddings(first), embeddings(second), strict=True))


def test_unknown_method_and_option():
    with pytest.raises(ValueError, match="unknown method 'clap'"):
        build_method("clap", tiny_clip())
    with pytest.raises(ValueError, match="has no option 'depth'"):
        build_method(METHOD_NAMES[0], tiny_clip(), depth=3)


def test_prepared_rows_give_the_same_scores(method):
    with torch.no_grad():
        text, clips = method.eval()(*tiny_batch(batch=3, frames=4))
        expected = method.similarity(text, clips)
        prepared = method.prepare(text), method.prepare(clips)
        assert torch.equal(method.similarity_of_prepared(*prepared), expected)
        assert torch.equal(method.similarity(text, clips), expected)  # nothing was changed in place


def test_a_method_with_a_similarity_of_its_own_keeps_it():
    class Dot(Method):
        def similarity(self, text, video):
            return text @ video.T

    method, text, clips = Dot(tiny_clip()), torch.randn(3, 8), torch.randn(2, 8)
    assert torch.equal(method.similarity_of_prepared(method.prepare(text), method.prepare(clips)), text @ clips.T)
