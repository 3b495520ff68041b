"""DiscoVLA: against the numbers of the original and a loop, its count, what it reads, and its messages."""

import pytest
import torch

from modules.clip import ARCHITECTURES, CLIP
from modules.discovla.alignment import distillation, frame_similarity
from modules.losses import SymmetricInfoNCE, symmetric_info_nce
from modules.methods import build_method
from modules.released_weights import load_released_state_dict
from modules.rows import tensors_of
from tests.modules.methods.peer_oracles import method_of
from tests.modules.methods.released_parity import check_outputs, frame_mask_of
from tests.reference_numbers import largest_relative_difference, load_oracle, recipe_of
from tests.tiny import tiny_batch, tiny_clip

SIZES = ["small", pytest.param("b32", marks=pytest.mark.slow)]
AS_RELEASED = {"teacher": "undetached", "padding": "seen"}


def made(**options):
    torch.manual_seed(1)
    return build_method("discovla", tiny_clip(), **options)


def a_batch(batch=3, frames=4):
    """Return a tiny batch with texts `[B,1+T,L]`, of which the caption of frame 1 is shorter than the others."""
    video, frame_mask, token_ids = tiny_batch(batch=batch, frames=frames)
    texts = torch.cat([tiny_batch(seed=seed, batch=batch)[2].unsqueeze(1) for seed in range(frames)], dim=1)
    texts[:, 1, 4], texts[:, 1, 5:] = 49407, 0
    return video, frame_mask, torch.cat([token_ids.unsqueeze(1), texts], dim=1)


@pytest.fixture(scope="module", params=SIZES)
def original(reference, request):
    oracle = load_oracle(reference, f"discovla_{request.param}")
    options = {name: oracle.setting[name] for name in ("H_V", "H_L", "alpha", "beta")}
    batch, frames, words = (oracle.setting[name] for name in ("batch", "frames", "words"))
    recipe = recipe_of(reference / "oracles")
    captions = recipe.token_ids(oracle.setting["seed"], oracle.setting["frame_text_name"], batch * frames, words)
    captions = torch.from_numpy(captions).unflatten(0, (batch, frames))
    inputs = oracle.video, frame_mask_of(oracle), torch.cat([oracle.token_ids.unsqueeze(1), captions], dim=1)
    return oracle, method_of(oracle, "discovla", **options, **AS_RELEASED), inputs


def test_equals_the_original(original):
    oracle, method, inputs = original
    text, clips = method(*inputs)
    for name, ours in {"frame_visual": clips.frames, "frame_text": text.frames}.items():
        assert largest_relative_difference(ours, oracle.outputs[name]) < 1e-5, name
    parts = dict(
        zip(("video", "frame", "distillation"), method.loss_parts(symmetric_info_nce, text, clips), strict=True)
    )
    assert {name: float(part.detach()) for name, part in parts.items()} == pytest.approx(
        oracle.setting["losses"], rel=1e-5
    )
    check_outputs(method, oracle, lambda: method.batch_loss(symmetric_info_nce, text, clips))


def test_count_at_vit_b32():
    with torch.device("meta"):
        method = build_method("discovla", CLIP(ARCHITECTURES["ViT-B/32"]))
    assert sum(parameter.numel() for _, parameter in method.trainable_parameters()) == 561_200
    assert list(method.visual_adapters) == ["8", "9", "10", "11"]
    assert list(method.text_adapters) == ["10", "11"]


@torch.no_grad()
def test_the_alignment_of_frames_against_a_loop():
    generator = torch.Generator().manual_seed(0)
    text, video = torch.randn(2, 3, 5, generator=generator), torch.randn(2, 3, 5, generator=generator)
    real, scale = torch.tensor([[1, 1, 1], [1, 1, 0]]).bool(), torch.tensor(7.0)
    found = frame_similarity(text, video, real, scale)
    cosine = lambda a, i, b, j: torch.cosine_similarity(text[a, i], video[b, j], dim=0)  # noqa: E731
    for a in range(2):
        for b in range(2):
            captions, frames = ([t for t in range(3) if real[row, t]] for row in (a, b))
            best = torch.stack([max(cosine(a, i, b, j) for j in frames) for i in captions])
            other = torch.stack([max(cosine(a, i, b, j) for i in captions) for j in frames])
            expected = sum((c * (7 * c).softmax(0)).sum() for c in (best, other)) / 2
            torch.testing.assert_close(found[a, b], expected)


def test_the_distillation_is_a_divergence():
    logits = torch.randn(4, 4, generator=torch.Generator().manual_seed(0)), torch.randn(4, 4)
    shares = [rows.softmax(dim=1) for rows in logits]
    expected = 100 / 16 * (shares[1] * (shares[1] / shares[0]).log()).sum()
    torch.testing.assert_close(distillation(*logits), expected)
    assert distillation(logits[0], logits[0] + 3).abs() < 1e-4


def test_the_teacher_learns_from_the_distillation_only_as_released():
    for teacher in ("detached", "undetached"):
        method = made(teacher=teacher)
        text, clips = method(*a_batch())
        *_, distilled = method.loss_parts(SymmetricInfoNCE(method.clip), text, clips)
        (gradient,) = torch.autograd.grad(distilled, text.frames, allow_unused=True)
        assert (gradient is not None) == (teacher == "undetached")


@torch.no_grad()
def test_a_class_token_sees_the_frames_of_its_clip_in_the_last_blocks_alone():
    video, frame_mask, _ = tiny_batch(batch=2)
    changed = video.clone()
    changed[0, 3] += 1
    for blocks, sees in ((1, True), (0, False)):
        method = made(H_V=blocks).eval()
        before, after = (method.encode_frames(clips, frame_mask) for clips in (video, changed))
        assert ((before[0, :3] - after[0, :3]).abs().max() > 1e-3) == sees
        torch.testing.assert_close(before[1], after[1])


@torch.no_grad()
def test_padding_is_hidden_unless_as_released():
    video, frame_mask, texts = a_batch()
    dirty, other = video.clone(), texts.clone()
    dirty[1, 3] += 1
    other[1, 4, 1:3] = 400
    for padding in ("hidden", "seen"):
        method = made(padding=padding)
        losses = [
            method.batch_loss(symmetric_info_nce, *method(*inputs))
            for inputs in ((video, frame_mask, texts), (dirty, frame_mask, texts), (video, frame_mask, other))
        ]
        for loss in losses[1:]:
            assert torch.isclose(losses[0], loss, rtol=1e-6) == (padding == "hidden")


@torch.no_grad()
def test_words_behind_the_end_are_not_seen():
    _, frame_mask, texts = a_batch()
    captions, method = texts[:, 1:], made()
    before = method.encode_frame_captions(captions, frame_mask)
    captions[:, 1, 5:] = 17
    torch.testing.assert_close(method.encode_frame_captions(captions, frame_mask), before)
    captions[:, 1, 2] = 0  # "!", which is a word
    changed = (method.encode_frame_captions(captions, frame_mask) - before).abs().amax(dim=(0, 2))
    assert (changed > 1e-4).all()  # of all frames of the clip


@torch.no_grad()
def test_a_pair_has_the_rows_of_evaluation():
    video, frame_mask, texts = a_batch()
    method = made()
    for adapter in method.visual_adapters.values():
        torch.nn.init.normal_(adapter.up.weight)
    text, clips = method.train()(video, frame_mask, texts)
    method.eval()
    torch.testing.assert_close(text.captions, method.encode_text(texts[:, 0]), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(clips.frames, method.encode_frames(video, frame_mask), atol=1e-5, rtol=1e-5)
    assert clips.frame_mask.dtype == torch.bool


def test_without_its_parts_it_is_lora():
    video, frame_mask, token_ids = tiny_batch()
    method = made(H_V=0, alpha=0.0, beta=0.0).eval()
    torch.manual_seed(1)
    plain = build_method("lora", tiny_clip()).eval()
    assert not method.reads_frame_captions
    assert method.state_dict().keys() == plain.state_dict().keys()
    for ours, expected in zip(method(video, frame_mask, token_ids), plain(video, frame_mask, token_ids), strict=True):
        torch.testing.assert_close(ours, expected)


def test_every_tensor_of_the_rows_has_a_part_in_the_loss():
    """So that a batch can be accumulated in parts, which needs the gradient at all of them."""
    method = made()
    rows = method(*a_batch())
    loss = method.batch_loss(symmetric_info_nce, *rows)
    tensors = [tensor for side in rows for tensor in tensors_of(side) if tensor.is_floating_point()]
    assert all(gradient.abs().max() > 0 for gradient in torch.autograd.grad(loss, tensors))


def test_released_weights_of_another_depth_of_adapters_are_refused():
    method = made(H_V=2)
    theirs = {method.released_name(name): tensor for name, tensor in method.state_dict().items()}
    load_released_state_dict(method, theirs)
    with pytest.raises(ValueError, match=r"unknown \(clip.visual.transformer.resblocks.0.attn.TVPt_down_weight"):
        load_released_state_dict(made(H_V=1), theirs)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"H_V": 3}, "--H_V 3 is out of range: it takes a number from 0 to 2, the blocks of this CLIP"),
        ({"H_L": 3}, "--H_L 3 is out of range"),
        ({"H_V": -2}, "--H_V -2 is out of range"),
        ({"alpha": 0.0}, "--beta distils the alignment that --alpha trains"),
        ({"alpha": 0.0, "beta": 0.0, "H_L": 1}, "--H_L needs --alpha or --beta above 0"),
    ],
)
def test_bad_input_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        made(**options)
