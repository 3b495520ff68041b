"""DGL: its attention against one explicit mask over all tokens, its text tower against inserted prompts."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from modules.clip import ARCHITECTURES, CLIP
from modules.methods import build_method
from modules.methods.dgl import DGL, global_local_attention
from modules.released.shared_latent import LinearLatentSpace, round_to_half
from tests.backbones import FAMILIES, family_clip
from tests.tiny import TINY, tiny_batch, tiny_clip

SPACES = ["linear", "transformer"]


def dgl(clip=None, **options):
    torch.manual_seed(1)
    method = build_method("dgl", clip or tiny_clip(), **{"max_frames": 4, **options})
    with torch.no_grad():  # the transformer's prompts are of unit size, the linear ones near zero
        if isinstance(method.latent, LinearLatentSpace):
            method.latent.prompts.mul_(20)
        method.global_prompts.mul_(20)
    return method


def attention_with_mask(block, x, allowed, turned=lambda part: part):
    q, k, v = block.attn.project(block.ln_1(x))
    parts = turned(q), turned(k), v
    q, k, v = (part.unflatten(-1, (block.attn.heads, -1)).transpose(1, 2) for part in parts)
    scores = (q @ k.transpose(-1, -2)) * q.shape[-1] ** -0.5
    mixed = scores.masked_fill(~allowed, -torch.inf).softmax(dim=-1) @ v
    return block.feed_forward(x + block.attn.out_proj(mixed.transpose(1, 2).flatten(2)))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("space", SPACES)
def test_video_equals_one_masked_sequence(space, family):
    """Globals, then every frame's class token, prompts and patches: a token of a frame sees the globals and its frame,
    and a global sees all. The prompts are tokens, inserted again before every block. Rotary positions turn patches, and
    an attention pool reads all but the prompts."""
    method = dgl(family_clip(family), shared_latent_space=space)
    none, rotary = method.clip.visual.class_tokens, method.clip.visual.blocks[0].attn.rotary
    video, _, _ = tiny_batch(frames=4)
    batch, frames = video.shape[:2]
    visual, prompts = method.clip.visual, method.latent().frames
    with torch.no_grad():
        ours = method.encode_video(video, torch.ones(batch, frames))
        embedded = visual.embed(video.flatten(0, 1)).unflatten(0, (batch, frames))
        length = none + 4 + visual.grid**2

        def turned(part):
            patches = part[:, 4:].unflatten(1, (frames, length))[:, :, none + 4 :].flatten(1, 2)
            patches = rotary(torch.cat([part[:, :1], patches], dim=1))[:, 1:].unflatten(1, (frames, -1))
            rest = part[:, 4:].unflatten(1, (frames, length))[:, :, : none + 4]
            return torch.cat([part[:, :4], torch.cat([rest, patches], dim=2).flatten(1, 2)], dim=1)

        frame_of = torch.cat([torch.full((4,), -1), torch.arange(frames).repeat_interleave(length)])
        seen = (frame_of[:, None] == frame_of) | (frame_of[:, None] == -1) | (frame_of == -1)
        globals_, locals_ = method.global_prompts.expand(batch, -1, -1), embedded
        for layer, block in enumerate(visual.blocks):
            frame_prompts = prompts[layer].expand(frames, -1, -1).expand(batch, -1, -1, -1)
            local = torch.cat([locals_[:, :, :none], frame_prompts, locals_[:, :, none:]], dim=2)
            x = torch.cat([globals_, local.flatten(1, 2)], dim=1)
            x = attention_with_mask(block, x, seen, turned) if rotary else attention_with_mask(block, x, seen)
            globals_, local = x[:, :4], x[:, 4:].unflatten(1, (frames, length))
            locals_ = torch.cat([local[:, :, :none], local[:, :, none + 4 :]], dim=2)
        expected = (
            visual.ln_post(globals_[:, 0]) @ visual.proj
            if family == "clip"
            else visual.pool(torch.cat([globals_, locals_.flatten(1, 2)], dim=1))
        )
    torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("first_only", [False, True])
@pytest.mark.parametrize(("of_clips", "of_frames"), [(1, 1), (1, 3), (2, 3)])
def test_gradients_of_the_attention_are_right(of_clips, of_frames, first_only):
    """For prompts shared by all, for those of each frame, and for those of each frame of each clip."""
    torch.manual_seed(0)
    block = tiny_clip().visual.blocks[0].double().requires_grad_(False)
    size, width = (2, 3, 2), block.attn.width
    x = torch.randn(2 * 4 + 2 * 3 * 2, width, dtype=torch.float64, requires_grad=True)
    prompts = torch.randn(of_clips, of_frames, 2, width, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda x, prompts: global_local_attention(block, x, prompts, size, first_only=first_only),
        (x, prompts),
        fast_mode=True,
        atol=1e-8,  # keys' gradients are small
    )


@pytest.mark.parametrize("space", SPACES)
def test_text_equals_prompts_in_the_sequence(space):
    """[START, 4 prefix, words, 4 postfix] under a causal mask; positions belong to the words alone."""
    method = dgl(shared_latent_space=space)
    _, _, token_ids = tiny_batch(words=8)
    text, prompts = method.clip.text, method.latent()
    with torch.no_grad():
        ours = method.encode_text(token_ids)
        words = text.embed(token_ids)
        causal = torch.ones(16, 16, dtype=torch.bool).tril()
        for layer, block in enumerate(text.blocks):
            prefix, postfix = (p[layer].expand(len(token_ids), -1, -1) for p in (prompts.prefix, prompts.postfix))
            x = attention_with_mask(block, torch.cat([words[:, :1], prefix, words[:, 1:], postfix], dim=1), causal)
            words = torch.cat([x[:, :1], x[:, 5:12]], dim=1)
        expected = text.pool(words[torch.arange(len(words)), token_ids.argmax(dim=-1)])
    torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-5)


def test_postfix_is_dead_as_released_and_its_fix_is_not():
    _, _, token_ids = tiny_batch(words=8)
    for placement, matters in (("dead", False), ("before_end", True)):
        method = dgl(shared_latent_space="linear", text_postfix=placement)
        before = method.encode_text(token_ids)
        before.square().sum().backward()
        assert (method.latent.postfix.weight.grad.abs().max() > 0) == matters
        assert bool(method.dead_parameters()) != matters
        with torch.no_grad():
            method.latent.postfix.weight.mul_(10)
            assert torch.equal(method.encode_text(token_ids), before) != matters


def test_postfix_before_end_is_seen_by_end_only():
    """The effect of the postfix follows END when END moves; words before END never see the postfix."""
    method = dgl(shared_latent_space="linear", text_postfix="before_end")
    text, prompts = method.clip.text, method.latent()
    _, _, token_ids = tiny_batch(words=8)
    with torch.no_grad():
        ours = method.encode_text(token_ids)
        end = int(token_ids[0].argmax())
        words = text.embed(token_ids)[:, : end + 1]
        causal = torch.ones(end + 9, end + 9, dtype=torch.bool).tril()
        for layer, block in enumerate(text.blocks):
            prefix, postfix = (p[layer].expand(len(token_ids), -1, -1) for p in (prompts.prefix, prompts.postfix))
            x = torch.cat([words[:, :1], prefix, words[:, 1:end], postfix, words[:, end:]], dim=1)
            x = attention_with_mask(block, x, causal)
            words = torch.cat([x[:, :1], x[:, 5 : 4 + end], x[:, 8 + end :]], dim=1)
        expected = text.pool(words[torch.arange(len(words)), token_ids.argmax(dim=-1)])
    torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-5)


def test_prompts_are_computed_once_for_a_batch():
    method = dgl()
    calls = []
    method.latent.register_forward_hook(lambda *_: calls.append(1))
    video, frame_mask, token_ids = tiny_batch(frames=4)
    text, clips = method(video, frame_mask, token_ids)
    assert len(calls) == 1
    torch.testing.assert_close(text, method.encode_text(token_ids))
    torch.testing.assert_close(clips, method.encode_video(video, frame_mask))


@pytest.mark.parametrize(("space", "count"), [("linear", 827_392), ("transformer", 9_575_168)])
def test_trainable_count_of_the_published_model(space, count):
    with torch.device("meta"):
        method = build_method("dgl", CLIP(ARCHITECTURES["ViT-B/32"]), shared_latent_space=space)
    assert sum(parameter.numel() for _, parameter in method.trainable_parameters()) == count


def test_padding_repeats_the_last_frame():
    method = dgl()
    video, frame_mask, _ = tiny_batch(frames=4)
    repeated = video.clone()
    repeated[1, 3] = video[1, 2]
    torch.testing.assert_close(
        method.encode_video(video, frame_mask), method.encode_video(repeated, torch.ones(3, 4, dtype=torch.bool))
    )


def test_decay_follows_the_release():
    method = dgl()
    groups = {group["name"]: group for group in method.parameter_groups(1e-3, 5e-4, 0.2)}
    biases = {id(p) for name, p in method.trainable_parameters() if "bias" in name}
    assert {id(p) for p in groups["new, no decay"]["params"]} == biases
    assert any(p is method.latent.block.ln_1.weight for p in groups["new"]["params"])


def test_bad_input_is_refused():
    video = torch.zeros(1, 3, 3, 32, 32)
    with pytest.raises(ValueError, match="the clip has 3 frames, and this model was made for max_frames=4"):
        dgl().encode_video(video, torch.ones(1, 3))
    assert dgl(shared_latent_space="linear").encode_video(video, torch.ones(1, 3)).shape == (1, TINY.embed_dim)
    with pytest.raises(ValueError, match="'cubic' is not one of: linear, transformer"):
        dgl(shared_latent_space="cubic")
    with pytest.raises(ValueError, match="'alive' is not one of: dead, before_end"):
        dgl(text_postfix="alive")
    with pytest.raises(ValueError, match="--max_frames 0 is out of range"):
        dgl(max_frames=0)
    unequal = replace(TINY, text_layers=1)
    with pytest.raises(ValueError, match="method dgl needs towers of equal depth"):
        build_method("dgl", tiny_clip(architecture=unequal))
    with pytest.raises(ValueError, match="2 visual and 1 text"):
        DGL(tiny_clip(architecture=unequal))


def test_new_kernels_are_rounded_to_half():
    for space in SPACES:
        method = build_method("dgl", tiny_clip(), max_frames=4, shared_latent_space=space)
        for name, tensor in method.latent.named_parameters():
            rounded = bool(torch.equal(tensor, tensor.half().float()))
            assert rounded == ("prompts" not in name), name
    linear = torch.nn.Linear(3, 3, bias=False)
    round_to_half(linear)
    assert torch.equal(linear.weight, linear.weight.half().float())
    assert F.linear(torch.ones(3), linear.weight).isfinite().all()
