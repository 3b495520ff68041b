"""VoP^F+C against the paper's sequences, written out one clip at a time."""

import logging
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from modules.methods import build_method
from modules.methods.vop_fc import VoPFC
from tests.modules.methods.peer_oracles import trained_at_b32
from tests.tiny import TINY, tiny_batch, tiny_clip

THREE = replace(TINY, vision_layers=3)


def vop_fc(**options) -> VoPFC:
    method = build_method("vop_fc", tiny_clip(architecture=THREE), **{"max_frames": 4, **options})
    assert isinstance(method, VoPFC)
    return method.eval()


def naive_context(method: VoPFC, classes: Tensor) -> Tensor:
    """torch's bidirectional LSTM over the class tokens `[T,D]` of the real frames, then FC."""
    context, width = method.context, classes.shape[1]
    both = nn.LSTM(width, width, bidirectional=True, batch_first=True)
    with torch.no_grad():
        for name, tensor in context.onward.named_parameters():
            getattr(both, name).copy_(tensor)
            getattr(both, f"{name}_reverse").copy_(dict(context.backward_.named_parameters())[name])
    return context.fc(both(classes.unsqueeze(0))[0][0]).unflatten(1, (context.prompts, width))


def naive_clip(method: VoPFC, clip: Tensor) -> Tensor:
    visual, frames = method.clip.visual, len(clip)
    shallow = len(method.static_prompts)
    x = visual.embed(clip)
    for layer in range(shallow):
        prompts = torch.cat(
            [method.static_prompts[layer].expand(frames, -1, -1), naive_context(method, x[:, 0])], dim=1
        )
        prompts = prompts if layer else visual.ln_pre(prompts)
        x = visual.blocks[layer](torch.cat([x[:, :1], prompts, x[:, 1:]], dim=1))
        x = torch.cat([x[:, :1], x[:, 1 + prompts.shape[1] :]], dim=1)
    if method.frame_embedding is not None:
        x = x + method.frame_embedding[:frames, None]
    classes, patches = x[:, 0], x[:, 1:].flatten(0, 1)
    for layer, prompts in enumerate(method.deep_prompts):
        sequence = torch.cat([classes, prompts, patches]).unsqueeze(0)
        out = visual.blocks[shallow + layer](sequence)[0]
        classes, patches = out[:frames], out[frames + len(prompts) :]
    return F.normalize(visual.pool(classes.unsqueeze(1)), dim=-1).mean(dim=0)


@pytest.mark.parametrize("shallow_layers", [1, 2])
def test_videos_equal_the_loop(shallow_layers):
    method = vop_fc(shallow_layers=shallow_layers, prompt_length=5)
    video, frame_mask, _ = tiny_batch()
    with torch.no_grad():
        for _, parameter in method.trainable_parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
        ours = method.encode_video(video, frame_mask)
        naive = torch.stack([naive_clip(method, clip[mask]) for clip, mask in zip(video, frame_mask, strict=True)])
    torch.testing.assert_close(ours, naive, rtol=1e-4, atol=1e-5)


def test_the_order_of_frames_matters():
    method = vop_fc()
    video, _, _ = tiny_batch()
    mask = torch.ones(video.shape[:2], dtype=torch.bool)
    with torch.no_grad():
        for parameter in method.context.parameters():
            parameter.mul_(3)
        turned = method.encode_video(video.flip(1), mask)
        assert (turned - method.encode_video(video, mask)).abs().max() > 1e-4


def test_the_size_is_the_papers_without_the_frame_embedding():
    """The paper's VoP^C, 14,257,152, is the same context and text prompts with 4 static prompts in all 12 blocks."""
    counts = trained_at_b32("vop_fc", frame_embedding=True)
    context = [counts.pop(name) for name in list(counts) if name.startswith("context.")]
    assert sum(context) == 14_171_136 == 14_257_152 - 49_152 - 12 * 4 * 768
    assert counts == {
        "text_prompts": 49_152,
        "static_prompts": 24_576,
        "deep_prompts": 24_576,
        "frame_embedding": 9_216,
    }
    assert sum(trained_at_b32("vop_fc").values()) == 14_269_440


def test_the_depth_has_a_rule_and_a_range(caplog):
    with caplog.at_level(logging.INFO, logger="stop"):
        assert len(vop_fc().static_prompts) == 2
    assert "--shallow_layers 2, by the rule for this CLIP's 3 visual blocks" in caplog.text
    with pytest.raises(
        ValueError, match=r"--shallow_layers 3 is out of range: .* from 1 to 2, this CLIP has 3 visual bl"
    ):
        vop_fc(shallow_layers=3)


def test_clips_of_another_length():
    video, frame_mask, _ = tiny_batch(frames=3)
    with pytest.raises(ValueError, match="the clip has 3 frames, and this model was made for max_frames=4"):
        vop_fc(frame_embedding=True).encode_video(video, frame_mask)
    assert vop_fc().encode_video(video, frame_mask).isfinite().all()
