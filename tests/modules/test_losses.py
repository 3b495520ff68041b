"""The losses against loops over their definitions, and what every loss in the registry must do."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from open_clip.loss import SigLipLoss
from open_clip.model import CLIP as OpenCLIP

from modules.backbones import Backbone
from modules.clip import CLIP
from modules.losses import LOSSES, SigmoidLoss, SymmetricInfoNCE, build_loss, symmetric_info_nce
from modules.methods import METHODS, build_method
from modules.similarity import cosine_similarity
from tests.tiny import TINY, fitting_options, tiny_batch, tiny_clip

SAME_VIDEOS = torch.tensor([4, 0, 4, 7, 0, 4])


def loss_by_loops(logits: torch.Tensor, videos: list[int]) -> float:
    """Return the mean over pairs and directions of: minus the log of the softmax, averaged over the positives."""
    n, total = len(videos), 0.0
    for i in range(n):
        positives = [j for j in range(n) if videos[j] == videos[i]]
        for scores in (logits[i].tolist(), logits[:, i].tolist()):
            normaliser = math.log(sum(math.exp(score) for score in scores))
            total += sum(normaliser - scores[j] for j in positives) / len(positives)
    return total / (2 * n)


def test_it_is_the_mean_of_both_directions():
    torch.manual_seed(0)
    logits = torch.randn(5, 5) * 3
    assert float(symmetric_info_nce(logits)) == pytest.approx(loss_by_loops(logits, [0, 1, 2, 3, 4]), rel=1e-6)


@given(st.lists(st.integers(0, 5), min_size=1, max_size=9), st.integers(0, 2**32))
def test_all_pairs_of_a_video_are_positives(videos, seed):
    logits = 5 * torch.randn(len(videos), len(videos), generator=torch.Generator().manual_seed(seed))
    loss = symmetric_info_nce(logits, torch.tensor(videos))
    assert float(loss) == pytest.approx(loss_by_loops(logits, videos), rel=1e-5, abs=1e-6)


def test_without_a_video_twice_it_is_the_plain_loss():
    torch.manual_seed(0)
    logits = (torch.randn(6, 6) * 4).requires_grad_()
    losses = [symmetric_info_nce(logits), symmetric_info_nce(logits, torch.tensor([9, 0, 5, 3, 1, 2**40]))]
    torch.testing.assert_close(losses[0], losses[1])
    gradients = [torch.autograd.grad(loss, logits)[0] for loss in losses]
    torch.testing.assert_close(gradients[0], gradients[1])
    assert (symmetric_info_nce(logits, SAME_VIDEOS) - losses[0]).abs() > 0.01


@pytest.mark.parametrize("video_index", [None, SAME_VIDEOS])
def test_gradients(video_index):
    torch.manual_seed(0)
    logits = (torch.randn(6, 6, dtype=torch.float64) * 3).requires_grad_()
    assert torch.autograd.gradcheck(lambda rows: symmetric_info_nce(rows, video_index), logits)


def test_the_minimum_has_equal_logits_of_all_positives():
    """At the minimum the positives have all the probability, in equal shares."""
    logits = torch.where(SAME_VIDEOS[:, None] == SAME_VIDEOS, 0.0, -1e4).requires_grad_()
    loss = symmetric_info_nce(logits, SAME_VIDEOS)
    assert loss.item() == pytest.approx((3 * math.log(3) + 2 * math.log(2)) / 6, rel=1e-5)
    assert torch.autograd.grad(loss, logits)[0].abs().max() < 1e-6


def test_with_the_same_clip_in_all_pairs_of_a_video_it_is_the_plain_loss():
    torch.manual_seed(0)
    text, clips = torch.randn(6, 4), torch.randn(8, 4)[SAME_VIDEOS]
    torch.testing.assert_close(symmetric_info_nce(text @ clips.T, SAME_VIDEOS), symmetric_info_nce(text @ clips.T))


def test_half_precision_is_computed_in_single():
    torch.manual_seed(0)
    logits = (torch.randn(6, 6) * 30).bfloat16()
    for video_index in (None, SAME_VIDEOS):
        loss = symmetric_info_nce(logits, video_index)
        assert loss.dtype == torch.float32
        assert torch.equal(loss, symmetric_info_nce(logits.float(), video_index))


def test_equal_logits_cost_the_log_of_the_batch_size():
    assert float(symmetric_info_nce(torch.zeros(8, 8))) == pytest.approx(math.log(8))


def test_logits_that_are_not_square_are_refused():
    with pytest.raises(ValueError, match=r"\(2, 3\)"):
        symmetric_info_nce(torch.zeros(2, 3))
    with pytest.raises(ValueError, match=r"video_index for each of the 3 pairs; got \(2,\)"):
        symmetric_info_nce(torch.zeros(3, 3), torch.zeros(2, dtype=torch.int64))


def test_the_sum_of_both_directions_is_that_of_stan_s_release(reference):
    """Check loss and gradients of a batch that its loss computed; `sim` has the videos in rows."""
    oracle = torch.load(reference / "oracles/stan.pt", weights_only=True)["nce"]
    text, video = (oracle[name].clone().requires_grad_() for name in ("text", "video"))
    clip = tiny_clip()
    clip.logit_scale.data.fill_(math.log(oracle["scale"]))
    loss = build_loss("summed_info_nce", clip)(cosine_similarity(text, video, clip.logit_scale))
    torch.testing.assert_close(loss, oracle["loss"], rtol=1e-6, atol=0)
    for ours, theirs in zip(torch.autograd.grad(loss, [text, video]), ("grad_text", "grad_video"), strict=True):
        torch.testing.assert_close(ours, oracle[theirs], rtol=1e-5, atol=1e-5)


def test_the_sum_of_both_directions_is_twice_their_mean():
    torch.manual_seed(0)
    logits, loss = 5 * torch.randn(6, 6), build_loss("summed_info_nce", tiny_clip())
    assert float(loss(logits)) == pytest.approx(2 * loss_by_loops(logits, [0, 1, 2, 3, 4, 5]), rel=1e-6)
    assert float(loss(logits, SAME_VIDEOS)) == pytest.approx(2 * loss_by_loops(logits, SAME_VIDEOS.tolist()), rel=1e-6)


def sigmoid_by_loops(cosines: torch.Tensor, scale: float, bias: float, videos: list[int]) -> float:
    """Return the loss by equation 1 of arXiv 2303.15343."""
    total = 0.0
    for i, row in enumerate(cosines.tolist()):
        for j, cosine in enumerate(row):
            label = 1 if videos[i] == videos[j] else -1
            total += math.log(1 / (1 + math.exp(label * (-math.exp(scale) * cosine - bias))))
    return -total / len(videos)


@given(st.lists(st.integers(0, 5), min_size=1, max_size=9), st.integers(0, 2**32), st.booleans())
def test_sigmoid_is_equation_1(videos, seed, with_index):
    generator = torch.Generator().manual_seed(seed)
    text, clips = torch.randn(2, len(videos), 6, generator=generator)
    clip = tiny_clip()
    loss = build_loss("sigmoid", clip)
    with torch.no_grad():
        loss.logit_scale.fill_(1.5)
        loss.logit_bias.fill_(-0.7)
    value = loss(cosine_similarity(text, clips, clip.logit_scale), torch.tensor(videos) if with_index else None)
    cosines = F.normalize(text, dim=-1) @ F.normalize(clips, dim=-1).T
    videos = videos if with_index else list(range(len(videos)))
    assert value.item() == pytest.approx(sigmoid_by_loops(cosines, 1.5, -0.7, videos), rel=1e-5)


def test_sigmoid_is_open_clips():
    torch.manual_seed(0)
    text, clips = (F.normalize(torch.randn(16, 8), dim=-1) for _ in range(2))
    clip = tiny_clip()
    loss = build_loss("sigmoid", clip)
    theirs = SigLipLoss()(clips, text, loss.logit_scale.exp(), loss.logit_bias)
    ours = loss(cosine_similarity(text, clips, clip.logit_scale))
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=0)
    parameters = [loss.logit_scale, loss.logit_bias]
    for own, other in zip(torch.autograd.grad(ours, parameters), torch.autograd.grad(theirs, parameters), strict=True):
        torch.testing.assert_close(own, other, rtol=1e-5, atol=1e-6)


def test_sigmoid_starts_as_published_or_as_its_backbone():
    loss = build_loss("sigmoid", tiny_clip())
    assert loss.logit_scale.exp().item() == pytest.approx(10)
    assert loss.logit_bias.item() == -10
    clip = CLIP(TINY, Backbone(TINY, similarity="sigmoid"))
    assert clip.logit_bias is not None
    with torch.no_grad():
        clip.logit_scale.fill_(4.7)
        clip.logit_bias.fill_(-16.5)
    loss = build_loss("sigmoid", clip)
    assert (loss.logit_scale.item(), loss.logit_bias.item()) == pytest.approx((4.7, -16.5))
    assert loss.logit_scale is not clip.logit_scale
    assert "logit_bias" not in dict(clip.named_parameters())  # only the loss trains one
    assert "logit_bias" in clip.state_dict()
    assert "logit_bias" not in tiny_clip().state_dict()


def test_auto_is_the_loss_of_the_backbone():
    for similarity, kind in (("softmax", SymmetricInfoNCE), ("sigmoid", SigmoidLoss)):
        assert type(build_loss("auto", CLIP(TINY, Backbone(TINY, similarity=similarity)))) is kind


def test_logits_of_a_sigmoid_backbone_are_open_clips():
    """At the start the loss has the backbone's scale and bias, so that its logits are those of zero-shot SigLIP."""
    torch.manual_seed(0)
    vision = {"image_size": 32, "patch_size": 8, "width": 32, "layers": 1, "head_width": 16}
    text = {"context_length": 8, "vocab_size": 99, "width": 16, "heads": 2, "layers": 1}
    theirs = OpenCLIP(16, vision, text, init_logit_scale=4.7, init_logit_bias=-16.5).eval()
    clip = CLIP(TINY, Backbone(TINY, similarity="sigmoid"))
    clip.load_state_dict({"logit_scale": theirs.logit_scale, "logit_bias": theirs.logit_bias}, strict=False)
    images, token_ids = torch.randn(3, 3, 32, 32), torch.randint(99, (3, 8))
    with torch.no_grad():
        rows = theirs.encode_text(token_ids), theirs.encode_image(images)
        ours = build_loss("auto", clip).rescaled(cosine_similarity(*rows, clip.logit_scale))
        torch.testing.assert_close(ours, theirs.get_logits(images, token_ids)[1], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", METHODS)
def test_every_method_learns_with_it(name):
    """With the terms that a method adds to its loss: all that learns by CLIP's loss does, but for its temperature."""
    clip = CLIP(TINY, Backbone(TINY, similarity="sigmoid"))
    method, (video, frame_mask, token_ids) = build_method(name, clip, **fitting_options(name)), tiny_batch()
    if method.reads_frame_captions:
        token_ids = token_ids.unsqueeze(1).repeat(1, 1 + video.shape[1], 1)
    trained, reached = dict(method.trainable_parameters()), []
    assert "clip.logit_bias" not in trained
    for kind in ("symmetric_info_nce", "sigmoid"):
        torch.manual_seed(0)
        loss = build_loss(kind, clip)
        value = method.batch_loss(loss, *method.train()(video, frame_mask, token_ids))
        assert value.isfinite()
        gradients = torch.autograd.grad(value, list(trained.values()), allow_unused=True)
        reached.append({own for own, gradient in zip(trained, gradients, strict=True) if gradient is not None})
        if loss.owns_scale:
            value = method.batch_loss(loss, *method(video, frame_mask, token_ids))
            assert all(g.abs() > 0 for g in torch.autograd.grad(value, list(loss.parameters())))
    assert reached[0] == reached[1]


def test_sigmoid_does_not_use_the_scale_of_clip():
    torch.manual_seed(0)
    text, clips = torch.randn(2, 5, 8)
    clip = tiny_clip()
    loss = build_loss("sigmoid", clip)
    first = loss(cosine_similarity(text, clips, clip.logit_scale))
    assert torch.autograd.grad(first, clip.logit_scale)[0].abs() < 1e-5
    with torch.no_grad():
        clip.logit_scale.fill_(0.3)
    torch.testing.assert_close(loss(cosine_similarity(text, clips, clip.logit_scale)), first, rtol=1e-5, atol=0)
    assert [name for name, _ in loss.named_parameters()] == ["logit_scale", "logit_bias"]
    together = copy.deepcopy(torch.nn.ModuleList([clip, loss]))
    assert together[1]._clip[0] is together[0]


def test_sigmoid_learns_its_scale_and_bias():
    """From the published start, on pairs that fit: fewer false answers, so the bias moves and the loss falls."""
    torch.manual_seed(0)
    clip = tiny_clip()
    loss = build_loss("sigmoid", clip)
    text = torch.randn(8, 24)
    logits = cosine_similarity(text, text, clip.logit_scale).detach()
    optimizer = torch.optim.Adam(loss.parameters(), 0.1)
    values = []
    for _ in range(30):
        optimizer.zero_grad()
        value = loss(logits)
        value.backward()
        optimizer.step()
        values.append(value.item())
    assert values[-1] < 0.5 * values[0]


@pytest.fixture(params=LOSSES)
def loss(request):
    return build_loss(request.param, tiny_clip())


@pytest.mark.parametrize("video_index", [None, SAME_VIDEOS])
def test_every_loss_is_finite_and_has_the_gradient_of_its_value(loss, video_index):
    torch.manual_seed(0)
    logits = (torch.randn(6, 6, dtype=torch.float64) * 3).requires_grad_()
    loss = loss.double()
    parameters = list(loss.parameters())
    assert torch.autograd.gradcheck(lambda rows, *_: loss(rows, video_index), [logits, *parameters])
    extreme = torch.full((6, 6), 100.0).fill_diagonal_(-100.0).requires_grad_()
    value = loss(extreme, video_index)
    assert value.shape == ()
    assert value.isfinite()
    assert torch.autograd.grad(value, extreme)[0].isfinite().all()


@pytest.mark.parametrize("video_index", [None, SAME_VIDEOS])
def test_no_loss_depends_on_the_order_of_the_pairs(loss, video_index):
    torch.manual_seed(0)
    logits, order = torch.randn(6, 6) * 3, torch.randperm(6)
    index = None if video_index is None else video_index[order]
    torch.testing.assert_close(loss(logits[order][:, order], index), loss(logits, video_index))


def test_every_loss_prefers_the_right_pairs_and_computes_in_fp32(loss):
    torch.manual_seed(0)
    logits = torch.eye(6) * 14 + torch.randn(6, 6) * 0.1
    assert loss(logits) < loss(logits.roll(1, dims=0))
    assert loss(logits.bfloat16()).dtype == torch.float32
    with pytest.raises(ValueError, match=r"\(2, 3\)"):
        loss(torch.zeros(2, 3))
    with pytest.raises(ValueError, match=r"video_index for each of the 3 pairs; got \(2,\)"):
        loss(torch.zeros(3, 3), torch.zeros(2, dtype=torch.int64))


def test_only_a_loss_with_a_scale_says_so(loss):
    assert loss.owns_scale == isinstance(loss, SigmoidLoss)
    assert loss.owns_scale == any(name == "logit_scale" for name, _ in loss.named_parameters())


def test_an_unknown_loss_is_one_sentence():
    with pytest.raises(ValueError, match=rf"^--loss 'hinge' is not one of: {', '.join(LOSSES)}, auto$"):
        build_loss("hinge", tiny_clip())
