"""Attention in one tile against torch's own over joined keys: values, gradients, masks, memory beyond the ends.

Runs on a GPU, or with TRITON_INTERPRET=1 on a CPU (test_interpreted.py).
"""

import importlib.util
import os
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.modules.kernels.attention_cases import (
    CASES,
    DEVICE,
    FP32,
    HALF,
    ON_GPU,
    Case,
    assert_close,
    exact,
    inputs_of,
    of_kernels,
    reference,
)

pytestmark = [pytest.mark.gpu] if ON_GPU else []

if importlib.util.find_spec("triton") is None or not (ON_GPU or os.environ.get("TRITON_INTERPRET") == "1"):
    pytest.skip("needs triton, and a GPU or its interpreter (test_interpreted.py)", allow_module_level=True)


@pytest.fixture
def attention() -> Any:
    """The module under test."""
    from modules.kernels import attention

    return attention


every_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())


@every_case
def test_values_and_gradients_equal_torchs(attention, case):
    inputs, mask, gradient = inputs_of(case)
    ours = of_kernels(attention.short_attention, inputs, mask, gradient, case.heads)
    assert_close(ours, exact(inputs, mask, gradient, case.heads), FP32)


@pytest.mark.parametrize("name", ["vision, some keys hidden", "prompter", "text", "full tiles"])
def test_half_precision_rounds_no_more_than_its_steps(attention, name):
    case = CASES[name]
    inputs, mask, gradient = inputs_of(case, HALF)
    ours = of_kernels(attention.short_attention, inputs, mask, gradient, case.heads)
    assert all(part.dtype == HALF for part in ours)
    assert_close(ours, exact(inputs, mask, gradient, case.heads), 3 * torch.finfo(HALF).eps)


def test_gradient_of_a_shared_context_is_summed_before_it_is_rounded(attention):
    """Only the context is visible, so its gradient is the sum over the rows: 1 + e - 1, where 1 + e rounds to 1."""
    e = torch.finfo(HALF).eps / 4
    qkv = torch.randn(2, 2, 3, device=DEVICE, dtype=HALF)
    keys, values = (torch.randn(1, 1, 1, device=DEVICE, dtype=HALF, requires_grad=True) for _ in range(2))
    mask = torch.tensor([False, False, True], device=DEVICE)
    gradient = torch.tensor([[1, e], [-1, 0]], device=DEVICE, dtype=HALF).unsqueeze(-1)
    attention.short_attention(qkv, keys, values, mask, heads=1).backward(gradient)
    assert values.grad.item() == e
    assert keys.grad.item() == 0


@pytest.mark.parametrize("wanted", ["qkv", "context_keys", "context_values"])
def test_gradient_of_a_single_input(attention, wanted):
    case = CASES["text"]
    inputs, mask, gradient = inputs_of(case)
    place = ["qkv", "context_keys", "context_values"].index(wanted)
    alone = [part.detach().requires_grad_(i == place) for i, part in enumerate(inputs)]
    found = attention.short_attention(*alone, mask, heads=case.heads)
    found.backward(gradient)
    assert_close([alone[place].grad], [exact(inputs, mask, gradient, case.heads)[1 + place]], FP32)
    assert all((part.grad is None) == (i != place) for i, part in enumerate(alone))


def test_context_gradients_are_made_only_where_wanted(attention):
    case = CASES["vision"]
    inputs, mask, gradient = inputs_of(case)
    plain = [part.detach() for part in inputs]
    of_qkv, *of_context = torch.ops.stop.short_attention_backward(gradient, *plain, mask, case.heads, False)
    assert [part.numel() for part in of_context] == [0, 0]
    assert_close([of_qkv], [exact(inputs, mask, gradient, case.heads)[1]], FP32)


def test_context_may_be_views(attention):
    """Views of one projection to keys and values, of every second token, and with any last stride."""
    case = CASES["vision"]
    inputs, mask, gradient = inputs_of(case)
    joined = torch.cat([part.detach().repeat_interleave(2, dim=1) for part in inputs[1:]], dim=-1)
    keys, values = joined[:, ::2].chunk(2, dim=-1)
    values = values.transpose(1, 2).contiguous().transpose(1, 2)
    views = [part.requires_grad_() for part in (inputs[0].detach(), keys.detach(), values.detach())]
    assert not any(part.is_contiguous() for part in views[1:])
    ours = of_kernels(attention.short_attention, views, mask, gradient, case.heads)
    assert_close(ours, exact(inputs, mask, gradient, case.heads), FP32)


def test_qkv_and_the_gradient_may_have_any_layout(attention):
    case = CASES["prompter"]
    inputs, mask, gradient = inputs_of(case)
    views = [inputs[0].detach().transpose(0, 1).contiguous().transpose(0, 1).requires_grad_()]
    turned = gradient.transpose(1, 2).contiguous().transpose(1, 2)
    ours = of_kernels(attention.short_attention, views, mask, turned, case.heads)
    assert_close(ours, exact(inputs, mask, gradient, case.heads), FP32)


@pytest.mark.parametrize("shape", [(32, 36), (1, 36), (2, 1, 32, 1), (36,)])
def test_masks_broadcast(attention, shape):
    case = CASES["text"]
    inputs, _, gradient = inputs_of(case)
    mask = torch.rand(shape, generator=torch.Generator().manual_seed(1)).to(DEVICE) < 0.7
    if shape[-1] > 1:
        mask[..., 0] = True
    else:
        mask.fill_(True)
    ours = of_kernels(attention.short_attention, inputs, mask, gradient, case.heads)
    assert_close(ours, exact(inputs, mask, gradient, case.heads), FP32)


def test_a_query_that_sees_nothing_gets_zeros_and_affects_no_other(attention):
    case = CASES["text"]
    inputs, mask, gradient = inputs_of(case)
    assert mask is not None
    ours = of_kernels(attention.short_attention, inputs, mask.clone(), gradient, case.heads)
    blind = mask.clone()
    blind[0, 0, 5] = False
    found, of_qkv, *of_context = of_kernels(attention.short_attention, inputs, blind, gradient, case.heads)
    assert not found[:, 5].any()
    kept = [i for i in range(case.length) if i != 5]
    assert torch.equal(found[:, kept], ours[0][:, kept])
    without = gradient.clone()
    without[:, 5] = 0
    assert_close([of_qkv, *of_context], exact(inputs, mask, without, case.heads)[1:], FP32)


@pytest.mark.parametrize("name", ["vision", "prompter", "just over a tile", "one token, one context token"])
def test_nothing_beyond_the_ends_is_read(attention, name):
    """Each input lies between NaNs, within the reach of a tile."""
    case = CASES[name]
    inputs, mask, gradient = inputs_of(case)

    def between_nans(x: Tensor) -> Tensor:
        margin = 64 * 3 * case.heads * case.head_width
        room = x.new_full((x.numel() + 2 * margin,), torch.nan)
        middle = room[margin:-margin]
        middle.copy_(x.detach().flatten())
        return middle.view(x.shape)

    walled = [between_nans(part).requires_grad_() for part in inputs]
    ours = of_kernels(attention.short_attention, walled, mask, between_nans(gradient), case.heads)
    assert_close(ours, exact(inputs, mask, gradient, case.heads), FP32)


@pytest.mark.parametrize("name", ["vision", "prompter", "just over a tile"])
def test_everything_is_written_and_nothing_beyond_the_ends(attention, monkeypatch, name):
    """Each output lies between sevens and is NaN before."""
    case = CASES[name]
    inputs, mask, gradient = inputs_of(case)
    rooms = []
    new_empty = torch.Tensor.new_empty
    margin = 64 * 3 * case.heads * case.head_width

    def walled(self: Tensor, *size: Any, dtype: torch.dtype | None = None, **others: Any) -> Tensor:
        if others:  # a call of triton's interpreter
            return new_empty(self, *size, dtype=dtype, **others)
        shape = torch.Size(size[0] if isinstance(size[0], torch.Size) else size)
        room = torch.full((shape.numel() + 2 * margin,), 7.0, device=self.device, dtype=dtype or self.dtype)
        rooms.append(room)
        return room[margin : len(room) - margin].fill_(torch.nan).view(shape)

    plain = [part.detach() for part in inputs] + [None] * (3 - len(inputs))
    with monkeypatch.context() as patch:
        patch.setattr(torch.Tensor, "new_empty", walled)
        found = attention.short_attention(*plain, mask, heads=case.heads)
        of_inputs = torch.ops.stop.short_attention_backward(gradient, *plain, mask, case.heads, len(inputs) > 1)
    assert len(rooms) == 4
    assert all((room[:margin] == 7).all() and (room[len(room) - margin :] == 7).all() for room in rooms)
    assert_close([found, *of_inputs[: len(inputs)]], exact(inputs, mask, gradient, case.heads), FP32)


def test_an_empty_context_is_none(attention):
    case = CASES["prompter"]
    inputs, _, _ = inputs_of(case)
    empty = inputs[0].new_empty(case.rows, 0, case.heads * case.head_width)
    with_empty = attention.short_attention(inputs[0], empty, empty, heads=case.heads)
    assert torch.equal(with_empty, attention.short_attention(inputs[0], heads=case.heads))


def test_a_context_of_another_dtype_is_cast(attention):
    case = CASES["vision"]
    (qkv, *context), _, gradient = inputs_of(case)
    half = qkv.detach().to(HALF)
    found = attention.short_attention(half, *context, heads=case.heads)
    assert found.dtype == HALF
    assert torch.equal(found, attention.short_attention(half, *(part.to(HALF) for part in context), heads=case.heads))
    assert [part.dtype for part in torch.autograd.grad(found, context, gradient.to(HALF))] == [torch.float32] * 2


def test_autocast_changes_nothing(attention):
    case = CASES["text"]
    inputs, mask, gradient = inputs_of(case)
    plain = of_kernels(attention.short_attention, inputs, mask, gradient, case.heads)
    with torch.autocast(DEVICE, dtype=torch.bfloat16):
        cast = of_kernels(attention.short_attention, inputs, mask, gradient, case.heads)
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(cast, plain, strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["vision, some keys hidden", "prompter", "text"])
def test_compiled_equals_eager(attention, name):
    case = CASES[name]
    inputs, mask, gradient = inputs_of(case)
    compiled = torch.compile(attention.short_attention, backend="aot_eager", fullgraph=True)
    ours = of_kernels(compiled, inputs, mask, gradient, case.heads)
    eager = of_kernels(attention.short_attention, inputs, mask, gradient, case.heads)
    assert all(torch.equal(one, other) for one, other in zip(ours, eager, strict=True))


@pytest.mark.slow
def test_compiled_for_any_size_equals_eager(attention):
    torch._dynamo.reset()
    compiled = torch.compile(attention.short_attention, backend="aot_eager", fullgraph=True)
    for name in ("prompter", "text"):  # the second is traced with sizes that are not known
        case = CASES[name]
        inputs, mask, gradient = inputs_of(case)
        ours = of_kernels(compiled, inputs, mask, gradient, case.heads)
        eager = of_kernels(attention.short_attention, inputs, mask, gradient, case.heads)
        assert all(torch.equal(one, other) for one, other in zip(ours, eager, strict=True))


@pytest.mark.parametrize("name", ["one token", "one token, one context token", "just over a tile"])
def test_operators_follow_torchs_rules(attention, name):
    case = CASES[name]
    inputs, mask, gradient = inputs_of(case)
    padded = [*inputs, *[None] * (3 - len(inputs))]
    torch.library.opcheck(torch.ops.stop.short_attention.default, (*padded, mask, case.heads))
    plain = [part if part is None else part.detach() for part in padded]
    for wanted in {False, len(inputs) > 1}:
        arguments = (gradient, *plain, mask, case.heads, wanted)
        torch.library.opcheck(torch.ops.stop.short_attention_backward.default, arguments)


def test_no_rows_give_no_rows(attention):
    assert attention.short_attention(torch.zeros(0, 5, 24, device=DEVICE), heads=2).shape == (0, 5, 8)


def test_sizes_that_fit(attention):
    assert attention.fits(64, 64, 64)
    assert attention.fits(1, 0, 10)
    assert not any(attention.fits(*sizes) for sizes in ((65, 0, 64), (50, 79, 64), (50, 8, 65)))


QKV = torch.zeros(2, 4, 24)
CONTEXT = torch.zeros(2, 3, 8)


@pytest.mark.parametrize(
    ("arguments", "heads", "message"),
    [
        ((QKV[0],), 2, "qkv must be"),
        ((QKV,), 3, "multiple of 3 heads"),
        ((QKV.double(),), 2, "bf16, fp16 or fp32"),
        ((QKV, CONTEXT), 2, "both keys and values"),
        ((QKV, CONTEXT, CONTEXT[:, 1:]), 2, "context must be"),
        ((QKV, CONTEXT[..., 1:], CONTEXT[..., 1:]), 2, "context must be"),
        ((QKV, CONTEXT.repeat(2, 1, 1), CONTEXT.repeat(2, 1, 1)), 2, "context must be"),
        ((torch.zeros(1, 65, 24),), 2, "do not fit in a tile"),
        ((QKV, None, None, torch.zeros(4, 4)), 2, "mask must be bool"),
        ((QKV, None, None, torch.ones(2, 2, 4, 4, dtype=torch.bool)), 2, "mask must be broadcastable"),
        ((QKV, CONTEXT, CONTEXT, torch.ones(4, 4, dtype=torch.bool)), 2, "mask must be broadcastable"),
    ],
)
def test_what_does_not_fit_is_refused(attention, arguments, heads, message):
    with pytest.raises(ValueError, match=message):
        attention.short_attention(*arguments, heads=heads)


@pytest.mark.gpu
@pytest.mark.skipif(not ON_GPU, reason="needs a CUDA device")
class TestOnGpu:
    """What the interpreter cannot show: sizes of training, and other code made for the GPU around the kernels."""

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
    @pytest.mark.parametrize(
        "case",
        [
            Case(1024, 50, 8, 12, 64),
            Case(1024, 49, 0, 8, 10),
            Case(256, 32, 4, 8, 64, shared=True, mask=(1, 32)),
            Case(256, 50, 8, 12, 64, mask=(256, 1)),
        ],
    )
    def test_no_further_from_exact_than_torch(self, attention, case, dtype):
        inputs, mask, gradient = inputs_of(case, dtype)
        ours = of_kernels(attention.short_attention, inputs, mask, gradient, case.heads)
        found = reference(inputs, mask, case.heads)
        theirs = [found, *torch.autograd.grad(found, inputs, gradient)]
        for our, their, best in zip(ours, theirs, exact(inputs, mask, gradient, case.heads), strict=True):
            assert our.dtype == dtype
            assert (our - best).abs().mean() <= 1.5 * (their - best).abs().mean() + torch.finfo(dtype).eps / 100

    def test_more_elements_than_int32_counts(self, attention):
        rows, length, heads, head_width = 2**31 // (50 * 3 * 768) + 50, 50, 12, 64
        if torch.cuda.mem_get_info()[0] < 20 * 2**30:
            pytest.skip("needs 20 GiB of GPU memory")
        qkv = torch.zeros(rows, length, 3 * heads * head_width, device=DEVICE, dtype=HALF)
        qkv[-2:].normal_()
        last = qkv[-2:].clone().requires_grad_()
        found = attention.short_attention(qkv.requires_grad_(), heads=heads)
        of_last = attention.short_attention(last, heads=heads)
        assert torch.equal(found[-2:], of_last)
        gradient = torch.ones_like(found)
        found.backward(gradient)
        of_last.backward(gradient[-2:])
        assert torch.equal(qkv.grad[-2:], last.grad)

    def test_compiled_with_generated_kernels(self, attention):
        case = CASES["text"]
        inputs, mask, gradient = inputs_of(case)

        def within(qkv: Tensor, keys: Tensor, values: Tensor, *, mask: Tensor, heads: int) -> Tensor:
            return attention.short_attention(2 * qkv, keys + 1, values.sin(), mask, heads=heads).cos()

        compiled = of_kernels(torch.compile(within, fullgraph=True), inputs, mask, gradient, case.heads)
        assert_close(compiled, of_kernels(within, inputs, mask, gradient, case.heads), FP32)
