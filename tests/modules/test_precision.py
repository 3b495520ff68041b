"""The cache of tensors derived from frozen weights: values, when it computes them again, and that trained weights are
not kept. Padding for GPUs."""

import copy

import torch
import torch.nn.functional as F

from modules.block import Block
from modules.methods import build_method
from modules.precision import FrozenWeightCache, compute_dtype, pad_for_tensor_cores, times
from modules.stop import inter_frame, intra_frame
from tests.tiny import tiny_batch, tiny_clip


def bf16() -> torch.autocast:
    return torch.autocast("cpu", torch.bfloat16)


def test_the_precision_of_products():
    x = torch.zeros(2)
    assert compute_dtype(x) == torch.float32
    assert compute_dtype(x.double()) == torch.float64
    assert compute_dtype(x.to("meta")) == torch.float32
    with bf16():
        assert compute_dtype(x) == torch.bfloat16
        with torch.autocast("cpu", enabled=False):
            assert compute_dtype(x) == torch.float32


def test_a_frozen_weight_is_cached_for_each_precision():
    ready, weight = times(1.702), torch.randn(3, 3)
    first = ready(weight)
    assert torch.equal(first, weight * 1.702)
    assert ready(weight) is first
    with bf16():
        half = ready(weight)
        assert torch.equal(half, (weight * 1.702).bfloat16())
        assert ready(weight) is half
    assert FrozenWeightCache()(weight) is weight
    assert times(1)(weight) is weight


def test_a_tensor_of_several_weights_is_computed_again_when_one_is_written_to():
    ready, weights = FrozenWeightCache(torch.addmv), [torch.zeros(2), torch.eye(2), torch.ones(2)]
    assert ready(*weights).tolist() == [1.0, 1.0]
    assert ready(*weights) is ready(*weights)
    weights[2].mul_(3)
    assert ready(*weights).tolist() == [3.0, 3.0]
    ready(weights[0].requires_grad_(), *weights[1:]).sum().backward()
    assert weights[0].grad.tolist() == [1.0, 1.0]


def test_it_is_computed_again_when_the_weight_is_written_to_or_exchanged():
    ready, weight = times(2.0), torch.ones(3)
    ready(weight)
    weight.copy_(torch.full((3,), 5.0))
    assert ready(weight).tolist() == [10.0] * 3
    assert ready(torch.full((3,), 7.0)).tolist() == [14.0] * 3
    assert ready(weight.double()).dtype == torch.float64


def test_a_trained_weight_keeps_its_gradient():
    ready, weight = times(3.0), torch.ones(2, requires_grad=True)
    ready(weight).sum().backward()
    assert weight.grad.tolist() == [3.0, 3.0]
    with bf16():
        assert ready(weight).dtype == torch.float32  # autocast casts it, and keeps that cast itself
        assert FrozenWeightCache()(weight) is weight


def test_a_block_gives_the_same_after_its_weights_changed_or_thawed():
    torch.manual_seed(0)
    block, other = (Block(8, 2, "quick_gelu").requires_grad_(False) for _ in range(2))
    x = torch.randn(2, 3, 8)
    assert not torch.equal(block(x), other(x))
    copied = copy.deepcopy(block)
    block.load_state_dict(other.state_dict())
    assert torch.equal(block(x), other(x))
    assert torch.equal(copied.double()(x.double()), copy.deepcopy(copied)(x.double()))
    torch.testing.assert_close(block.requires_grad_()(x), other(x))
    assert "_in" not in " ".join(block.state_dict())


class OnGPU(torch.Tensor):
    """A tensor that says it is on a GPU."""

    is_cuda = True


def test_on_a_gpu_sizes_are_padded_to_a_multiple_of_eight():
    x = torch.ones(3, 12, 10)
    on_gpu = x.as_subclass(OnGPU)
    assert pad_for_tensor_cores(on_gpu, -1).shape == (3, 12, 16)
    assert pad_for_tensor_cores(on_gpu, -2).shape == (3, 16, 10)
    assert pad_for_tensor_cores(on_gpu, -2).sum() == x.sum()
    assert pad_for_tensor_cores(on_gpu[..., :8], -1).shape == (3, 12, 8)
    assert pad_for_tensor_cores(x, -1) is x


def test_padded_products_are_the_same(monkeypatch):
    results = []
    for more in (0, 5):
        for module in (intra_frame, inter_frame):
            monkeypatch.setattr(
                module, "pad_for_tensor_cores", lambda x, dim, more=more: F.pad(x, (0, 0) * (-1 - dim) + (0, more))
            )
        torch.manual_seed(0)
        method = build_method("stop", tiny_clip(), prompt_dropout=0.0).train()
        with torch.no_grad():
            for _, parameter in method.trainable_parameters():
                parameter.add_(0.05 * torch.randn_like(parameter))
        text, clips = method(*tiny_batch())
        (text.sum() + (clips * torch.linspace(-1, 1, clips.shape[1])).sum()).backward()
        results.append([clips, *(p.grad for p in method.parameters() if p.grad is not None)])
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5 * theirs.abs().max().item())


def test_what_inference_mode_computes_serves_training_and_its_own_tensors_pass():
    cache, weight, x = times(3.0), torch.ones(2), torch.ones(2, requires_grad=True)
    with torch.inference_mode():
        made = cache(weight)
        own = torch.ones(2)
        assert cache(own).tolist() == [3.0, 3.0]
    assert cache(weight) is made
    (cache(weight) * x).sum().backward()
    assert x.grad.tolist() == [3.0, 3.0]
