"""Bias tuning and the four methods with adapters, against towers that follow their definitions token by token."""

import pytest
import torch
import torch.nn.functional as F

from modules.clip import ARCHITECTURES, CLIP
from modules.methods import build_method
from tests.tiny import tiny_batch, tiny_clip

ADAPTED = ["adapter_attn", "adapter_ffn", "visual_text_adapter", "video_text_adapter"]


def built(name, seed=0, **options):
    """Return the method with random values in the parts that start at zero."""
    method = build_method(name, tiny_clip(), **options).eval()
    torch.manual_seed(seed)
    with torch.no_grad():
        for _, parameter in method.trainable_parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return method


def bottleneck(adapter, u, phi):
    return F.linear(phi(F.linear(u, adapter.down.weight, adapter.down.bias)), adapter.up.weight, adapter.up.bias)


def adapted(name, adapter, block, x, causal, normed, scale, clip_of_frames):
    """Run one block as the method's formula says: [N,L,D] -> [N,L,D]."""
    attended = x + block.attn(block.ln_1(x), causal=causal)
    if name == "adapter_attn":
        attended = attended + scale * bottleneck(adapter, block.ln_1(x), F.relu)
    elif name == "visual_text_adapter" or (name == "video_text_adapter" and not clip_of_frames):
        attended = attended + bottleneck(adapter, attended, F.gelu)
    elif name == "video_text_adapter":
        grid, width = int((x.shape[1] - 1) ** 0.5), adapter.conv.weight.shape[0]
        cube = adapter.down(attended[:, 1:]).reshape(1, len(x), grid, grid, width).movedim(-1, 1)
        places = [size // 2 for size in adapter.conv.kernel_size]
        cube = F.conv3d(cube, adapter.conv.weight, adapter.conv.bias, padding=places, groups=width)
        patches = attended[:, 1:] + adapter.up(cube.movedim(1, -1).reshape(len(x), -1, width))
        attended = torch.cat([attended[:, :1], patches], dim=1)
    out = attended + block.mlp(block.ln_2(attended))
    if name == "adapter_ffn":
        out = out + scale * bottleneck(adapter, block.ln_2(attended) if normed else attended, F.relu)
    return out


def naive(name, method, batch, normed=False, scale=1.0):
    """Return clips and texts, each clip without its padding and each text up to END."""
    video, frame_mask, token_ids = batch
    visual, text = method.clip.visual, method.clip.text
    clips, texts = [], []
    for clip, mask in zip(video, frame_mask, strict=True):
        x = visual.embed(clip[mask])
        for adapter, block in zip(method.visual_adapters, visual.blocks, strict=True):
            x = adapted(name, adapter, block, x, False, normed, scale, clip_of_frames=True)
        clips.append(F.normalize(visual.ln_post(x[:, 0]) @ visual.proj, dim=-1).mean(dim=0))
    for ids in token_ids:
        x = text.embed(ids[None, : ids.argmax() + 1])
        for adapter, block in zip(method.text_adapters, text.blocks, strict=True):
            x = adapted(name, adapter, block, x, True, normed, scale, clip_of_frames=False)
        texts.append(text.ln_final(x[0, -1]) @ text.text_projection)
    return torch.stack(clips), torch.stack(texts)


@pytest.mark.parametrize(
    ("name", "options", "as_defined"),
    [
        ("adapter_attn", {}, {"scale": 1.0}),
        ("adapter_attn", {"adapter_scale": 0.5, "adapter_width": 3}, {"scale": 0.5}),
        ("adapter_ffn", {}, {"scale": 0.1}),
        ("adapter_ffn", {"adapter_scale": 4.0, "adapter_input": "normed"}, {"scale": 4.0, "normed": True}),
        ("visual_text_adapter", {"adapter_width": 6}, {}),
        ("video_text_adapter", {"adapter_width": 6}, {}),
        ("video_text_adapter", {"adapter_width": 6, "kernel": "3x1x1", "conv_bias": True}, {}),
    ],
)
def test_videos_texts_and_gradients_equal_the_definition(name, options, as_defined):
    method, batch = built(name, **options), tiny_batch()
    expected_clips, expected_texts = naive(name, method, batch, **as_defined)
    texts, clips = method(*batch)
    torch.testing.assert_close(clips, expected_clips, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(texts, expected_texts, rtol=1e-4, atol=1e-5)
    parameters = [parameter for _, parameter in method.trainable_parameters()]
    weights = torch.randn_like(clips), torch.randn_like(texts)
    ours, theirs = (
        torch.autograd.grad((weights[0] * c).sum() + (weights[1] * t).sum(), parameters, materialize_grads=True)
        for c, t in ((clips, texts), (expected_clips, expected_texts))
    )
    for got, expected in zip(ours, theirs, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-3, atol=1e-4)
    dead = {part.name for part in method.dead_parameters()}
    for (own, _), gradient in zip(method.trainable_parameters(), ours, strict=True):
        assert gradient.any() != any(own.startswith(f"{part}.") for part in dead), own


@pytest.mark.parametrize(
    ("name", "options", "count"),
    [
        ("bias", {}, 124_928),
        ("adapter_attn", {}, 1_982_976),
        ("adapter_ffn", {}, 1_982_976),
        ("visual_text_adapter", {}, 11_821_056),
        ("video_text_adapter", {}, 11_945_472),
        ("video_text_adapter", {"conv_bias": True}, 11_950_080),
    ],
)
def test_the_size_is_the_one_in_the_table(name, options, count):
    with torch.device("meta"):
        method = build_method(name, CLIP(ARCHITECTURES["ViT-B/32"]), **options)
    sizes = {own: parameter.numel() for own, parameter in method.trainable_parameters()}
    assert sum(sizes.values()) == count
    dead = [sum(size for own, size in sizes.items() if own.startswith(part.name)) for part in method.dead_parameters()]
    of_last = (2 * 768 + 1) * 384 + 768 + 384 * (27 + options.get("conv_bias", 0))
    assert dead == ([of_last] if name == "video_text_adapter" else [])


def test_bias_trains_no_bias_of_queries_keys_and_values():
    method = build_method("bias", tiny_clip())
    trained = {name for name, _ in method.trainable_parameters()}
    assert trained
    frozen = {name for name, _ in method.named_parameters() if name not in trained and name.endswith("bias")}
    assert frozen == {f"clip.{tower}.blocks.{n}.attn.in_proj_bias" for tower in ("visual", "text") for n in range(2)}
    (group,) = method.parameter_groups(1e-2, 0.5, 0.2)
    assert (group["name"], group["lr"], group["weight_decay"]) == ("clip, no decay", 5e-3, 0.0)


def test_only_video_text_adapter_sees_the_order_of_frames():
    video, _, _ = tiny_batch()
    mask = torch.ones(video.shape[:2], dtype=torch.bool)
    for name in ADAPTED:
        method = built(name)
        with torch.no_grad():
            same = torch.allclose(method.encode_video(video.flip(1), mask), method.encode_video(video, mask), atol=1e-5)
        assert same == (name != "video_text_adapter"), name
