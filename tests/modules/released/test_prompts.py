"""The released prompters against loops written from what the released code computes, and their faults and fixes."""

import pytest
import torch
from torch import nn

from modules.released.convolution import convolve, convolve_in_frequency, convolve_over_time, fast_length
from modules.released.prompts import (
    InterFramePrompt,
    PixelPrompter,
    above_threshold,
)


def pixel_prompter(**options):
    torch.manual_seed(0)
    options = {"n_regions": 6, "region_mask": "comb", "hard_region_mask": True, "dropout": 0.0, **options}
    return PixelPrompter(7, **options)


@pytest.mark.parametrize("way", [convolve_over_time, convolve_in_frequency])
@pytest.mark.parametrize(("channels", "kernel"), [((3, 5), (3, 11, 11)), ((1, 4), (3, 5, 9)), ((4, 1), (5, 3, 7))])
def test_convolutions_equal_torchs(way, channels, kernel):
    torch.manual_seed(0)
    conv = nn.Conv3d(*channels, kernel, padding=[size // 2 for size in kernel]).double()
    x = torch.randn(2, 4, channels[0], 13, 17, dtype=torch.float64, requires_grad=True)
    ours, theirs = way(conv, x), conv(x.transpose(1, 2)).transpose(1, 2)
    torch.testing.assert_close(ours, theirs)
    gradient = torch.randn_like(ours)
    tensors = [x, conv.weight, conv.bias]
    for a, b in zip(
        torch.autograd.grad(ours, tensors, gradient), torch.autograd.grad(theirs, tensors, gradient), strict=True
    ):
        torch.testing.assert_close(a, b)


def test_half_precision_is_convolved_directly_and_fp32_in_frequency(monkeypatch):
    ways = []
    for name in ("convolve_over_time", "convolve_in_frequency"):
        monkeypatch.setattr(f"modules.released.convolution.{name}", lambda conv, x, name=name: ways.append(name))
    convolve(nn.Conv3d(3, 9, (3, 11, 11)), torch.zeros(1, 2, 3, 14, 14))
    with torch.autocast("cpu", torch.bfloat16):
        convolve(nn.Conv3d(3, 9, (3, 11, 11)), torch.zeros(1, 2, 3, 14, 14))
    assert ways == ["convolve_in_frequency", "convolve_over_time"]


def test_fast_length():
    assert [fast_length(n) for n in (1, 7, 63, 792, 234)] == [1, 8, 64, 800, 240]


@pytest.mark.parametrize("region_mask", ["comb", "patches"])
def test_mask_of_pixels(region_mask):
    """Scores as means over remainders modulo 7 (as released) or over patches (the fix), pixel by pixel."""
    prompter = pixel_prompter(region_mask=region_mask)
    video = torch.randn(1, 2, 3, 14, 14)
    with torch.no_grad():
        response = nn.functional.conv3d(
            video.transpose(1, 2), prompter.scorer.weight, prompter.scorer.bias, padding=(2, 5, 5)
        )[0, 0]
        prompted, mask = prompter(video)
        prompt = (prompted - video) / 0.05
        plain, _ = PixelPrompter.forward(prompter, video)
    torch.testing.assert_close(plain, prompted)
    for frame in range(2):
        scores = torch.zeros(7, 7)
        for row in range(14):
            for column in range(14):
                cell = (row % 7, column % 7) if region_mask == "comb" else (row // 2, column // 2)
                scores[cell] += response[frame, row, column] / 4
        threshold = scores.flatten().sort(descending=True).values[6]
        assert torch.equal(mask[0, frame], (scores > threshold).float())
        assert mask[0, frame].sum() == 6
        alone = prompter.mlp(prompter._prompt(video)[0, frame].movedim(0, -1)).movedim(-1, 0)
        for row in range(14):
            for column in range(14):
                cell = (row % 7, column % 7) if region_mask == "comb" else (row // 2, column // 2)
                expected = alone[:, row, column] * (1 + mask[0, frame][cell])
                torch.testing.assert_close(prompt[0, frame, :, row, column], expected, atol=1e-4, rtol=1e-4)


def test_convolutions_follow_each_other_as_released():
    """There is no non-linearity between the first two."""
    prompter = pixel_prompter()
    volume = torch.randn(2, 3, 4, 14, 14)
    x = volume
    for conv, act in (
        (prompter.conv1, None),
        (prompter.conv2, prompter.act2),
        (prompter.conv3, prompter.act3),
        (prompter.conv4, None),
    ):
        x = nn.functional.conv3d(x, conv.weight, conv.bias, padding=(1, 5, 5))
        x = x if act is None else act(x)
    torch.testing.assert_close(prompter._prompt(volume.transpose(1, 2)), x.transpose(1, 2), atol=1e-5, rtol=1e-5)


def test_equal_scores_put_fewer_into_the_mask():
    assert above_threshold(torch.zeros(1, 1, 7, 7), 6).sum() == 0
    scores = torch.arange(49.0).view(1, 1, 7, 7)
    assert above_threshold(scores, 6).flatten().nonzero().flatten().tolist() == list(range(43, 49))
    scores[..., -3:, :] = 99
    assert above_threshold(scores, 6).sum() == 0


def test_a_prompt_survives_training_dropout_one_time_in_four():
    """Dropout in the 16 channels spares the bias here; two more keep a quarter of the prompts, four times as large."""
    prompter = pixel_prompter(dropout=0.5)
    with torch.no_grad():
        prompter.mlp[2].weight.zero_()
        prompter.mlp[2].bias.fill_(1.0)
        prompter.train()
        video = torch.randn(2, 4, 3, 28, 28)
        prompted, mask = prompter(video)
    prompt = (prompted - video) / (0.05 * (1 + mask.tile(4, 4).unsqueeze(2)))
    survived = prompt.abs() > 0.5
    assert survived.float().mean().item() == pytest.approx(0.25, abs=0.02)
    torch.testing.assert_close(prompt[survived], torch.full_like(prompt[survived], 4.0), atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("hard", [True, False])
def test_gradient_of_the_scorer(hard):
    """As released it has none (here exactly zero); the fix gives the mask the gradient of its scores."""
    prompter = pixel_prompter(hard_region_mask=hard)
    video = torch.randn(1, 2, 3, 14, 14)
    prompted, mask = prompter(video)
    torch.testing.assert_close(mask.detach().unique(), torch.tensor([0.0, 1.0]), atol=1e-6, rtol=0)
    (prompted * torch.randn_like(prompted)).sum().backward()
    assert (prompter.scorer.weight.grad == 0).all() == hard
    assert prompter.conv1.weight.grad.abs().max() > 0


def inter_frame_prompt(norm="batch"):
    torch.manual_seed(0)
    return InterFramePrompt(16, 2, 9, norm=norm)


def test_inter_frame_prompt_step_by_step():
    module = inter_frame_prompt()
    tokens = torch.randn(2, 5, 9, 16)
    mask = (torch.rand(2, 5, 3, 3) > 0.6).float()
    with torch.no_grad():
        prompts, rate = module(tokens, mask)
        flat = tokens.reshape(2, 45, 16)
        mixed = module.attention(flat, flat, flat)[0].view(2, 1, 5, 9, 16)
        response = nn.functional.conv3d(mixed, module.scorer.weight, module.scorer.bias, padding=(2, 5, 5))[:, 0]
        scores = torch.zeros(2, 5)
        for clip in range(2):
            for frame in range(5):
                for patch in range(9):
                    weight = 1 + mask[clip, frame].flatten()[patch]
                    scores[clip, frame] += (response[clip, frame, patch] * weight).sum() / (9 * 16)
        expected = (scores - scores.min()) / (scores.max() - scores.min())
        torch.testing.assert_close(rate, expected, atol=1e-4, rtol=1e-4)
        x = nn.functional.conv3d(mixed, module.conv1.weight, module.conv1.bias, padding=(1, 7, 12))
        x = nn.functional.conv3d(module.act1(x), module.conv2.weight, module.conv2.bias, padding=(1, 7, 12))[:, 0]
        for clip in range(2):
            for frame in range(5):
                for feature in range(16):
                    column = 0.05 * module.mlp(x[clip, frame, :, feature]) * (1 + expected[clip, frame])
                    torch.testing.assert_close(prompts[clip, frame, :, feature], column, atol=1e-5, rtol=1e-3)


def test_batch_wide_stretching_and_its_fix():
    tokens, mask = torch.randn(3, 4, 9, 16), torch.zeros(3, 4, 3, 3)
    with torch.no_grad():
        together = inter_frame_prompt()(tokens, mask)[1]
        alone = inter_frame_prompt()(tokens[:1], mask[:1])[1]
        assert (together[:1] - alone).abs().max() > 0.01
        assert (together.min(), together.max()) == (0, 1)
        together = inter_frame_prompt("clip")(tokens, mask)[1]
        alone = inter_frame_prompt("clip")(tokens[:1], mask[:1])[1]
    torch.testing.assert_close(together[:1], alone, atol=1e-4, rtol=1e-4)
    assert (together.amin(dim=1) == 0).all()
    assert (together.amax(dim=1) == 1).all()


def test_nothing_to_stretch():
    one_frame, mask = torch.randn(1, 1, 9, 16), torch.zeros(1, 1, 3, 3)
    with pytest.raises(ValueError, match=r"divides zero by zero; .* pass --inter_frame_norm clip"):
        inter_frame_prompt().eval()(one_frame, mask)
    module = inter_frame_prompt("clip")
    prompts, rate = module(one_frame, mask)
    assert rate.item() == 0
    prompts.sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in module.parameters())
