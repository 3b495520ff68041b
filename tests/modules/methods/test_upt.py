"""UPT against prompts that are inserted and removed, and its size."""

import pytest
import torch
import torch.nn.functional as F

from modules.methods import build_method
from modules.methods.upt import UPT
from tests.modules.methods.peer_oracles import trained_at_b32
from tests.tiny import tiny_batch, tiny_clip


def upt(**options) -> UPT:
    method = build_method("upt", tiny_clip(), **{"max_frames": 4, **options})
    assert isinstance(method, UPT)
    return method.eval()


def test_videos_and_gradients_equal_the_loop():
    """Every frame has its own four tokens after its class token in every block."""
    method = upt()
    visual = method.clip.visual
    video, frame_mask, _ = tiny_batch()
    bank = method.latent.prompts.transpose(0, 1)  # of each block, 8 prompts of texts and 4 of each frame
    rows = []
    for clip, mask in zip(video, frame_mask, strict=True):
        frames = []
        for t in range(int(mask.sum())):
            x = visual.embed(clip[t : t + 1])
            for block, raw in zip(visual.blocks, bank, strict=True):
                prompts = method.latent.block(raw.unsqueeze(0))[:, 8 + 4 * t : 12 + 4 * t]
                x = block(torch.cat([x[:, :1], prompts, x[:, 1:]], dim=1))
                x = torch.cat([x[:, :1], x[:, 5:]], dim=1)
            frames.append(F.normalize(visual.pool(x)[0], dim=0))
        rows.append(torch.stack(frames).mean(dim=0))
    ours, naive = method.encode_video(video, frame_mask), torch.stack(rows)
    torch.testing.assert_close(ours, naive, rtol=1e-4, atol=1e-5)
    weight = torch.randn_like(ours)
    gradients = [torch.autograd.grad((out * weight).sum(), method.latent.prompts)[0] for out in (ours, naive)]
    torch.testing.assert_close(*gradients, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("postfix", ["before_end", "dead"])
def test_texts_equal_the_loop(postfix):
    """[START ; 4 prompts ; words ; 4 prompts ; END], or the last four behind END; positions belong to the words."""
    method = upt(text_postfix=postfix)
    text = method.clip.text
    _, _, token_ids = tiny_batch(words=8)
    end = int(token_ids[0].argmax())
    with torch.no_grad():
        ours = method.encode_text(token_ids)
        words = text.embed(token_ids)[:, : end + 1]
        for block, raw in zip(text.blocks, method.latent.prompts.transpose(0, 1), strict=True):
            prompts = method.latent.to_text(method.latent.block(raw.unsqueeze(0))[:, :8]).expand(len(words), -1, -1)
            late = prompts[:, 4:] if postfix == "before_end" else prompts[:, :0]
            x = torch.cat([words[:, :1], prompts[:, :4], words[:, 1:end], late, words[:, end:]], dim=1)
            x = block(x, causal=True)
            words = torch.cat([x[:, :1], x[:, 5 : 4 + end], x[:, -1:]], dim=1)
        expected = text.pool(words[:, -1])
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-5)


def test_the_size_is_that_of_dgls_table():
    counts = trained_at_b32("upt")
    assert sum(counts.values()) == 9_572_096  # 9.57 M
    (dead,) = upt().dead_parameters()
    assert dead.share * counts[dead.name] == 768


def test_clips_of_another_length_are_one_sentence():
    video, frame_mask, _ = tiny_batch(frames=3)
    with pytest.raises(ValueError, match="the clip has 3 frames, and this model was made for max_frames=4"):
        upt().encode_video(video, frame_mask)
